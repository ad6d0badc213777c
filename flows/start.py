"""Prepares a process for the flow and runs it: one run per checkout, Prefect kept inside the checkout, no server needed.

When one status query says that nothing has changed, only the stages that look at the world outside are run (is there
new data? is everything registered?), and Prefect is not started unless they find something to do.
"""

import argparse
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flows import forks
from flows.dvc_graph import Node, changed_stages, read_graph, recorded_outs
from flows.server import prefect_server, running
from flows.stage_process import StageProcesses
from tasks.environment import quiet
from tasks.parameters import check_sections, load_params

TABLE = "data/reports/table.txt"
DELIVERY_SECONDS = 15
_HELD: set[Path] = set()  # run locks of this process


def main() -> int:
    """0 when everything is up to date, 1 when a stage failed, 2 for wrong use, 130 or 143 when stopped."""
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description="Runs whatever is not up to date.")
    parser.add_argument("--max-parallel", type=int, default=2, help="stages that may run side by side (default 2)")
    arguments = parser.parse_args()

    def work(root: Path) -> int:
        check_parallel(arguments.max_parallel)
        check_params(root)
        with alone(root):
            prepare(root)
            return _run(root, arguments.max_parallel)

    return run_command("pipeline", work)


def run_command(name: str, work: Callable[[Path], int]) -> int:
    """What `work` returns in the checkout that is the current folder; 2 and one sentence for what a person can mend (wrong use, a
    file that DVC cannot read, a folder that cannot be written, a server that does not answer), 130 after Ctrl-C."""
    try:
        return work(root_of_repository())
    except (ValueError, OSError, *_refusals()) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def root_of_repository() -> Path:
    """The current folder; ValueError when that is another one."""
    if not Path("dvc.yaml").is_file():
        raise ValueError(f"there is no dvc.yaml in {Path.cwd()}: run from the root of the repository")
    return Path.cwd()


def _refusals() -> list[type[Exception]]:
    """What DVC and MLflow say no with; they are loaded already where one of them has."""
    known = (
        ("dvc.exceptions", "DvcException"),
        ("scmrepo.exceptions", "SCMError"),
        ("mlflow.exceptions", "MlflowException"),
    )
    return [getattr(sys.modules[module], name) for module, name in known if module in sys.modules]


def check_params(root: Path) -> None:
    """ValueError for a params.yaml that is not there, or names a section that nothing reads: before anything is started."""
    check_sections(load_params(root / "params.yaml"), root / "dvc.yaml")


def check_parallel(number: int) -> None:
    """ValueError unless at least one may run."""
    if number < 1:
        raise ValueError(f"--max-parallel is {number}; it must be at least 1")


def prepare(root: Path) -> None:
    """Sets what Prefect reads while it is imported: its home inside the checkout, quiet, patient, the servers of `make up`."""
    quiet()
    for name, value in running(root).items():
        os.environ.setdefault(name, value)
    for name, value in {
        "PREFECT_HOME": str(root / ".prefect"),
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_LOGGERS_PREFECT_FLOW_RUNS_LEVEL": "INFO",
        "PREFECT_LOGGING_LOGGERS_PREFECT_TASK_RUNS_LEVEL": "INFO",
    }.items():
        os.environ.setdefault(name, value)


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Holds this checkout's run lock; ValueError that names the holder when another run has it.

    A process that holds it may ask again: a flow that runs inside another one, or inside a command.
    """
    file = (root / ".work" / "pipeline.lock").resolve()
    if file in _HELD:
        yield
        return
    file.parent.mkdir(exist_ok=True)
    with file.open("a+", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it however the holder ends
        except OSError:
            stream.seek(0)
            holder = stream.read().strip()
            raise ValueError(f"a run is under way in this checkout ({holder}). Wait for it, or stop it") from None
        stream.truncate(0)
        stream.write(f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        stream.flush()
        _HELD.add(file)
        try:
            yield
        finally:
            _HELD.discard(file)


def _run(root: Path, max_parallel: int) -> int:
    graph = read_graph(root)
    already: dict[str, list[str]] = {}
    if not changed_stages(root):
        print(f"pipeline: all {len(graph)} stages are up to date; looking for new data", flush=True)
        with forks.serving(root, forks.LOOKING):
            settled, already = _look(root, graph)
        if settled:
            _show_table(root)
            print(f"\npipeline: nothing has changed, all {len(graph)} stages are up to date")
            return 0
    with forks.serving(root), prefect_server(root):
        from flows.pipeline import pipeline

        try:
            state = pipeline(max_parallel=max_parallel, already=already, return_state=True)
        finally:
            deliver()
    if state.is_completed():
        _show_table(root)
    print(f"\npipeline: {state.message or state.name}")
    return 0 if state.is_completed() else 1


def deliver() -> None:
    """Prefect sends log lines and events in batches from threads: its server must not end before the last of them."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogHandler

    APILogHandler().flush()
    EventsWorker.drain_all(timeout=DELIVERY_SECONDS)


def _look(root: Path, graph: dict[str, Node]) -> tuple[bool, dict[str, list[str]]]:
    """Runs the stages that always run: (True, _) when they changed nothing, else what the first of them printed."""
    processes = StageProcesses(root)
    already: dict[str, list[str]] = {}
    try:
        for name in (name for name, node in graph.items() if node.always):
            before = recorded_outs(root, name)
            outcome = processes.run(name, lambda line: print(line, flush=True))
            if outcome.status == "failed":
                return False, already  # the flow tries again where that can help, and records the failure
            if not graph[name].upstream:
                already[name] = outcome.lines
            if recorded_outs(root, name) != before:
                return False, already
    except BaseException:
        processes.stop()
        raise
    return True, already


def _show_table(root: Path) -> None:
    table = root / TABLE
    if table.is_file():
        print(f"\n{table.read_text(encoding='utf-8').rstrip()}")
