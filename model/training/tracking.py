"""Recording what a stage did: parameters, curves and files, in MLflow where it is installed, else in a plain file.

The MLflow store is <root>/mlruns/mlflow.db (SQLite) with artifacts beside it. A run belongs to a key (the hash of command,
inputs and parameters): a stage that was killed goes on with the run it had begun, and no point of a curve is doubled.
"""

import fcntl
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from model.training.file_tracker import FileTracker, RunIdentity, flatten

EXPERIMENT = "unmask"
KEY_TAG = "unmask.key"
PARENT_TAG = "mlflow.parentRunId"
BUFFERED_METRICS = 200
FLUSH_SECONDS = 10.0
LARGEST_COPY_BYTES = 256 * 2**20


class Tracker(Protocol):
    """What a stage may record. `step` of a metric never falls within one key of a run; points already recorded are skipped."""

    location: str

    def log_params(self, params: dict[str, Any]) -> None: ...
    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None: ...
    def log_artifact(self, path: Path, folder: str | None = None) -> None: ...
    def log_checkpoint(self, folder: Path) -> None: ...
    def log_figure(self, figure: Any, name: str) -> None: ...
    def set_tags(self, tags: dict[str, str]) -> None: ...
    def flush(self) -> None: ...
    def close(self, status: str = "FINISHED") -> None: ...


def open_tracker(root: Path, identity: RunIdentity) -> Tracker:
    """An MLflow run, new or continued, or the same calls into a file where MLflow is not installed."""
    if find_spec("mlflow") is None:
        return FileTracker(root / ".work" / "tracking" / identity.name / identity.key, identity)
    return MlflowTracker(root, identity)


