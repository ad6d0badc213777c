"""Puts the champion before this one back: python -m flows.rollback (what `make rollback` calls), or the deployment.

It waits for nobody: a rollback may not have to wait for a training run. `python -m tasks.rollback` does the same without Prefect.
"""

import sys

if __name__ == "__main__":
    from flows.operate import rollback_command

    sys.exit(rollback_command())

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.states import Completed, Failed, State

from flows.programs import run_program, show_decisions, why
from flows.stage_process import StageProcesses


@flow(name="rollback", persist_result=False, log_prints=False)
def rollback(model: str = "unmask-target", reason: str = "") -> State[Any]:
    """Moves the champion of `model`, and its draft, back by one; fails where no champion was replaced."""
    arguments = ["--model", model, *(["--reason", reason] if reason else [])]
    moved = run_program.with_options(task_run_name="rollback")(
        "rollback", StageProcesses(Path.cwd()), *arguments, return_state=True
    )
    if not moved.is_completed():
        return Failed(message=why(moved))
    return Completed(message=show_decisions(moved.result()))
