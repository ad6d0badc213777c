"""One stage on a worker, as the deployments stage/cpu and stage/gpu run it for the flow `pipeline`.

What it reads comes from this clone's DVC cache or else through the DVC remote; what it makes is pushed there, when there is one.
What the pipeline must know of it (dvc.lock's entry, the end) goes back as an artifact of this run: no disk is shared.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed, Failed, State

from flows.checkout import hand_over, prepare_checkout, receive
from flows.slots import Slots, needs_gpu
from flows.stage_process import Outcome, StageProcesses
from flows.stage_task import StageFailed, run_stage

PUSH_PAUSES_SECONDS = (1.0, 5.0, 25.0)
NOT_PUSHED = (
    "its result is made and kept in this clone ({clone}), but the DVC remote cannot be reached. When it can, run the pipeline "
    "again: nothing is computed twice. {words}"
)
NOT_HERE = "it needs the results of {names}, which this clone does not have and the DVC remote does not give. {words}"
NO_REMOTE = "Name a remote that all workers reach: dvc remote add --default NAME URL (docs/operations.md)"


@flow(name="stage", flow_run_name="{name}", persist_result=False)
def stage(
    name: str,
    preset: str,
    commit: str,
    overrides: dict[str, Any] | None = None,
    upstream: list[str] | None = None,
    known: dict[str, Any] | None = None,
) -> State[Any]:
    """Runs one stage in this clone's checkout of the preset. `known`: what `upstream` and earlier stages have handed over."""
    clone, logger = Path.cwd(), get_run_logger()
    checkout = prepare_checkout(clone, preset, overrides or {}, commit)
    receive(checkout, **(known or {"entries": {}, "files": {}, "note": ""}))
    processes = StageProcesses(checkout)
    try:
        outcome = _fetch(processes, upstream or [], logger.info)
        if outcome is None:
            outcome = _run(name, processes)
        if outcome.status != "failed" and has_remote(checkout):
            outcome = _push(name, processes, outcome, logger)
    except BaseException:
        processes.stop()
        raise
    made = {} if outcome.status == "failed" else hand_over(checkout, {name})
    report = {"outcome": asdict(outcome) | {"lines": []}, "made": made}
    create_markdown_artifact(markdown=json.dumps(report), description=f"What {name} hands over to the pipeline")
    return Failed(message=outcome.reason) if outcome.status == "failed" else Completed(message=outcome.status)


def _run(name: str, processes: StageProcesses) -> Outcome:
    if not needs_gpu(processes.root, name):
        processes.environment = {"CUDA_VISIBLE_DEVICES": ""}  # it is not its turn to have one
    try:
        return run_stage.with_options(name=name, task_run_name=name)(name, processes, Slots(1), 1)
    except StageFailed as error:
        return error.outcome


def _fetch(processes: StageProcesses, upstream: list[str], say: Any) -> Outcome | None:
    """Brings what the stage reads into the checkout; an outcome only where that was not possible."""
    remote = has_remote(processes.root)
    if remote:
        pulled = processes.dvc(["pull", "--run-cache", *(upstream or [])], say) if upstream else None
        if pulled is None or pulled.status != "failed":
            processes.options = ("--pull",)
            return None
    missing = absent(processes.root, upstream)
    if not missing:
        return None
    words = complaint(pulled) if remote and pulled else NO_REMOTE
    return Outcome("failed", 0.0, NOT_HERE.format(names=", ".join(missing), words=words))


def absent(checkout: Path, stages: list[str]) -> list[str]:
    """Those whose outs are not in the checkout as dvc.lock has them."""
    from dvc.repo import Repo

    with Repo(str(checkout), _wait_for_lock=True) as repo, repo.lock:
        chosen = (each for each in repo.index.stages if each.name in stages)
        return [each.name for each in chosen if any(out.status() for out in each.outs)]


def has_remote(checkout: Path) -> bool:
    """True when DVC knows a default remote."""
    from dvc.config import Config

    return bool(Config(str(checkout / ".dvc"))["core"].get("remote"))


def _push(name: str, processes: StageProcesses, outcome: Outcome, logger: Any) -> Outcome:
    for pause in (*PUSH_PAUSES_SECONDS, None):
        pushed = processes.dvc(["push", "--run-cache", name], logger.debug)
        if pushed.status != "failed":
            return outcome
        if pause is None or processes.stopped.wait(pause):
            break
        logger.warning("the DVC remote cannot be reached; trying again in %.0f s", pause)
    return Outcome("failed", outcome.seconds, NOT_PUSHED.format(clone=processes.root, words=complaint(pushed)))


def complaint(outcome: Outcome) -> str:
    """What DVC said was wrong; its last line only says where to ask for help."""
    return next((line for line in reversed(outcome.lines) if line.startswith("ERROR:")), "")
