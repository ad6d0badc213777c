"""Runs one stage of the pipeline: parameters, threads, a place for work in progress, a tracked run, errors a person can read.

Every tasks/X.py ends with `if __name__ == "__main__": run_stage(main, "X")` and is started by `python -m tasks.X`.
"""

import argparse
import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from model.training.mlflow_tracker import open_tracker
from model.training.pipeline_run import announce_pipeline_run, current_pipeline_run, end_pipeline_run
from model.training.tracker import DeferredTracker, RunIdentity, Tracker
from tasks.environment import quiet, use_threads
from tasks.fingerprint import announced, fingerprint
from tasks.launch import IS_FIRST, STARTED, end_with_parent, launch, processes_of
from tasks.parameters import check_sections, explain_section, load_params

HERE = Path(__file__).resolve().parents[1]
FIRST_STAGE = "download"
LEFTOVERS = 2  # unfinished works of other keys kept per stage: settings that are gone back to go on where they were
BAD_INPUT, TEMPORARY, INTERRUPTED, TERMINATED = 2, 75, 130, 143
# Of what the operating system refuses: another try would end the same.
LASTING = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST}


@dataclass(frozen=True)
class Stage:
    """What a stage's `main` is given. `work` survives kills and goes away on success; `key` names this very computation.

    Where `accelerate launch` starts several processes, all work in `work`, and the first alone records and publishes.
    """

    name: str
    instance: str | None
    params: dict[str, Any]
    section: dict[str, Any]
    seed: int
    threads: int
    root: Path
    work: Path
    key: str
    tags: dict[str, str]
    tracker: Tracker

    @property
    def address(self) -> str:
        """The name DVC gives it: `tokenize`, `evaluate@tune_cap`."""
        return f"{self.name}@{self.instance}" if self.instance else self.name

    def publish(self, made: Path, out: str) -> Path:
        """Moves a finished file or folder to its place under the root, in one rename, over whatever stood there."""
        target = self.root / out
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        os.replace(made, target)
        return target


def run_stage(main: Callable[[Stage], None], name: str) -> None:
    """Runs `main` as a process of its own and exits: 0 done, 2 wrong input (one message), 130/143 stopped, 75 worth trying again
    (the disk is full, a connection broke), 1 anything else."""
    quiet()
    root = Path.cwd()
    arguments = _parse_arguments(main, name, root)
    signal.signal(signal.SIGTERM, stop_on_signal)

    def run() -> None:
        if STARTED:
            end_with_parent()
        else:
            _start_processes(name, root)
        with open_stage(name, root, arguments.instance) as stage:
            started = time.monotonic()
            if IS_FIRST:
                where = f"{stage.tracker.location}, work in {stage.work.relative_to(root)}"
                print(f"{stage.address}: begins ({where})", flush=True)
            main(stage)
        if IS_FIRST:
            print(f"{stage.address}: done in {time.monotonic() - started:.1f} s", flush=True)

    if code := exit_code_of(run, name):
        sys.exit(code)


def exit_code_of(run: Callable[[], None], name: str) -> int:
    """Runs it; what went wrong is printed for a person and becomes one of the codes of run_stage."""
    try:
        run()
    except ValueError as error:
        _complain(name, error)
        return BAD_INPUT
    except OSError as error:
        _complain(name, error)
        return 1 if error.errno in LASTING else TEMPORARY
    except KeyboardInterrupt:
        print(f"{name}: stopped; the same command goes on from here", file=sys.stderr, flush=True)
        return INTERRUPTED
    return 0


def _complain(name: str, error: Exception) -> None:
    """The message, and the line of this project's code that it comes from."""
    rooms = tuple(f"{HERE / room}{os.sep}" for room in ("model", "tasks"))
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(rooms)]
    which = "" if IS_FIRST else f" (process {os.environ['RANK']})"
    where = f"{Path(ours[-1].filename).name}, line {ours[-1].lineno}"
    print(f"{name}{which}: {error}\n({where})", file=sys.stderr, flush=True)


def _start_processes(name: str, root: Path) -> None:
    """Where the stage's section asks for several processes: runs it in them, and ends as they do."""
    params = load_params(root / "params.yaml")
    section = params.get(name)
    if isinstance(section, dict) and processes_of(section) > 1:
        use_threads(_threads(params, section))
        code = launch(f"tasks.{name}", sys.argv[1:], section)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)


def _threads(params: dict[str, Any], section: dict[str, Any]) -> int:
    return _whole(section.get("threads", params.get("threads", 1)), "threads", 1)


