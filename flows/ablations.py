"""Runs the ablations of flows/ablations.yaml: python -m flows.ablations [--base .] [--question cap ...] [--arms FILE].

A job is one arm with one seed: the preset with the arm's changes in a folder of its own, .work/ablations/<question>/<arm>/<seed>,
where the ordinary stage programs run on data and models that `base` made once, or that a finished pipeline left in the checkout
that --base names. Those were trained as long as their own preset says, so that a short arm can tell something. A finished job
leaves result.json with the key of all it depended on; a job that was killed goes on inside its stage, and one whose key has
changed begins again. At the end docs/ablations.md, its plots and the MLflow experiment `ablations` are brought up to date
(tasks.ablations does only that).
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows import forks
from flows.server import prefect_server
from flows.stage_process import Outcome, StageProcesses
from flows.start import alone, check_parallel, deliver, prepare, run_command
from model.atomic import write_json
from tasks.ablation_plan import ARMS, FOLDER, read_plan, seeds_of, slug
from tasks.parameters import load_params

SHARED = ("model", "tasks", "dvc.yaml")  # linked into every job's folder: the code is part of its key
USED = ("raw", "tokens", "models", "own_answers")  # what jobs read of a given base's data
ALIKE = ("network", "tokenize")  # sections in which a given base and the preset must agree: arms may train from scratch


@dataclass(frozen=True)
class Job:
    """Stages to run in `folder` (under .work/ablations) with params.yaml = preset + changes + seed."""

    folder: str
    stages: tuple[str, ...]
    params: dict[str, Any]
    key: str
    started_from: str = ""  # which pipeline's models, where a base was given

    @property
    def name(self) -> str:
        """As a person reads it."""
        return self.folder


def jobs(
    root: Path, plan: dict[str, Any], only: Sequence[str] = (), given: Path | None = None
) -> tuple[Job | None, list[Job]]:
    """The job that makes what all share, and the others: question by question, seed by seed, so that early stops are even.

    With `given`, a checkout with a finished pipeline, there is nothing to make (None).
    """
    preset = load_params(root / f"presets/{plan['preset']}.yaml")
    base = None if given else _job(root, "base", plan["base"], preset, "")
    key, started_from = describe(given, preset) if given else (base.key, "")
    if unknown := sorted(set(only) - set(plan["questions"])):
        raise ValueError(f"there is no question '{unknown[0]}'; there are {', '.join(plan['questions'])}")
    found = []
    for name in only or plan["questions"]:
        question = plan["questions"][name]
        for seed in seeds_of(plan, name):
            for arm, changes in question["arms"].items():
                params = {**preset, "seed": seed}
                for section, values in (*question.get("common", {}).items(), *changes.items()):
                    params[section] = {**params[section], **values}
                found.append(_job(root, f"{name}/{slug(arm)}/{seed}", question["stages"], params, key, started_from))
    return base, found


def _job(root: Path, folder: str, stages: list[str], params: dict[str, Any], base: str, started_from: str = "") -> Job:
    facts = json.dumps([stages, params, base, _code(root)], sort_keys=True)
    return Job(folder, tuple(stages), params, hashlib.sha256(facts.encode()).hexdigest()[:16], started_from)


def describe(given: Path, preset: dict[str, Any]) -> tuple[str, str]:
    """(hash of what jobs read of a finished pipeline, what a person calls it); ValueError where it cannot be a base."""
    if absent := [name for name in USED if not (given / "data" / name).is_dir()]:
        raise ValueError(f"--base {given} has no data/{absent[0]}: name a checkout in which `make run` has ended")
    params = load_params(given / "params.yaml")
    for name in ALIKE:
        if params.get(name) != preset[name]:
            raise ValueError(
                f"--base {given} was made with {name} {params.get(name)}, the preset of the ablations has {preset[name]}: arms "
                "that train from scratch would not be like it. Make one like the other"
            )
    digest = hashlib.sha256()
    for path in sorted(path for name in USED for path in (given / "data" / name).rglob("*") if path.is_file()):
        digest.update(path.relative_to(given).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    key = digest.hexdigest()[:16]
    return key, f"preset {params['preset']}, seed {params['seed']}, data and models {key}"


def _code(root: Path) -> str:
    """What all code under model/ and tasks/ is, as one hash."""
    digest = hashlib.sha256()
    for path in sorted(file for name in ("model", "tasks") for file in (root / name).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def is_done(root: Path, job: Job) -> bool:
    """Whether the job has ended with exactly this key."""
    result = root / FOLDER / job.folder / "result.json"
    return result.is_file() and json.loads(result.read_text())["key"] == job.key


def prepare_folder(root: Path, job: Job) -> Path:
    """The job's folder with links to code, data and models; emptied when it belongs to another key."""
    folder = root / FOLDER / job.folder
    mark = folder / "key"
    if folder.exists() and (not mark.is_file() or mark.read_text() != job.key):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        _link(folder / name, root / name)
    _link(folder / "data/suites", root / "data/suites")
    if job.folder != "base":
        base = root / FOLDER / "base/data"
        own = {instance or name for name, _, instance in (stage.partition("@") for stage in job.stages)}
        models = [path for path in sorted((base / "models").glob("*")) if path.name not in own]
        answers = [] if "own_answers" in own else [base / "own_answers"]
        for path in (base / "raw", base / "validated", base / "tokens", *answers, *models):
            _link(folder / "data" / path.relative_to(base), path)
    (folder / "params.yaml").write_text(yaml.safe_dump(job.params, sort_keys=False), encoding="utf-8")
    mark.write_text(job.key)
    return folder


