"""What Prefect, DVC and MLflow cost: python -m bench.orchestration [--preset smoke] [--deployed]

Runs the stage programs of dvc.yaml bare, one after the other (no DVC, no Prefect, no MLflow), and then the whole flow, each in
a scratch copy of this repository with the same preset, and prints both times and their ratio, by the clock and in processor
time, which a busy machine does not stretch. Your own outputs are not touched. With --deployed: a run of the preset's deployment
takes the flow's place, and each stage is compared with its bare program, from its submission to its end.
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
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Seen by the bare programs only: hides packages that a stage does without when they are absent.
HIDE = "import sys\nsys.modules['mlflow'] = sys.modules['dvc'] = None\n"


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, and seconds of processors."""

    seconds: float = 0.0
    processor_seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, self.processor_seconds + other.processor_seconds)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds - other.seconds, self.processor_seconds - other.processor_seconds)

    def __str__(self) -> str:
        return f"{self.seconds:8.2f} s, {self.processor_seconds:8.2f} s of processors"


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
    with tempfile.TemporaryDirectory(prefix="unmask-bench-") as folder:
        bare = bare_costs(scratch_copy(Path(folder) / "bare", arguments.preset))
        alone = sum(bare.values(), Cost())
        print(f"bare, in sequence:         {alone}", flush=True)
        if arguments.deployed:
            return deployed(scratch_copy(Path(folder) / "clone", arguments.preset), arguments.preset or "tiny", bare)
        command = [sys.executable, "-m", "flows.pipeline", "--max-parallel", str(arguments.max_parallel)]
        copy = scratch_copy(Path(folder) / "flow", arguments.preset)
        whole = cost_of(command, copy)
        print(f"Prefect, DVC and MLflow:   {whole}, at most {arguments.max_parallel} side by side")
        print(f"again, nothing changed:    {cost_of(command, copy)}")
    stages = len(commands_in_order(ROOT))
    for name, with_all, without in (
        ("by the clock:", whole.seconds, alone.seconds),
        ("processor time:", whole.processor_seconds, alone.processor_seconds),
    ):
        each = (with_all - without) / stages
        print(f"cost, {name:21}{with_all / without:8.3f} x bare, {each:.2f} s for each of {stages} stages")
    return 0


def deployed(copy: Path, preset: str, bare: dict[str, Cost]) -> int:
    """Prints the services' memory, and what each stage costs between submission and end more than its bare program."""
    identity = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    for command in (["add", "-A"], [*identity, "commit", "-qm", "bench"]):
        subprocess.run(["git", *command], cwd=copy, check=True)
    try:
        cost_of([sys.executable, "-m", "flows.services", "up"], copy)
        print(f"idle servers and worker:   {services_megabytes(copy):8.0f} MB", flush=True)
        run = ["-m", "prefect", "deployment", "run", f"pipeline/{preset}", "--param", "max_parallel=1", "--watch"]
        used = processor_seconds(copy)
        print(f"pipeline/{preset}: {cost_of([sys.executable, *run], copy).seconds:.1f} s", flush=True)
        used = processor_seconds(copy) - used
        print(f"servers and worker, busy:  {services_megabytes(copy):8.0f} MB just after the run")
        runs = dict(stage_seconds(copy))
    finally:
        cost_of([sys.executable, "-m", "flows.services", "down"], copy)
    added = {name: seconds - bare[name].seconds for name, seconds in runs.items() if name in bare}
    print("\n".join(f"{name:28}{seconds:8.2f} s more than bare" for name, seconds in added.items()))
    print(
        f"added, by the clock: median {statistics.median(added.values()):.2f} s, greatest {max(added.values()):.2f} s"
    )
    each = (used - sum(cost.processor_seconds for cost in bare.values())) / len(runs)
    print(f"added, processor time: {each:.2f} s for each of {len(runs)} stages, the servers' and the worker's included")
    return 0


def services_megabytes(folder: Path) -> float:
    """Proportional memory of everything that `make up` has started there."""
    return sum(process.memory_full_info().pss for process in service_processes(folder)) / 2**20


def processor_seconds(folder: Path) -> float:
    """Of everything that `make up` has started there, with all that has ended below it."""
    return sum(sum(process.cpu_times()[:4]) for process in service_processes(folder))


def service_processes(folder: Path) -> list[Any]:
    """What `make up` has started there, and what that has started."""
    import psutil

    pids = [json.loads(file.read_text())["pid"] for file in (folder / ".work/services").glob("*.json")]
    return [process for pid in pids for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]


def stage_seconds(folder: Path) -> Iterator[tuple[str, float]]:
    """For every stage run: from its creation to its end."""
    address = json.loads((folder / ".work/services/prefect.json").read_text())["address"]

    def ask(path: str) -> list[dict]:
        request = urllib.request.Request(address + path, b"{}", {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    for run in ask("/flow_runs/filter"):
        if run["parent_task_run_id"] is not None and run["end_time"]:
            begun, ended = (datetime.fromisoformat(run[name]) for name in ("created", "end_time"))
            yield run["name"], (ended - begun).total_seconds()


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


def commands_in_order(folder: Path) -> dict[str, list[str]]:
    """Each stage's command, after those of the stages it depends on."""
    from dvc.repo import Repo

    from flows.dvc_graph import read_graph

    with Repo(str(folder)) as repo:
        commands = {stage.name: shlex.split(stage.cmd) for stage in repo.index.stages}
    return {name: commands[name] for name in read_graph(folder)}


def bare_costs(folder: Path) -> dict[str, Cost]:
    """What each stage program costs, one after the other; `register`, which only talks to MLflow, is left out."""
    hook = folder / ".bare"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HIDE, encoding="utf-8")
    commands = {name: command for name, command in commands_in_order(folder).items() if name != "register"}
    (folder / ".dvc").rename(folder / ".dvc-hidden")
    return {
        name: cost_of([sys.executable, *command[1:]], folder, PYTHONPATH=str(hook))
        for name, command in commands.items()
    }


def cost_of(command: list[str], folder: Path, **environment: str) -> Cost:
    """What a command and all that it waits for cost; its output is shown only when it fails."""
    own = ("PREFECT_", "MLFLOW_", "DVC_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    started, used = time.monotonic(), os.times()
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
    now = os.times()
    processor = now.children_user - used.children_user + now.children_system - used.children_system
    return Cost(time.monotonic() - started, processor)


if __name__ == "__main__":
    sys.exit(main())
