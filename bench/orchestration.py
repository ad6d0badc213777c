"""What Prefect, DVC and MLflow cost: python -m bench.orchestration [--preset smoke] [--deployed]

Runs the stage programs of dvc.yaml bare, one after the other (no DVC, no Prefect, no MLflow), and then the whole flow, each in
a scratch copy of this repository with the same preset, and prints both times and their ratio. Your own outputs are not touched.
With --deployed: instead, what a deployed run's queue, worker and engine add to each stage, and what idle servers hold in memory.
"""

import argparse
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from datetime import datetime
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
    parser.add_argument(
        "--deployed", action="store_true", help="a run of the preset's deployment on `make up`'s services"
    )
    arguments = parser.parse_args()
    if arguments.deployed:
        return deployed(arguments.preset or "smoke")
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


def deployed(preset: str) -> int:
    """Prints the services' memory and, stage by stage, seconds between submission and end outside `dvc repro`."""
    with tempfile.TemporaryDirectory(prefix="unmask-bench-") as folder:
        copy = scratch_copy(Path(folder) / "clone", preset)
        for command in (
            ["add", "-A"],
            ["-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-qm", "bench"],
        ):
            subprocess.run(["git", *command], cwd=copy, check=True)
        try:
            seconds_of([sys.executable, "-m", "flows.services", "up"], copy)
            print(f"idle servers and worker:   {services_megabytes(copy):8.0f} MB", flush=True)
            run = ["-m", "prefect", "deployment", "run", f"pipeline/{preset}", "--watch"]
            print(f"pipeline/{preset}: {seconds_of([sys.executable, *run], copy):.1f} s")
            added = dict(added_seconds(copy))
        finally:
            seconds_of([sys.executable, "-m", "flows.services", "down"], copy)
    print("\n".join(f"{name:28}{seconds:6.1f} s" for name, seconds in added.items()))
    print(f"median of {len(added)} stages:       {statistics.median(added.values()):8.1f} s")
    return 0


def services_megabytes(folder: Path) -> float:
    """Proportional memory of everything that `make up` has started there."""
    import psutil

    pids = [json.loads(file.read_text())["pid"] for file in (folder / ".work/services").glob("*.json")]
    kept = [process for pid in pids for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]
    return sum(process.memory_full_info().pss for process in kept) / 2**20


def added_seconds(folder: Path) -> Iterator[tuple[str, float]]:
    """For every stage run: from its creation to its end, without the seconds that the stage itself reports."""
    address = json.loads((folder / ".work/services/prefect.json").read_text())["address"]

    def ask(path: str) -> list[dict]:
        request = urllib.request.Request(address + path, b"{}", {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    runs = {run["id"]: run for run in ask("/flow_runs/filter")}
    for artifact in ask("/artifacts/filter"):
        if artifact["type"] == "markdown":
            run, outcome = runs[artifact["flow_run_id"]], json.loads(artifact["data"])["outcome"]
            begun, ended = (datetime.fromisoformat(run[name]) for name in ("created", "end_time"))
            yield run["name"], (ended - begun).total_seconds() - outcome["seconds"]


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
