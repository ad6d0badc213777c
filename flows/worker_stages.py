"""Stages as runs of the deployments stage/cpu and stage/gpu: whichever worker listens to the queue does the work."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.deployments import run_deployment
from prefect.states import Cancelling
from prefect.types._datetime import now

from flows.checkout import hand_over, receive
from flows.dvc_graph import Node
from flows.slots import needs_gpu
from flows.stage_process import DVC, Outcome, StageProcesses
from flows.stage_program import has_remote

CHECKOUT = "retrain"  # where workers run the stages of a checkout that is no preset's
STARTS = 4  # of a stage whose worker died
POLL_SECONDS = 0.5


class WorkerStages:
    """Runs stages on workers for a pipeline in `checkout`, which takes over what they hand back.

    The workers run them in their own checkouts `name`, at `commit` and with `settings` as params.yaml. A pipeline run (or
    retrain) that is started again finds the stage runs it had begun: nothing runs twice.
    """

    def __init__(
        self, checkout: Path, name: str, commit: str, settings: str, graph: dict[str, Node], pipeline_run: str
    ):
        self.checkout, self.name, self.commit, self.settings = checkout, name, commit, settings
        self.graph, self.pipeline_run = graph, pipeline_run
        self.began = now("UTC")
        self.taken_over: set[str] = set()
        self._live: set[Any] = set()
        self._lock = threading.Lock()

    def run(self, stage: str, on_line: Callable[[str], None]) -> Outcome:
        """Submits a stage, waits for its end and takes over what it hands over; a run whose worker died is submitted again."""
        parameters = {
            "name": stage,
            "checkout": self.name,
            "commit": self.commit,
            "settings": self.settings,
            "upstream": list(self.graph[stage].upstream),
            "known": hand_over(self.checkout, self._before(stage)),
        }
        deployment = f"stage/{'gpu' if needs_gpu(self.checkout, stage) else 'cpu'}"
        number = starts = 0
        while True:
            number += 1
            run = run_deployment(
                deployment,
                parameters=parameters,
                flow_run_name=stage,
                idempotency_key=f"{self.pipeline_run}/{stage}/{number}",
                timeout=0,
            )
            on_line(f"{stage}: run {run.name} ({run.id}) of {deployment}")
            run = self._wait(run)
            if run.end_time and run.end_time < self.began:
                continue  # this pipeline run's earlier life saw it fail
            starts += 1
            if not run.state.is_crashed() or starts == STARTS:
                return self._take_over(stage, run)
            on_line(f"{stage}: {run.state.message or 'its worker died'}; submitted again")

    def stop(self) -> None:
        """Cancels what is under way, when this pipeline run itself is being cancelled; else leaves it for the next start."""
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(self.pipeline_run).state
            if state is None or not (state.is_cancelling() or state.is_cancelled()):
                return
            for run in list(self._live):
                client.set_flow_run_state(run, Cancelling())

    def _before(self, stage: str) -> set[str]:
        found, waiting = {stage}, [stage]
        for each in waiting:
            waiting += [other for other in self.graph[each].upstream if other not in found]
            found |= set(self.graph[each].upstream)
        return found

    def _wait(self, run: Any) -> Any:
        with self._lock:
            self._live.add(run.id)
        try:
            with get_client(sync_client=True) as client:
                pause = threading.Event()
                while not (run.state and run.state.is_final()):
                    pause.wait(POLL_SECONDS)
                    run = client.read_flow_run(run.id)
                return run
        finally:
            with self._lock:
                self._live.discard(run.id)

    def _take_over(self, stage: str, run: Any) -> Outcome:
        with get_client(sync_client=True) as client:
            found = client.read_artifacts(
                artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
            )
        reports = [json.loads(each.data) for each in found if each.type == "markdown"]
        if not reports:
            return Outcome("failed", 0.0, f"{run.state.name.lower()}: {run.state.message or 'no reason given'}")
        if run.state.is_completed():
            receive(self.checkout, **reports[-1]["made"])
            self.taken_over.add(stage)
        return Outcome(**reports[-1]["outcome"])


def share(root: Path, stages: list[str]) -> None:
    """Pushes what these stages have made here to the DVC remote, where there is one; ValueError when it cannot be reached."""
    if stages and has_remote(root):
        _dvc(root, "push", "--run-cache", *stages)


def bring_home(root: Path, stages: list[str]) -> None:
    """Puts here what workers have made, as dvc.lock has it now: out of the remote, or of the clone's own cache."""
    if stages:
        _dvc(root, "pull" if has_remote(root) else "checkout", *stages)


def _dvc(root: Path, *arguments: str) -> None:
    outcome = StageProcesses(root).run_command([*DVC, *arguments], get_run_logger().info)
    if outcome.status == "failed":
        raise ValueError(f"dvc {arguments[0]}: {outcome.reason}: {' '.join(outcome.lines[-3:])}")
