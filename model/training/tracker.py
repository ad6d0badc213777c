"""What a stage may record, whoever takes it: MLflow (mlflow_tracker.py), a file (file_tracker.py), or nobody."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunIdentity:
    """Who is recording: `name` is the stage with its instance, `key` its fingerprint, `tags` whatever else can be filtered by."""

    name: str
    key: str
    tags: dict[str, str] = field(default_factory=dict)
    parent_run: str | None = None


def flatten(params: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted names: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return flat


class Tracker:
    """Takes every record and keeps none, as beside the first process of a stage; what keeps them inherits from it.

    `step` of a metric never falls within one key of a run; points already recorded are skipped.
    """

    location = "not recorded"

    def log_params(self, params: dict[str, Any]) -> None: ...
    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None: ...
    def log_artifact(self, path: Path, folder: str | None = None) -> None: ...
    def log_checkpoint(self, folder: Path) -> None: ...
    def log_figure(self, figure: Any, name: str) -> None: ...
    def set_tags(self, tags: dict[str, str]) -> None: ...
    def flush(self) -> None: ...
    def close(self, status: str = "FINISHED") -> None: ...


class DeferredTracker(Tracker):
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

    def close(self, status: str = "FINISHED") -> None:
        if status == "FINISHED" and not self._is_news():
            return
        tracker = self._make()
        for method, arguments in self._calls:
            getattr(tracker, method)(*arguments)
        tracker.close(status)
