"""New data in, a judged challenger out: python -m flows.retrain (what `make retrain` calls), or the deployment `retrain`.

Looks for news and stops when there are none. Otherwise: validate, measure drift, run what is out of date, judge the challengers
against the champions, promote those that pass. A champion is never touched before the last step.
"""

import sys

if __name__ == "__main__":  # prepares the process first: Prefect reads its environment while it is imported
    from flows.operate import retrain_command

    sys.exit(retrain_command())

import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Completed, Failed, State

from flows.checkout import uncommitted
from flows.dvc_graph import read_graph
from flows.news import News, look
from flows.pipeline import pipeline
from flows.programs import run_program, show_decisions, show_drift, show_stop, why
from flows.slots import Slots, threads_of
from flows.stage_process import StageProcesses
from flows.stage_task import run_stage
from flows.start import alone
from tasks.promotion import decisions

LOOKED = ".work/retrain-looked"  # the run that looked last, and, as the file's time, when
GUARD_STAGE = "validate"  # what it refuses goes no further
NOTHING_NEW = "nothing is new: no new data, every stage is up to date, every challenger has been judged"


@flow(name="retrain", persist_result=False, log_prints=False)
def retrain(max_parallel: int = 2, found: dict[str, Any] | None = None) -> State[Any]:
    """Retrains and judges if there is reason to; `found` is what flows.news.look found just before, else it looks itself."""
    root = Path.cwd()
    with ExitStack() as held:
        try:
            held.enter_context(alone(root))
        except ValueError as error:
            return Cancelled(message=str(error))
        if covered := _covered(root, str(flow_run.id), flow_run.scheduled_start_time.timestamp()):
            return Completed(message=covered)
        processes = StageProcesses(root)
        try:
            news = News(**found) if found else look(root, processes, get_run_logger().info)
            return _retrain(root, processes, news, max_parallel)
        except BaseException:  # a cancellation arrives here, in the main thread
            processes.stop()
            raise


def _covered(root: Path, run: str, due: float) -> str:
    """Why a run that was due then need not look: a later one has looked already. Notes that this one looks, otherwise.

    After a time without a server every missed tick comes late and at once; the first of them does the work of all. A run that was
    killed and begins again is not covered by itself.
    """
    note, now = root / LOOKED, time.time()
    looked = note.stat().st_mtime if note.is_file() else 0.0
    if due <= looked <= now and note.read_text() != run:  # a note from the future is a clock that was set back
        return f"the retrain that looked at {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(looked))} did this one's work"
    note.write_text(run)
    return ""


def _retrain(root: Path, processes: StageProcesses, news: News, max_parallel: int) -> State[Any]:
    if news.failed:
        return _stopped(root, news.failed)
    if not news.is_any:
        get_run_logger().info(NOTHING_NEW)
        return Completed(message=NOTHING_NEW)
    if news.stale:
        if GUARD_STAGE in read_graph(root):
            validated = run_stage.with_options(name=GUARD_STAGE, task_run_name=GUARD_STAGE)(
                GUARD_STAGE, processes, Slots(max_parallel), threads_of(root, GUARD_STAGE), return_state=True
            )
            if not validated.is_completed():
                return _stopped(root, f"{why(validated)}; see data/reports/validation/index.html")
        drift = _named("drift")("drift", processes, return_state=True)
        if not drift.is_completed():
            return _stopped(root, f"drift could not be measured: {why(drift)}")
        show_drift(drift.result())
        trained = pipeline(
            max_parallel=max_parallel, already=news.already, on_workers=_may_spread(root), return_state=True
        )
        if not trained.is_completed():
            return _stopped(root, f"training: {trained.message}")
    judged = _named("promote")("promote", processes, return_state=True)
    if not judged.is_completed():
        return _stopped(root, f"the challengers could not be judged: {why(judged)}")
    return Completed(message=show_decisions(judged.result()) or "no challenger was waiting")


def _may_spread(root: Path) -> bool:
    """True for a run of the deployment: its stages go to the queues, unless only this clone has the code as it is."""
    if deployment.id is None:
        return False
    changed = [file for file in uncommitted(root) if file != "params.yaml" and not file.startswith("data/")]
    if changed:
        get_run_logger().warning("not committed, so every stage runs in this clone: %s", ", ".join(changed))
    return not changed


def _named(name: str) -> Any:
    return run_program.with_options(name=name, task_run_name=name)


def _stopped(root: Path, reason: str) -> State[Any]:
    """The end of a retrain that reached no judgement: on record, red on the page, champions as they were."""
    get_run_logger().error("stopped, champions as they were: %s", reason)
    show_stop(reason)
    decisions.append(root, {"action": decisions.STOPPED, "reasons": [reason]})
    return Failed(message=f"stopped, champions as they were: {reason}")


def as_parameter(news: News) -> dict[str, Any]:
    """News in the form in which a flow takes them."""
    return asdict(news)
