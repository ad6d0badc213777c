"""What a stage has recorded and its store has not taken yet, as JSON lines on disk: a kill or an outage loses none of it."""

import fcntl
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.training.tracker import RunIdentity

SPOOLS = Path(".work/tracking")
FILE = "undelivered.jsonl"


class Spool:
    """Records in the order in which they were made; `clear` forgets them when all have been taken.

    The file belongs to one process at a time; BlockingIOError while another one holds it.
    """

    def __init__(self, root: Path, identity: RunIdentity):
        self.folder = root / SPOOLS / identity.name / identity.key
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stream = (self.folder / FILE).open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._stream.close()
            raise
        first, *self.waiting = self._whole_lines() or [{}]
        self.began = first.get("began", int(time.time() * 1000))
        self.run: str | None = first.get("run")  # where the records go, once that is known
        self._first = {"began": self.began, "identity": asdict(identity)}
        if not first:
            self._write(self._first)

    def _whole_lines(self) -> list[dict[str, Any]]:
        self._stream.seek(0)
        text = self._stream.read()
        whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
        if whole != text:
            self._stream.truncate(len(whole.encode()))
        return [json.loads(line) for line in whole.splitlines()]

    def add(self, **record: Any) -> None:
        """Keeps a record until `clear`."""
        self._write(record)
        self.waiting.append(record)

    def _write(self, record: dict[str, Any]) -> None:
        with suppress(OSError):  # on a full disk the record waits in memory alone; training is worth more
            self._stream.write(json.dumps(record, default=str) + "\n")
            self._stream.flush()

    def settle(self, run: str) -> None:
        """All records go to this run: one that has been finished meanwhile is found again."""
        if run != self.run:
            self.run = run
            self._rewrite()

    def _rewrite(self) -> None:
        self._stream.truncate(0)
        for record in (self._first | {"run": self.run}, *self.waiting):
            self._write(record)

    def keep_copy(self, path: Path) -> Path:
        """A copy of a file or folder that may be gone when its turn comes."""
        target = self.folder / "files" / path.name
        target.parent.mkdir(exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(path, target)
        return target

    def clear(self) -> None:
        """Everything has been taken."""
        self.waiting.clear()
        self._rewrite()
        shutil.rmtree(self.folder / "files", ignore_errors=True)

    def close(self) -> None:
        """Lets go of the file, and removes it when nothing waits."""
        if not self.waiting:
            shutil.rmtree(self.folder, ignore_errors=True)
            with suppress(OSError):  # another key of the stage may wait beside it
                self.folder.parent.rmdir()
        self._stream.close()


def left_over(root: Path) -> Iterator[RunIdentity]:
    """The runs whose records wait on this disk, whoever left them."""
    for file in sorted((root / SPOOLS).glob(f"*/*/{FILE}")):
        with file.open(encoding="utf-8") as stream:
            first = stream.readline()
        if first.endswith("\n") and "identity" in first:
            yield RunIdentity(**json.loads(first)["identity"])
