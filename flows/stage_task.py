"""A stage as a Prefect task: waits for its turn, runs, is tried again where that can help."""

from functools import partial
from typing import Any, Protocol

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import State

from flows.slots import Slots
from flows.stage_process import Outcome

RETRIES = 2
RETRY_DELAY_SECONDS = 5


class Stages(Protocol):
    """Whoever can run a stage by name: as a process here, or on a worker."""

    def run(self, stage: str, on_line: Any) -> Outcome: ...
    def stop(self) -> None: ...


class StageFailed(RuntimeError):
    """A stage ended badly; `outcome` says how and whether another try makes sense."""

    def __init__(self, name: str, outcome: Outcome):
        super().__init__(f"{name}: {outcome.reason}")
        self.outcome = outcome


def worth_retrying(_task: Any, _run: Any, state: State[Any]) -> bool:
    """True for failures that may pass by themselves (see flows.stage_process.judge)."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailed) and error.outcome.can_be_retried


# DVC keeps results; what may pass by itself is tried again.
retried_task = partial(
    task,
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY_SECONDS,
    retry_condition_fn=worth_retrying,
)


@retried_task
def run_stage(
    name: str,
    stages: Stages,
    slots: Slots,
    threads: int,
    priority: int = 0,
    already: list[str] | None = None,
) -> Outcome:
    """One stage, when it is its turn; every line it prints is a line of this task's log.

    `already` are the lines of a stage that was run before the flow began.
    """
    logger = get_run_logger()
    if already is not None:
        for line in already:
            logger.info(line)
        return Outcome("ran", 0.0)
    with slots.take(threads, priority):
        outcome = stages.run(name, logger.info)
    if outcome.status == "failed":
        raise StageFailed(name, outcome)
    return outcome
