"""The record of a stage as JSON lines, for machines without MLflow."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.training.tracker import RunIdentity, Tracker, flatten


class FileTracker(Tracker):
    """The same calls as JSON lines in `<folder>/tracking.jsonl`, files beside it."""

    def __init__(self, folder: Path, identity: RunIdentity):
        self.folder = folder
        self.file = folder / "tracking.jsonl"
        self.location = str(self.file)
        folder.mkdir(parents=True, exist_ok=True)
        self._last_step: dict[str, int] = {}
        for record in self._records():
            for name in record.get("metrics", {}):
                self._last_step[name] = max(record["step"], self._last_step.get(name, -1))
        self._write(run=identity.name, key=identity.key, tags=identity.tags)

    def _records(self) -> Iterator[dict[str, Any]]:
        if not self.file.is_file():
            return
        text = self.file.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
        if whole != text:
            self.file.write_text(whole, encoding="utf-8")
        yield from map(json.loads, whole.splitlines())

    def _write(self, **record: Any) -> None:
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record, default=str) + "\n")

    def log_params(self, params: dict[str, Any]) -> None:
        self._write(params=flatten(params))

    def log_metrics(self, metrics: dict[str, float], step: int = 0) -> None:
        fresh = {name: float(value) for name, value in metrics.items() if step > self._last_step.get(name, -1)}
        if fresh:
            self._last_step |= dict.fromkeys(fresh, step)
            self._write(metrics=fresh, step=step, time=time.time())

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        target = self.folder / "artifacts" / (folder or "") / Path(path).name
        target.parent.mkdir(parents=True, exist_ok=True)
        if Path(path).is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, target)

    def log_checkpoint(self, folder: Path) -> None:
        self._write(checkpoint=str(folder))

    def log_figure(self, figure: Any, name: str) -> None:
        target = self.folder / "artifacts" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target)

    def set_tags(self, tags: dict[str, str]) -> None:
        self._write(tags=tags)

    def close(self, status: str = "FINISHED") -> None:
        self._write(status=status)