@contextmanager
def open_stage(name: str, root: Path, instance: str | None = None) -> Iterator[Stage]:
    """A stage ready to work, its run closed and its work in progress removed or kept as the body ends."""
    params = load_params(root / "params.yaml")
    check_sections(params, root / "dvc.yaml")
    if name not in params or not isinstance(params[name], dict | None):
        raise ValueError(
            f"params.yaml has no section {name!r}, so stage {name} has no settings. Complete examples: presets/"
        )
    section = params[name] or {}
    threads = _threads(params, section)
    use_threads(threads)
    address = f"{name}@{instance}" if instance else name
    identity = announced(address) or fingerprint(root, address)
    work = root / ".work" / address / identity.key
    work.mkdir(parents=True, exist_ok=True)
    os.utime(work)
    tags = _tags(root, params, name, instance) | {"unmask.data": identity.data_hash}
    tracker = _tracker(root, RunIdentity(address, identity.key, tags))
    seed = _whole(params.get("seed", 0), "seed", 0)
    stage = Stage(name, instance, params, section, seed, threads, root, work, identity.key, tags, tracker)
    try:
        tracker.log_params(section | {"seed": seed, "threads": threads})
        yield stage
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        tracker.close(status)
        if IS_FIRST:
            end_pipeline_run(root, status)
        raise
    tracker.close()
    if IS_FIRST:
        shutil.rmtree(work, ignore_errors=True)
        _bound_leftovers(work.parent)


@contextmanager
def open_session(name: str, root: Path, key: str) -> Iterator[Stage]:
    """The same for work that DVC does not know because it makes no result: it judges some, under a key of its own."""
    params = load_params(root / "params.yaml")
    check_sections(params, root / "dvc.yaml")
    section = params.get(name) or {}
    threads = _whole(section.get("threads", params.get("threads", 1)), "threads", 1)
    use_threads(threads)
    work = root / ".work" / name / key
    work.mkdir(parents=True, exist_ok=True)
    os.utime(work)
    tags = _tags(root, params, name, None)
    tracker = open_tracker(root, RunIdentity(name, key, tags))
    seed = _whole(params.get("seed", 0), "seed", 0)
    try:
        tracker.log_params(section)
        yield Stage(name, None, params, section, seed, threads, root, work, key, tags, tracker)
    except BaseException as error:
        tracker.close("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    tracker.close()
    shutil.rmtree(work, ignore_errors=True)
    _bound_leftovers(work.parent)


def _tracker(root: Path, identity: RunIdentity) -> Tracker:
    """The stage's run under the pipeline's. The first stage only announces one, and records itself if it found news."""
    if not IS_FIRST:
        return Tracker()

    def attached() -> Tracker:
        return open_tracker(root, replace(identity, parent_run=current_pipeline_run(root)))

    if identity.name != FIRST_STAGE:
        return attached()
    announce_pipeline_run(root, identity.tags)
    recorded, manifest = root / ".work" / "recorded" / identity.name, root / "data" / "raw" / "manifest.json"
    before = _content(manifest)

    def is_news() -> bool:
        mark = f"{identity.key} {hashlib.sha256(_content(manifest)).hexdigest()}"
        known = _content(recorded).decode() == mark and (root / "mlruns").is_dir() and _content(manifest) == before
        recorded.parent.mkdir(parents=True, exist_ok=True)
        recorded.write_text(mark, encoding="utf-8")
        return not known

    return DeferredTracker(attached, is_news)


def _content(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""


def _parse_arguments(main: Callable[[Stage], None], name: str, root: Path) -> argparse.Namespace:
    section = explain_section(root / "params.yaml", name)
    parser = argparse.ArgumentParser(
        prog=f"python -m tasks.{name}",
        description=sys.modules[main.__module__].__doc__,
        epilog=f"Its settings in params.yaml:\n\n{section}" if section else "params.yaml has no section of this name.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--instance", help="which of the stage's instances, where dvc.yaml declares several (evaluate@INSTANCE)"
    )
    return parser.parse_args()


def stop_on_signal(signum: int, frame: Any) -> None:
    """SIGTERM's handler: ends the process through every `finally`."""
    sys.exit(TERMINATED)


def _whole(value: Any, name: str, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"params.yaml: {name} is {value!r}; it must be a whole number of at least {least}")
    return value


def _tags(root: Path, params: dict[str, Any], name: str, instance: str | None) -> dict[str, str]:
    try:
        dvc = version("dvc")
    except PackageNotFoundError:
        dvc = ""
    return {
        "unmask.stage": name,
        "unmask.instance": instance or "",
        "unmask.preset": str(params.get("preset", "")),
        "unmask.git": _commit(root),
        "unmask.dvc": dvc,
    }


def _commit(root: Path) -> str:
    """The commit, with "+changed" when tracked files differ from it; empty outside a repository and before its first commit."""
    command = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    first, *others = done.stdout.splitlines()  # "# branch.oid COMMIT"
    commit = first.split()[-1]
    changed = any(not line.startswith("#") for line in others)
    return "" if commit == "(initial)" else commit + ("+changed" if changed else "")


def _bound_leftovers(folder: Path) -> None:
    """Keeps the newest LEFTOVERS unfinished keys of a stage."""
    leftovers = sorted(folder.iterdir(), key=lambda work: work.stat().st_mtime, reverse=True)
    for work in leftovers[LEFTOVERS:]:
        shutil.rmtree(work, ignore_errors=True)
    if not leftovers:
        folder.rmdir()
