"""Shares the cores among stages: a stage takes as many slots as it uses threads, in the order in which stages ask.

Counting stages instead of threads let a two-thread training run beside an evaluation on two cores; OpenMP's threads then wait
for each other in turn and a step took twenty times as long (docs/log.md).
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.parameters import load_params


class Slots:
    """`total` slots; `take(n)` waits for its turn and for n free ones (all of them when n is more than there are)."""

    def __init__(self, total: int) -> None:
        self.total, self.free = total, total
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def take(self, wanted: int) -> Iterator[None]:
        """Holds the slots while the body runs."""
        number, ticket = min(wanted, self.total), object()
        with self._changed:
            self._queue.append(ticket)
            self._changed.wait_for(lambda: self._queue[0] is ticket and self.free >= number)
            self._queue.popleft()
            self.free -= number
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self.free += number
                self._changed.notify_all()


def threads_of(root: Path, stage: str) -> int:
    """Threads that a stage (`evaluate@tune_cap` counts as `evaluate`) uses in all its processes according to params.yaml."""
    params = load_params(root / "params.yaml")
    section = params.get(stage.split("@")[0]) or {}
    return int(section.get("threads", params.get("threads", 1))) * int(section.get("processes", 1))
