"""The whole pipeline as a Prefect flow: python -m flows.pipeline (what `make run` calls).

The graph comes from DVC, and DVC decides what is up to date and keeps the results; Prefect orders, limits, retries and
shows. `dvc repro` does the same work without it.
"""

import sys

if __name__ == "__main__":  # prepares the process first: Prefect reads its environment while it is imported
    from flows.start import main

    sys.exit(main())

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed, State
from prefect.task_runners import ThreadPoolTaskRunner

from flows.dvc_graph import changed_stages, descendants, read_graph, stages_to_run
from flows.slots import Slots, threads_of
from flows.stage_process import Outcome, StageProcesses

RETRIES = 2
RETRY_DELAY_SECONDS = 5


class StageFailed(RuntimeError):
    """A stage ended badly; `outcome` says how and whether another try makes sense."""

    def __init__(self, name: str, outcome: Outcome):
        super().__init__(f"{name}: {outcome.reason}")
        self.outcome = outcome


def worth_retrying(_task: Any, _run: Any, state: State[Any]) -> bool:
    """True for failures that may pass by themselves (see flows.stage_process.judge)."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailed) and error.outcome.can_be_retried


@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY_SECONDS,
    retry_condition_fn=worth_retrying,
)
def run_stage(
    name: str,
    processes: StageProcesses,
    slots: Slots,
    threads: int,
    priority: int = 0,
    already: list[str] | None = None,
) -> Outcome:
    """One stage through DVC, when it is its turn; every line it prints is a line of this task's log.

    `already` are the lines of a stage that was run before the flow began.
    """
    logger = get_run_logger()
    if already is not None:
        for line in already:
            logger.info(line)
        return Outcome("ran", 0.0)
    with slots.take(threads, priority):
        outcome = processes.run(name, logger.info)
    if outcome.status == "failed":
        raise StageFailed(name, outcome)
    return outcome


@flow(name="pipeline", task_runner=ThreadPoolTaskRunner(max_workers=64), persist_result=False, log_prints=False)
def pipeline(max_parallel: int = 2, already: dict[str, list[str]] | None = None) -> State[Any]:
    """Brings every result up to date; independent stages run side by side while their threads together fit `max_parallel`.

    `already`: the printed lines, by name, of stages that were run just before.
    """
    root = Path.cwd()
    processes, slots = StageProcesses(root), Slots(max_parallel)
    graph = read_graph(root)
    futures: dict[str, PrefectFuture[Any]] = {}

    def submit(name: str) -> None:
        upstream = [futures[other] for other in graph[name].upstream if other in futures]
        named = run_stage.with_options(name=name, task_run_name=name)
        futures[name] = named.submit(
            name,
            processes,
            slots,
            threads_of(root, name),
            len(descendants(graph, name)),
            (already or {}).get(name),
            wait_for=upstream,
        )

    try:
        for name in (name for name, node in graph.items() if node.always and not node.upstream):
            submit(name)
            futures[name].wait()
        if all(future.state.is_completed() for future in futures.values()):
            for name in stages_to_run(graph, changed_stages(root)):
                if name not in futures:
                    submit(name)
        for future in futures.values():
            future.wait()
    except BaseException:  # a cancellation arrives here, in the main thread, as SystemExit or KeyboardInterrupt
        processes.stop()
        raise
    rows = [_row(name, futures.get(name)) for name in graph]
    create_table_artifact(key="stages", table=rows, description="What each stage did in this run")
    failed = [row for row in rows if row["status"] == "failed"]
    if failed:
        return Failed(message="; ".join(f"{row['stage']}: {row['reason']}" for row in failed))
    return Completed(message=f"{sum(row['status'] == 'ran' for row in rows)} of {len(rows)} stages ran")


def _row(name: str, future: PrefectFuture[Any] | None) -> dict[str, Any]:
    if future is None:
        return {"stage": name, "status": "unchanged", "seconds": 0.0, "reason": ""}
    result = future.state.result(raise_on_failure=False) if future.state.is_final() else None
    outcome = result.outcome if isinstance(result, StageFailed) else result
    if not isinstance(outcome, Outcome):
        return {"stage": name, "status": "not run", "seconds": 0.0, "reason": "something it needs failed"}
    return {"stage": name, "status": outcome.status, "seconds": round(outcome.seconds, 1), "reason": outcome.reason}
