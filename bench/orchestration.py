"""What Prefect, DVC and MLflow cost: python -m bench.orchestration [--preset smoke]

Runs the stage programs of dvc.yaml bare, one after the other (no DVC, no Prefect, no MLflow), and then the whole flow, each in
a scratch copy of this repository with the same preset, and prints both times and their ratio. Your own outputs are not touched.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Seen by the bare programs only: hides packages that a stage does without when they are absent.
HIDE = "import sys\nsys.modules['mlflow'] = sys.modules['dvc'] = None\n"


def main() -> int:
    """0 when both ran; the figures are on standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--preset", default="", help="a file of presets/, without .yaml; default: the active params.yaml"
    )
    parser.add_argument("--max-parallel", type=int, default=1, help="1 compares like with like: bare is in sequence")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unmask-bench-") as folder:
        bare = bare_seconds(scratch_copy(Path(folder) / "bare", arguments.preset))
        print(f"bare, in sequence:         {bare:8.1f} s", flush=True)
        command = [sys.executable, "-m", "flows.pipeline", "--max-parallel", str(arguments.max_parallel)]
        copy = scratch_copy(Path(folder) / "flow", arguments.preset)
        whole = seconds_of(command, copy)
        print(f"Prefect, DVC and MLflow:   {whole:8.1f} s, at most {arguments.max_parallel} side by side")
        again = seconds_of(command, copy)
        print(f"again, nothing changed:    {again:8.1f} s")
    stages = len(commands_in_order(ROOT))
    print(
        f"cost:                      {whole / bare:8.3f} x bare, {(whole - bare) / stages:.1f} s for each of {stages} stages"
    )
    return 0


def scratch_copy(folder: Path, preset: str) -> Path:
    """Every file that git tracks or would track, with a history of its own."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in names:
        if name and name != "dvc.lock" and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    source = ROOT / "presets" / f"{preset}.yaml" if preset else ROOT / "params.yaml"
    if not source.is_file():
        raise SystemExit(f"bench: there is no {source.relative_to(ROOT)}")
    shutil.copyfile(source, folder / "params.yaml")
    for command in (["init", "-q"], ["-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-q",
                                     "--allow-empty", "-m", "scratch"]):  # fmt: skip
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


def commands_in_order(folder: Path) -> list[list[str]]:
    """Each stage's command, after those of the stages it depends on."""
    from dvc.repo import Repo

    from flows.dvc_graph import read_graph

    with Repo(str(folder)) as repo:
        commands = {stage.name: shlex.split(stage.cmd) for stage in repo.index.stages}
    return [commands[name] for name in read_graph(folder)]


def bare_seconds(folder: Path) -> float:
    """Seconds for all stage programs one after the other; `register`, which only talks to MLflow, is left out."""
    hook = folder / ".bare"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HIDE, encoding="utf-8")
    commands = [command for command in commands_in_order(folder) if command[-1] != "tasks.register"]
    (folder / ".dvc").rename(folder / ".dvc-hidden")
    return sum(seconds_of([sys.executable, *command[1:]], folder, PYTHONPATH=str(hook)) for command in commands)


def seconds_of(command: list[str], folder: Path, **environment: str) -> float:
    """Wall-clock seconds of a command, whose output is shown only when it fails."""
    own = ("PREFECT_", "MLFLOW_", "DVC_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    started = time.monotonic()
    done = subprocess.run(
        command,
        cwd=folder,
        env=kept | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"bench: {' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())
