"""Batches of packed rows as a pure function of (seed, step): resuming a run needs no loader state."""

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from model.text.batch import Batch
from model.text.packing import Layout, TokenRows

PERIOD_ROWS = 10_000  # in every so many rows each corpus has its exact share, hence weights are kept to 1 in 10,000
_ROUNDS = 6


@dataclass(frozen=True)
class RowLoader:
    """Rows of several corpora, mixed by weight, shuffled, each corpus gone through once before any of its rows comes again."""

    folders_with_weights: list[tuple[Path, float]]
    batch_rows: int
    seed: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not self.folders_with_weights or any(weight <= 0 for _, weight in self.folders_with_weights):
            raise ValueError(f"corpora to load must have weights above 0: {self.folders_with_weights}")
        if self.batch_rows < 1 or self.batch_rows % self.world or not 0 <= self.rank < self.world:
            raise ValueError(
                f"batch_rows {self.batch_rows} cannot be shared evenly by {self.world} parts (processes x accumulation steps): "
                "make it a multiple of them"
            )
        empty = [
            str(folder)
            for (folder, _), rows in zip(self.folders_with_weights, self._corpora, strict=True)
            if rows.num_rows == 0
        ]
        if empty:
            raise ValueError(f"no rows to train on in {', '.join(empty)}: give the corpus more text or leave it out")
        if len({rows.layout for rows in self._corpora}) > 1:
            folders = [str(folder) for folder, _ in self.folders_with_weights]
            raise ValueError(f"corpora of different row layouts cannot be mixed: {folders}; tokenise them together")

    @cached_property
    def _corpora(self) -> list[TokenRows]:
        return [TokenRows(folder) for folder, _ in self.folders_with_weights]

    @property
    def layout(self) -> Layout:
        """The shape of all rows."""
        return self._corpora[0].layout

    @property
    def num_rows(self) -> int:
        """Rows of all corpora together."""
        return sum(rows.num_rows for rows in self._corpora)

    def fraction(self, rank: int, world: int) -> "RowLoader":
        """The loader of one of `world` equal parts of every batch; the parts in order of rank are the whole batch."""
        return replace(self, rank=self.rank * world + rank, world=self.world * world)

    def batch(self, step: int) -> Batch:
        """This part's rows of step `step` (from 0), cut to the longest row of the whole batch, a multiple of the block length."""
        samples = self.samples(np.arange(step * self.batch_rows, (step + 1) * self.batch_rows))
        share = self.batch_rows // self.world
        return self.read(samples[self.rank * share : (self.rank + 1) * share], self._width(samples))

    def read(self, samples: np.ndarray, width: int | None = None) -> Batch:
        """The rows of `samples` [rows, 2] (see there), cut to `width` or to the longest of them."""
        corpus, row = self._place(samples)
        order = np.argsort(corpus, kind="stable")
        parts = [rows.read(row[corpus == index]).tensors() for index, rows in enumerate(self._corpora)]
        back = torch.from_numpy(np.argsort(order))
        width = self._width(samples) if width is None else width
        values = (torch.cat(values)[back, :width].contiguous() for values in zip(*parts, strict=True))
        return Batch(*values, torch.from_numpy(samples))

    def _width(self, samples: np.ndarray) -> int:
        corpus, row = self._place(samples)
        return max(int(rows.lengths(row[corpus == index]).max(initial=0)) for index, rows in enumerate(self._corpora))

    def _place(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(corpus, row in it) of rows numbered through all corpora."""
        ends = np.cumsum([rows.num_rows for rows in self._corpora])
        corpus = np.searchsorted(ends, samples[:, 0], side="right")
        return corpus, samples[:, 0] - np.concatenate(([0], ends))[corpus]

    def prefetch(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """The batches of steps start_step .. stop_step - 1, the next two being read while the caller works on one."""
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
            ahead = [pool.submit(self.batch, step) for step in range(start_step, min(start_step + 2, stop_step))]
            for step in range(start_step, stop_step):
                batch = ahead.pop(0).result()
                if step + 2 < stop_step:
                    ahead.append(pool.submit(self.batch, step + 2))
                yield batch

    def samples(self, counters: np.ndarray) -> np.ndarray:
        """[draws, 2]: row (numbered through all corpora) and epoch of the given draws, counted from the first row of step 0."""
        corpus, draw = np.empty_like(counters), np.empty_like(counters)
        for period in np.unique(counters // PERIOD_ROWS):
            here = counters // PERIOD_ROWS == period
            plan = self._plan(int(period))
            for index, quota in enumerate(self._quotas):
                before = np.cumsum(plan == index) - (plan == index)  # draws of this corpus earlier in the period
                places = counters[here] % PERIOD_ROWS
                taken = plan[places] == index
                corpus[np.flatnonzero(here)[taken]] = index
                draw[np.flatnonzero(here)[taken]] = period * quota + before[places[taken]]
        found, before = np.empty((len(counters), 2), np.int64), 0
        for index, rows in enumerate(self._corpora):
            mine = corpus == index
            epoch, place = np.divmod(draw[mine], rows.num_rows)
            keys = _mix(np.uint64(self.seed), np.uint64(index), epoch.astype(np.uint64))
            found[mine, 0], found[mine, 1] = shuffled(place, rows.num_rows, keys) + before, epoch
            before += rows.num_rows
        return found

    @cached_property
    def _quotas(self) -> np.ndarray:
        """Rows of each corpus in a period: shares rounded by largest remainder, at least one each."""
        weights = np.array([weight for _, weight in self.folders_with_weights], float)
        exact = weights / weights.sum() * PERIOD_ROWS
        quotas = np.maximum(np.floor(exact), 1).astype(np.int64)
        missing = PERIOD_ROWS - int(quotas.sum())
        quotas[np.argsort(quotas - exact, kind="stable")[: max(missing, 0)]] += 1
        quotas[np.argmax(quotas)] += min(missing, 0)  # what the least corpora were given for nothing
        return quotas

    def _plan(self, period: int) -> np.ndarray:
        """Which corpus each row of a period comes from."""
        plan = np.repeat(np.arange(len(self._quotas)), self._quotas)
        if len(self._quotas) == 1:
            return plan
        key = _mix(np.uint64(self.seed), np.uint64(2**32 + period), np.arange(PERIOD_ROWS, dtype=np.uint64))
        return plan[np.argsort(key, kind="stable")]


def timed(batches: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
    """Every batch with the seconds that one waited for it."""
    source = iter(batches)
    while True:
        began = time.perf_counter()
        batch = next(source, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - began


def shuffled(places: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
    """Where the permutation of 0..size-1 belonging to each key sends each place.

    A Feistel network over the next power of four, walked until it falls inside: no table, whatever the size.
    """
    bits = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(bits)) - 1)
    out = places.astype(np.uint64)
    keys = np.broadcast_to(keys, out.shape)
    moving = np.ones(out.shape, bool)
    while moving.any():
        left, right = out[moving] >> bits, out[moving] & low
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mix(keys[moving], np.uint64(turn), right) & low)
        out[moving] = (left << bits) | right
        moving = out >= size
    return out.astype(np.int64)


def _mix(*words: np.ndarray | np.uint64) -> np.ndarray:
    """64 well-mixed bits of the words (splitmix64's finaliser after each), element by element."""
    state = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            state = (state ^ word) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state if state.size > 1 else state[:1]
