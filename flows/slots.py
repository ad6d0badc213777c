"""Shares cores and the GPU among stages: a stage takes as many slots as it uses threads, those that more stages wait for first.

Counting stages instead of threads let a two-thread training run beside an evaluation on two cores; OpenMP's threads then wait
for each other in turn and a step took twenty times as long (docs/log.md).
"""

import fcntl
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from heapq import heappop, heappush
from itertools import count
from pathlib import Path

from tasks.parameters import load_params


class Slots:
    """`total` slots; `take(n)` waits for its turn and for n free ones (all of them when n is more than there are).

    Among those that wait the highest priority is next, then the one that asked first; nobody overtakes the next one.
    """

    def __init__(self, total: int) -> None:
        self.total, self.free = total, total
        self._queue: list[tuple[int, int]] = []
        self._numbers = count()
        self._changed = threading.Condition()

    @contextmanager
    def take(self, wanted: int, priority: int = 0) -> Iterator[None]:
        """Holds the slots while the body runs."""
        number = min(wanted, self.total)
        with self._changed:
            ticket = (-priority, next(self._numbers))
            heappush(self._queue, ticket)
            self._changed.wait_for(lambda: self._queue[0] == ticket and self.free >= number)
            heappop(self._queue)
            self.free -= number
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self.free += number
                self._changed.notify_all()


@contextmanager
def the_gpu(stopped: threading.Event) -> Iterator[None]:
    """Holds this machine's GPU while the body runs, whoever else wants it: `make run`, a retrain, a worker of any clone.

    The system lets go of it however the holder ends. Waiting ends early when `stopped` is set.
    """
    with Path(tempfile.gettempdir(), f"unmask-gpu-{os.getuid()}.lock").open("w") as stream:
        while not stopped.is_set():
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                stopped.wait(0.2)
        yield


def needs_gpu(root: Path, stage: str) -> bool:
    """True for the stages that params.yaml lists as `gpu_stages`: one of them runs at a time, on workers of queue `gpu`."""
    names = load_params(root / "params.yaml").get("gpu_stages") or []
    return stage in names or stage.split("@")[0] in names


def threads_of(root: Path, stage: str) -> int:
    """Threads that a stage (`evaluate@tune_cap` counts as `evaluate`) uses in all its processes according to params.yaml."""
    params = load_params(root / "params.yaml")
    section = params.get(stage.split("@")[0]) or {}
    return int(section.get("threads", params.get("threads", 1))) * int(section.get("processes", 1))