class MlflowTracker:
    """One MLflow run. Points are sent in batches; a store that cannot be reached for a while delays them and loses none."""

    def __init__(self, root: Path, identity: RunIdentity):
        from mlflow.entities import ViewType

        self.client, self.experiment = open_store(root)
        same = f"tags.`{KEY_TAG}` = '{identity.key}' and attributes.run_name = '{identity.name}'"
        query = f"{same} and attributes.status != 'FINISHED'"
        begun = self.client.search_runs(
            [self.experiment], query, ViewType.ACTIVE_ONLY, 1, ["attributes.start_time DESC"]
        )
        tags = identity.tags | {KEY_TAG: identity.key}
        if identity.parent_run:
            tags[PARENT_TAG] = identity.parent_run
        if begun:
            self.run = begun[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
            self._tag(tags)
        else:
            self.run = self.client.create_run(self.experiment, run_name=identity.name, tags=tags).info.run_id
        self.location = f"MLflow run {self.run}"
        self._known_params = set(begun[0].data.params) if begun else set()
        self._last_step = {name: self._last_recorded(name) for name in (begun[0].data.metrics if begun else {})}
        self._buffer: list[Any] = []
        self._sent = time.monotonic()
        self._warned = False

    def _last_recorded(self, metric: str) -> int:
        return max(point.step for point in self.client.get_metric_history(self.run, metric))

    def log_params(self, params: dict[str, Any]) -> None:
        from mlflow.entities import Param

        fresh = {name: value for name, value in flatten(params).items() if name not in self._known_params}
        self._known_params |= set(fresh)
        entries = [Param(name, str(value)[:6000]) for name, value in fresh.items()]
        for start in range(0, len(entries), 100):  # the most that one request may carry
            self.client.log_batch(self.run, params=entries[start : start + 100])

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for name, value in metrics.items():
            if step > self._last_step.get(name, -1):
                self._last_step[name] = step
                self._buffer.append(Metric(name, float(value), now, step))
        if len(self._buffer) >= BUFFERED_METRICS or time.monotonic() - self._sent > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Sends what is buffered; call it before a checkpoint is written, so that a resumed curve has no hole."""
        self._sent = time.monotonic()
        try:
            while self._buffer:
                self.client.log_batch(self.run, metrics=self._buffer[:1000])
                del self._buffer[:1000]
        except Exception as error:  # hours of training are worth more than a curve: keep the points, try again later
            if not self._warned:
                print(f"tracking: MLflow cannot be reached, {len(self._buffer)} points wait: {error}", file=sys.stderr)
            self._warned = True

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        if Path(path).is_dir():
            self.client.log_artifacts(self.run, str(path), "/".join(filter(None, [folder, Path(path).name])))
        else:
            self.client.log_artifact(self.run, str(path), folder)

    def log_checkpoint(self, folder: Path) -> None:
        """The folder as artifact `checkpoint`, or, when it is large, only where it lies: DVC keeps its contents already."""
        if sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) <= LARGEST_COPY_BYTES:
            self.client.log_artifacts(self.run, str(folder), "checkpoint")
        else:
            self.client.log_dict(self.run, {"path": str(folder), "kept_by": "dvc"}, "checkpoint/pointer.json")

    def log_figure(self, figure: Any, name: str) -> None:
        self.client.log_figure(self.run, figure, name)

    def set_tags(self, tags: dict[str, str]) -> None:
        self._tag(tags)

    def _tag(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(self.run, tags=[RunTag(name, str(value)) for name, value in tags.items()])

    def close(self, status: str = "FINISHED") -> None:
        for wait in (0, 1, 3):
            time.sleep(wait)
            self.flush()
            if not self._buffer:
                break
        self.client.set_terminated(self.run, status)


class DeferredTracker:
    """Keeps every call until `close`, and then makes them on `make()`'s tracker, or, when `is_news()` denies it, drops them."""

    location = "recorded when something has changed"

    def __init__(self, make: Callable[[], Tracker], is_news: Callable[[], bool]):
        self._make, self._is_news = make, is_news
        self._calls: list[tuple[str, tuple[Any, ...]]] = []

    def log_params(self, params: dict[str, Any]) -> None:
        self._calls.append(("log_params", (params,)))

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        self._calls.append(("log_metrics", (metrics, step)))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self._calls.append(("log_artifact", (path, folder)))

    def log_checkpoint(self, folder: Path) -> None:
        self._calls.append(("log_checkpoint", (folder,)))

    def log_figure(self, figure: Any, name: str) -> None:
        self._calls.append(("log_figure", (figure, name)))

    def set_tags(self, tags: dict[str, str]) -> None:
        self._calls.append(("set_tags", (tags,)))

    def flush(self) -> None:
        """Nothing is sent before `close`."""

    def close(self, status: str = "FINISHED") -> None:
        if status == "FINISHED" and not self._is_news():
            return
        tracker = self._make()
        for method, arguments in self._calls:
            getattr(tracker, method)(*arguments)
        tracker.close(status)


class Unrecorded:
    """Forgets everything: what a process does beside the first one's record of the same stage."""

    location = "not recorded"

    def log_params(self, params: dict[str, Any]) -> None: ...
    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None: ...
    def log_artifact(self, path: Path, folder: str | None = None) -> None: ...
    def log_checkpoint(self, folder: Path) -> None: ...
    def log_figure(self, figure: Any, name: str) -> None: ...
    def set_tags(self, tags: dict[str, str]) -> None: ...
    def flush(self) -> None: ...
    def close(self, status: str = "FINISHED") -> None: ...


def tracking_uri(root: Path) -> str:
    return f"sqlite:///{root.resolve() / 'mlruns' / 'mlflow.db'}"


def open_store(root: Path) -> tuple[Any, str]:
    """A client of this checkout's store and the id of its experiment; makes both on first use, however many ask at once."""
    from mlflow.tracking import MlflowClient

    folder = root.resolve() / "mlruns"
    folder.mkdir(exist_ok=True)
    with locked(folder / "store.lock"):
        if not (folder / "mlflow.db").exists():
            _make_store(folder)
    client = MlflowClient(tracking_uri=tracking_uri(root), registry_uri=tracking_uri(root))
    return client, client.get_experiment_by_name(EXPERIMENT).experiment_id


def run_status(root: Path, run: str) -> str | None:
    """RUNNING, FINISHED, FAILED or KILLED; None for a run that is not in the store (any more)."""
    from mlflow.exceptions import MlflowException

    try:
        return open_store(root)[0].get_run(run).info.status
    except MlflowException:
        return None


def _make_store(folder: Path) -> None:
    """A migrated store in one rename: two processes that migrate one file at once break it for good."""
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    unfinished = folder / "mlflow.db.unfinished"
    unfinished.unlink(missing_ok=True)
    artifacts = (folder / "artifacts").as_uri()
    MlflowClient(tracking_uri=f"sqlite:///{unfinished}").create_experiment(EXPERIMENT, artifact_location=artifacts)
    os.replace(unfinished, folder / "mlflow.db")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits for, and holds, an exclusive lock on a file; the system lets go of it however the holder ends."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
