"""Judges challengers now, or promotes one by order: python -m flows.promote (what `make promote` calls), or the deployment."""

import sys

if __name__ == "__main__":
    from flows.operate import promote_command

    sys.exit(promote_command())

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.states import Cancelled, Completed, Failed, State

from flows.programs import run_program, show_decisions, why
from flows.stage_process import StageProcesses
from flows.start import alone


@flow(name="promote", persist_result=False, log_prints=False)
def promote(model: str | None = None, version: str | None = None, force: str | None = None) -> State[Any]:
    """Judges the challenger (or `version`) of `model`, or of all in retrain.models; `force`: a reason not to judge."""
    root = Path.cwd()
    asked = {"--model": model, "--version": version, "--force": force}
    arguments = [part for name, value in asked.items() if value for part in (name, value)]
    processes = StageProcesses(root)
    with ExitStack() as held:
        try:
            held.enter_context(alone(root))
        except ValueError as error:
            return Cancelled(message=str(error))
        try:
            judged = run_program.with_options(task_run_name="promote")(
                "promote", processes, *arguments, return_state=True
            )
        except BaseException:
            processes.stop()
            raise
    if not judged.is_completed():
        return Failed(message=why(judged))
    return Completed(message=show_decisions(judged.result()) or "the challenger is the champion already")
