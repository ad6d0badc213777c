"""Continuous batching: a thread that decodes what many askers have handed in, new prompts taking the place of finished rows.

An answer is told block by block, in the decoder's thread, to whoever handed it in; an asker who loses interest cancels. The
network, its cache and what guesses belong to the thread alone.
"""

import itertools
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from model.samplers.block_loop import Batch, BlockDecoder
from model.samplers.results import Decoded
from model.samplers.rows import Entry
from model.samplers.sampling import Sampling


@dataclass(frozen=True)
class News:
    """What is settled of an answer. The last news has `decoded` (`cancelled` where it was given up) or the `error`."""

    tokens: list[int]
    decoded: Decoded | None = None
    error: Exception | None = None


@dataclass(eq=False)
class Job:
    """A prompt on its way; `tell` hears of every finished block and must not wait."""

    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling
    tell: Callable[[News], None]
    told_tokens: int = field(default=0, init=False)
    is_cancelled: bool = field(default=False, init=False)


@dataclass
class Figures:
    """What the engine has done: `forwards` of the batch, over `rows` in all; tokens and forwards of whole answers."""

    forwards: int = 0
    rows: int = 0
    answer_tokens: int = 0
    answer_forwards: int = 0
    errors: int = 0


class QueueFull(Exception):
    """As many prompts wait as may."""


class Engine:
    """One decoder and its thread. `capacity`: positions of the longest row, whose cache is allocated once."""

    def __init__(self, decoder: BlockDecoder, capacity: int, queue_requests: int) -> None:
        self.decoder, self.capacity, self.queue_requests = decoder, capacity, queue_requests
        self.figures = Figures()
        self._waiting: deque[Job] = deque()
        self._live: dict[int, Job] = {}
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Prompts without a row."""
        return len(self._waiting)

    @property
    def num_live(self) -> int:
        """Rows that share the next forward."""
        return len(self._live)

    @property
    def is_running(self) -> bool:
        """Whether the thread lives: until what was handed in before `close` is answered."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Hands in a prompt; QueueFull where too many wait, ValueError for what cannot be decoded."""
        self.decoder.check([job.prompt], job.max_new_tokens)
        assert self.decoder.room(self.capacity, job.prompt) >= job.max_new_tokens
        with self._changed:
            assert not self._closing
            if len(self._waiting) >= self.queue_requests:
                raise QueueFull
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Gives an answer up; its row is free after the current forward."""
        with self._changed:
            job.is_cancelled = True
            self._changed.notify()

    def close(self) -> None:
        """No more prompts; the thread ends when the last answer is told."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def join(self, seconds: float | None = None) -> None:
        """Waits for the thread's end."""
        self._thread.join(seconds)

    def _run(self) -> None:
        batch = self.decoder.open(self.capacity)
        while self._take(batch):
            try:
                finished = self.decoder.step(batch)
            except Exception as error:  # one batch is lost, not the server: the next one starts afresh
                self.figures.errors += 1
                batch = self._give_up(error)
                continue
            self.figures.forwards += 1
            self.figures.rows += len(self._live)
            self._tell(batch, finished)

    def _take(self, batch: Batch) -> bool:
        """Lets prompts in and cancelled rows out; waits where there is nothing to do; False at the end."""
        while True:
            with self._changed:
                gone = [job for job in self._waiting if job.is_cancelled]
                for job in gone:
                    self._waiting.remove(job)
                while self._waiting and len(self._live) < self.decoder.batch_rows:
                    job, index = self._waiting.popleft(), next(self._numbers)
                    self._live[index] = job
                    batch.waiting.append(Entry(index, job.prompt, job.max_new_tokens, job.sampling))
            for job in gone:
                job.tell(News([], Decoded([], [], [], cancelled=True)))
            cancelled = [index for index, job in self._live.items() if job.is_cancelled]
            for index in cancelled:
                self._drop(batch, index)
            if cancelled:
                continue
            if self._live:
                return True
            with self._changed:
                if self._closing and not self._waiting:
                    return False
                if not self._waiting:
                    self._changed.wait()

    def _drop(self, batch: Batch, index: int) -> None:
        decoded = self.decoder.drop(batch, index)
        if decoded is None:  # it had not entered yet
            batch.waiting = deque(entry for entry in batch.waiting if entry.index != index)
            decoded = Decoded([], [], [], cancelled=True)
        self._live.pop(index).tell(News(decoded.tokens, decoded))

    def _tell(self, batch: Batch, finished: list[tuple[int, Decoded]]) -> None:
        for index, decoded in finished:
            self.figures.answer_tokens += len(decoded.tokens)
            self.figures.answer_forwards += decoded.target_forwards
            self._live.pop(index).tell(News(decoded.tokens, decoded))
        for slot in range(batch.rows.num_live):
            job, tokens = self._live[int(batch.rows.index[slot])], batch.rows.settled(slot)
            if len(tokens) > job.told_tokens:
                job.told_tokens = len(tokens)
                job.tell(News(tokens))

    def _give_up(self, error: Exception) -> Batch:
        lost, self._live = self._live, {}
        for job in lost.values():
            job.tell(News([], error=error))
        return self.decoder.open(self.capacity)
