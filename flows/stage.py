"""One stage on a worker, as the deployments stage/cpu and stage/gpu run it for the flows `pipeline` and `retrain`.

What it reads comes from this clone's DVC cache or else through the DVC remote; what it makes is pushed there, when there is one.
What the pipeline must know of it (dvc.lock's entry, the end) goes back as an artifact of this run: no disk is shared. DVC itself
is only loaded by the one process that does the work (flows/stage_program.py).
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed, Failed, State

from flows.checkout import prepare_checkout
from flows.slots import Slots, needs_gpu
from flows.stage_process import Outcome, StageProcesses, stage_program
from flows.stage_task import StageFailed, run_stage
from model.atomic import write_atomically


@flow(name="stage", flow_run_name="{name}", persist_result=False)
def stage(
    name: str,
    checkout: str,
    commit: str,
    settings: str,
    upstream: list[str] | None = None,
    known: dict[str, Any] | None = None,
) -> State[Any]:
    """Runs one stage in this clone's `checkout` with `settings` as params.yaml. `known`: what earlier stages have handed over."""
    root = prepare_checkout(Path.cwd(), checkout, commit, settings)
    processes = WorkersStage(root, upstream or [], known or {})
    if not needs_gpu(root, name):
        processes.environment = {"CUDA_VISIBLE_DEVICES": ""}  # it is not its turn to have one
    try:
        outcome = run_stage.with_options(name=name, task_run_name=name)(name, processes, Slots(1), 1)
    except StageFailed as error:
        outcome = error.outcome
    except BaseException:
        processes.stop()
        raise
    report = {"outcome": asdict(outcome) | {"lines": []}, "made": processes.made}
    create_markdown_artifact(markdown=json.dumps(report), description=f"What {name} hands over to the pipeline")
    return Failed(message=outcome.reason) if outcome.status == "failed" else Completed(message=outcome.status)


class WorkersStage(StageProcesses):
    """Fetches, runs and pushes a stage in one process; `made` is then what it hands over."""

    def __init__(self, root: Path, upstream: list[str], known: dict[str, Any]):
        super().__init__(root)
        self.upstream, self.known = upstream, known
        self.made: dict[str, Any] = {}

    def run(self, stage: str, on_line: Callable[[str], None]) -> Outcome:
        """Runs it to its end, handing over each line it prints."""
        folder = self.root / ".work" / "handover" / stage
        given, made = folder / "given.json", folder / "made.json"
        made.unlink(missing_ok=True)
        write_atomically(given, json.dumps({"known": self.known, "upstream": self.upstream}))
        with self.turn(stage):
            outcome = self.run_command(stage_program(stage, str(folder)), on_line)
        if outcome.status != "failed":
            self.made = json.loads(made.read_text(encoding="utf-8"))
        return outcome
