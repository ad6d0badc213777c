"""A stage's run in MLflow where it is installed, else in a plain file.

A run belongs to a key (the hash of command, inputs and parameters): a stage that was killed goes on with the run it had begun,
and no point of a curve is doubled. What the store cannot take now waits on disk (spool.py).
"""

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from model.training.file_tracker import FileTracker
from model.training.spool import Spool, left_over
from model.training.tracker import RunIdentity, Tracker, flatten
from model.training.tracking import KEY_TAG, Unreachable, open_store, reaching, records_in_mlflow

PARENT_TAG = "mlflow.parentRunId"
FLUSH_SECONDS, LONGEST_PAUSE_SECONDS = 10.0, 120.0
LARGEST_COPY_BYTES = 256 * 2**20


def open_tracker(root: Path, identity: RunIdentity) -> Tracker:
    """An MLflow run, new or continued, or the same calls into a file."""
    if not records_in_mlflow():
        return FileTracker(root / ".work" / "tracking" / identity.name / identity.key, identity)
    tracker = MlflowTracker(root, identity)
    deliver_left_over(root)
    return tracker


class MlflowTracker(Tracker):
    """One MLflow run. Every record is on disk before it is sent; a store that is away delays records, loses and doubles none."""

    def __init__(self, root: Path, identity: RunIdentity):
        self.root, self.identity = root, identity
        self._spool = Spool(root, identity)
        self._run: str | None = None
        self._known_params: set[str] = set()
        self._last_step: dict[str, int] = {}  # that was recorded here or found in the store
        self._pause, self._next_try = FLUSH_SECONDS, 0.0
        self._warned = False
        self.flush()

    @property
    def run(self) -> str:
        """The run's id; Unreachable while the store is away and it has none yet."""
        if self._run is None:
            with reaching():
                self._find_run()
        assert self._run is not None
        return self._run

    @property
    def location(self) -> str:
        if self._run is None:
            return f"MLflow cannot be reached; records wait in {self._spool.folder}"
        return f"MLflow run {self._run}"

    def _find_run(self) -> None:
        """The run of this key that was not finished, or a new one, and what it has already."""
        from mlflow.entities import ViewType

        client, experiment = open_store(self.root)
        identity = self.identity
        same = f"tags.`{KEY_TAG}` = '{identity.key}' and attributes.run_name = '{identity.name}'"
        query = f"{same} and attributes.status != 'FINISHED'"
        if self._spool.run:
            begun = [client.get_run(self._spool.run)]
        else:
            begun = client.search_runs([experiment], query, ViewType.ACTIVE_ONLY, 1, ["attributes.start_time DESC"])
        tags = identity.tags | {KEY_TAG: identity.key}
        if identity.parent_run:
            tags[PARENT_TAG] = identity.parent_run
        if begun:
            found = begun[0]
            client.update_run(found.info.run_id, status="RUNNING")
            self._tag(client, found.info.run_id, tags)
        else:
            found = client.create_run(experiment, start_time=self._spool.began, run_name=identity.name, tags=tags)
        self.client, run = client, found.info.run_id
        self._known_params = set(found.data.params)
        recorded = {
            name: max(point.step for point in client.get_metric_history(run, name)) for name in found.data.metrics
        }
        for record in self._spool.waiting:  # a part of them may have arrived before the store went away
            metrics = record.get("metrics", {})
            record["metrics"] = {
                name: value for name, value in metrics.items() if record["step"] > recorded.get(name, -1)
            }
        for record in self._spool.waiting:
            recorded |= dict.fromkeys(record["metrics"], record.get("step", 0))
        self._last_step |= {name: max(step, self._last_step.get(name, -1)) for name, step in recorded.items()}
        self._spool.settle(run)
        self._run = run

    def log_params(self, params: dict[str, Any]) -> None:
        self._spool.add(params={name: str(value)[:6000] for name, value in flatten(params).items()})
        self.flush()

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        fresh = {name: float(value) for name, value in metrics.items() if step > self._last_step.get(name, -1)}
        if fresh:
            self._last_step |= dict.fromkeys(fresh, step)
            self._spool.add(metrics=fresh, step=step, time=int(time.time() * 1000))
        if time.monotonic() > self._next_try:
            self.flush()

    def flush(self) -> None:
        """Sends what waits, unless the store was away a moment ago. Hours of training are worth more than a curve."""
        if time.monotonic() < self._next_try and self._pause > FLUSH_SECONDS:
            return
        try:
            with reaching():
                self._deliver()
            self._pause, self._warned = FLUSH_SECONDS, False
        except Unreachable as error:
            self._run = None  # found again, with what has arrived, when the store is back
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
            if not self._warned:
                print(f"tracking: MLflow cannot be reached, records wait on disk: {error}", file=sys.stderr, flush=True)
            self._warned = True
        self._next_try = time.monotonic() + self._pause

    def _deliver(self) -> None:
        from mlflow.entities import Metric

        if self._run is None:
            self._find_run()
        points: list[Any] = []
        for record in self._spool.waiting:
            points += [
                Metric(name, value, record["time"], record["step"]) for name, value in record.get("metrics", {}).items()
            ]
        for start in range(0, len(points), 1000):  # the most that one request may carry
            self.client.log_batch(self.run, metrics=points[start : start + 1000])
        for record in self._spool.waiting:
            record.pop("metrics", None)
            self._send(record)
        self._spool.clear()

    def _send(self, record: dict[str, Any]) -> None:
        from mlflow.entities import Param

        fresh = {name: value for name, value in record.get("params", {}).items() if name not in self._known_params}
        entries = [Param(name, value) for name, value in fresh.items()]
        for start in range(0, len(entries), 100):  # the most that one request may carry
            self.client.log_batch(self.run, params=entries[start : start + 100])
        self._known_params |= set(fresh)
        if "tags" in record:
            self._tag(self.client, self.run, record["tags"])
        if "artifact" in record:
            path, folder = Path(record["artifact"]), record["folder"]
            if path.is_dir():
                self.client.log_artifacts(self.run, str(path), folder)
            elif path.exists():
                self.client.log_artifact(self.run, str(path), folder)
        if "status" in record:
            self.client.set_terminated(self.run, record["status"], end_time=record["time"])

    def _log_files(self, path: Path, folder: str | None) -> None:
        self.flush()
        if self._run is None:
            path = self._spool.keep_copy(path)
        self._spool.add(artifact=str(path), folder=folder)
        self.flush()

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        path = Path(path)
        self._log_files(path, "/".join(filter(None, [folder, path.name])) if path.is_dir() else folder)

    def log_checkpoint(self, folder: Path) -> None:
        """The folder as artifact `checkpoint`, or, when it is large, only where it lies: DVC keeps its contents already."""
        if sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) <= LARGEST_COPY_BYTES:
            self._log_files(Path(folder), "checkpoint")
            return
        pointer = self._spool.folder / "pointer.json"
        pointer.write_text(json.dumps({"path": str(folder), "kept_by": "dvc"}), encoding="utf-8")
        self._log_files(pointer, "checkpoint")

    def log_figure(self, figure: Any, name: str) -> None:
        file = self._spool.folder / Path(name).name
        figure.savefig(file)
        self._log_files(file, str(Path(name).parent) if Path(name).parent != Path() else None)

    def set_tags(self, tags: dict[str, str]) -> None:
        self._spool.add(tags={name: str(value) for name, value in tags.items()})
        self.flush()

    @staticmethod
    def _tag(client: Any, run: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        client.log_batch(run, tags=[RunTag(name, str(value)) for name, value in tags.items()])

    def close(self, status: str = "FINISHED") -> None:
        """Delivers what waits; what the store does not take is delivered by the next stage that reaches it."""
        self._spool.add(status=status, time=int(time.time() * 1000))
        for wait in (0, 1, 3):
            time.sleep(wait)
            self._next_try = 0.0
            self.flush()
            if not self._spool.waiting:
                break
        self._spool.close()


def deliver_left_over(root: Path) -> None:
    """Sends what earlier processes could not; a run whose stage is at work is left to it."""
    for identity in left_over(root):
        with suppress(BlockingIOError):
            tracker = MlflowTracker(root, identity)
            tracker._spool.close()
            if tracker._run is None:
                return