def use_base(root: Path, given: Path | None) -> None:
    """Makes .work/ablations/base the given checkout, or frees the place for the flow's own."""
    place = root / FOLDER / "base"
    if place.is_symlink():
        place.unlink()
    if given:
        if place.is_dir():
            shutil.rmtree(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(given.resolve())


def _link(place: Path, target: Path) -> None:
    if not place.exists() and not place.is_symlink():  # what a stage of this job has made stays
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)


class Running:
    """The stage processes of the jobs under way; `stop` ends them all and lets none begin."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._live: list[StageProcesses] = []

    def begin(self, folder: Path) -> StageProcesses:
        """The processes of one more job."""
        self._live.append(StageProcesses(folder))
        return self._live[-1]

    def stop(self) -> None:
        """Ends every stage that runs; each keeps its resume point."""
        self.stopped.set()
        for processes in self._live:
            processes.stop()


def run_job(root: Path, job: Job, running: Running, on_line: Callable[[str], None]) -> Outcome:
    """Runs the job's stages one after the other; those that are finished are not run again."""
    folder = prepare_folder(root, job)
    processes, seconds = running.begin(folder), 0.0
    os.environ["UNMASK_TRACKING"] = "files"
    for stage in job.stages:
        if running.stopped.is_set():
            return Outcome("failed", seconds, "stopped")
        done = folder / f"done-{slug(stage)}"
        if done.exists():
            continue
        name, _, instance = stage.partition("@")
        command = forks.command("-m", f"tasks.{name}", *(["--instance", instance] if instance else []))
        outcome = processes.run_command(command, on_line)
        seconds += outcome.seconds
        if outcome.status == "failed":
            return outcome
        done.touch()
    result = {"key": job.key, "seconds": round(seconds, 1), "started_from": job.started_from}
    write_json(folder / "result.json", result)
    return Outcome("ran", seconds)


def waiting(root: Path, base: Job | None, others: list[Job]) -> Iterator[Job]:
    """What is still to be done, in order; everything when the base has to be made anew."""
    if base and not is_done(root, base):
        yield base
    yield from (job for job in others if not is_done(root, job))


def report(root: Path, arms: Path) -> int:
    """Brings docs/ablations.md and MLflow up to date with what is finished; the exit status of that program."""
    return subprocess.run(
        [sys.executable, "-m", "tasks.ablations", "--arms", str(arms)], cwd=root, check=False
    ).returncode


def main() -> int:
    """0 when every job is done, 1 when one failed, 2 for a wrong plan."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.ablations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--question", nargs="+", default=(), help="only these, in this order")
    parser.add_argument(
        "--base", type=Path, help="a checkout whose finished pipeline the arms start from (`.`: this one)"
    )
    parser.add_argument("--arms", type=Path, default=Path(ARMS), help=f"the plan (default {ARMS})")
    parser.add_argument("--max-parallel", type=int, default=1, help="jobs that may run side by side (default 1)")
    parser.add_argument("--list", action="store_true", help="print what is still to be done and stop")
    options = parser.parse_args()

    def work(root: Path) -> int:
        check_parallel(options.max_parallel)
        plan = read_plan(root, options.arms)
        base, others = jobs(root, plan, options.question, options.base)
        todo = list(waiting(root, base, others))
        print(f"ablations: {len(todo)} of {bool(base) + len(others)} jobs to do", flush=True)
        if options.list:
            print("\n".join(job.name for job in todo))
            return 0
        with alone(root):
            prepare(root)
            use_base(root, options.base)
            with forks.serving(root):
                failed = _run(root, todo, options.max_parallel) if todo else 0
            return max(int(failed > 0), report(root, options.arms))

    return run_command("ablations", work)


def _run(root: Path, todo: list[Job], max_parallel: int) -> int:
    with prefect_server(root):
        from flows.ablation_flow import ablations

        try:
            return ablations(root, todo, max_parallel)
        finally:
            deliver()


if __name__ == "__main__":
    sys.exit(main())
