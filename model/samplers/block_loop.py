"""The one block loop: rows advance block by block, each at its own pace; finished rows make place for waiting prompts.

A batch may also stay open: prompts enter it and rows are dropped from it between forwards, each with its own length and draws.

A decoder is the deterministic map `step(state, logits(state)) -> state`, state = (block tokens, counters of the block).
Speculation only adds candidates: guessed future states whose logits come from the same forward. The walk below moves a row
exactly as plain decoding would, for as long as its own next state is among the candidates, so a guess can never change a
token (methods section 3). Plain decoding is the walk with the current state as the only candidate.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from model.network.transformer import Transformer
from model.samplers.compatibility import NO_QUIRKS, Quirks
from model.samplers.guesses import Guesser, Guesses, no_guesses
from model.samplers.policies import Policy
from model.samplers.refusals import check_prompts, check_sampler, checked_cache
from model.samplers.results import EXACT, Decoded, Observer
from model.samplers.rows import Entry, Rows
from model.samplers.sampling import GREEDY, Proposer, Sampling
from model.samplers.sources import make_source
from model.samplers.states import Grid, State, advance
from model.samplers.targets import Proposals, Source, SourceSettings


@dataclass
class Batch:
    """The working state of rows that share forwards; prompts in `waiting` enter as slots become free."""

    rows: Rows
    target: Source
    waiting: deque[Entry] = field(default_factory=deque)
    seconds: dict[str, float] = field(default_factory=lambda: {"target": 0.0, "draft": 0.0, "host": 0.0})

    @contextmanager
    def clock(self, part: str) -> Iterator[None]:
        """Adds the time of a block of code to a part."""
        began = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - began


class BlockDecoder:
    """Decodes prompts with `network` under `policy`; call it with token ids, get `Decoded` in the same order."""

    def __init__(
        self,
        network: Transformer,
        policy: Policy,
        batch_rows: int = 64,
        eos_early_stop: bool = True,
        guesser: Guesser | None = None,
        *,
        sampling: Sampling = GREEDY,
        cache: str | None = None,
        block_tokens: int | None = None,
        quirks: Quirks = NO_QUIRKS,
    ) -> None:
        check_sampler(network.config, policy, guesser is not None, sampling, block_tokens, quirks)
        if batch_rows < 1:
            raise ValueError(f"batch_rows {batch_rows} must be at least 1")
        self.network, self.policy, self.guesser = network, policy, guesser
        self.batch_rows, self.sampling, self.quirks = batch_rows, sampling, quirks
        self.block_tokens = 1 if self.is_left_to_right else block_tokens or network.config.block_tokens
        self.stop = quirks.stop or ("early" if eos_early_stop else "block")
        self.cache = checked_cache(cache, network.config, quirks)

    @property
    def is_left_to_right(self) -> bool:
        """A causal network: every block is one position, and what proposes for it is the token before."""
        return self.network.config.attention == "causal"

    @property
    def label(self) -> str:
        """What results say about the cache: exact, or which approximation."""
        is_exact = self.cache == "none" or self.network.config.attention != "bidirectional"
        return EXACT if is_exact else f"{self.cache} (approximate)"

    @torch.no_grad()
    def __call__(
        self,
        prompts: list[list[int]],
        max_new_tokens: int,
        progress: bool = False,
        observer: Observer | None = None,
    ) -> list[Decoded]:
        """One answer per prompt of at most `max_new_tokens` tokens; the order of the prompts is kept.

        `observer` hears of every step and may end decoding (see `Observer`).
        """
        self.check(prompts, max_new_tokens)
        if not prompts:
            return []
        grid = self._grid(max_new_tokens)
        capacity = max(grid.canvas(len(prompt), max_new_tokens) for prompt in prompts)
        batch = self._begin(grid, min(self.batch_rows, len(prompts)), capacity, observer)
        batch.waiting.extend(Entry(index, prompt, max_new_tokens) for index, prompt in enumerate(prompts))
        rows, results = batch.rows, dict[int, Decoded]()
        with tqdm(total=len(prompts), desc="decode", unit="prompt", mininterval=2.0, disable=not progress) as bar:
            while (batch.waiting or rows.num_live) and not rows.cancelled:
                for index, decoded in self.step(batch):
                    results[index] = decoded
                    bar.update()
        for slot in range(rows.num_live):
            results[int(rows.index[slot])] = rows.result(slot, self.label, cancelled=True)
        nothing = dict.fromkeys(rows.counters, 0)
        for index in range(len(prompts)):
            results.setdefault(index, Decoded([], [], [], dict(nothing), cancelled=True, cache=self.label))
        for decoded in results.values():  # forwards are shared by the rows of a batch, and so is their time
            decoded.seconds = {part: seconds / len(prompts) for part, seconds in batch.seconds.items()}
        return [results[index] for index in range(len(prompts))]

    def open(self, capacity: int) -> Batch:
        """An empty batch of `batch_rows` slots for rows of at most `capacity` positions, whose rows may differ in their draws.

        Put checked entries into `waiting`, call `step` again and again; `drop` takes a row out. A row's noise depends on its own
        seed, never on its index: the same request gets the same answer whenever it comes.
        """
        if self.quirks.one_block:
            raise ValueError("an answer of one block has a grid of its own: it cannot share an open batch")
        return self._begin(self._grid(self.block_tokens), self.batch_rows, capacity, None, differ=True)

    def room(self, capacity: int, prompt: list[int]) -> int:
        """Tokens that an answer to `prompt` may have in a row of `capacity` positions, in whole blocks; below 1: no room."""
        limit = min(capacity, self.network.config.maximum_positions)
        return limit // self.block_tokens * self.block_tokens - len(prompt)

    @torch.no_grad()
    def step(self, batch: Batch) -> list[tuple[int, Decoded]]:
        """Lets waiting prompts in, makes one target forward for all live rows; index and answer of the rows that it finished."""
        with batch.clock("target"):
            self._admit(batch)
        self._advance(batch)
        return self._collect(batch)

    def drop(self, batch: Batch, index: int) -> Decoded | None:
        """Takes a row out as far as it was written; None where it is not in a slot (any more)."""
        for slot in range(batch.rows.num_live):
            if int(batch.rows.index[slot]) == index:
                decoded = batch.rows.result(slot, self.label, cancelled=True)
                self._vacate(batch, slot)
                return decoded
        return None

    def _grid(self, max_new_tokens: int) -> Grid:
        config, quirks = self.network.config, self.quirks
        block = max_new_tokens if quirks.one_block else self.block_tokens
        hidden = (
            config.embedding_rows if self.is_left_to_right else config.mask_token_id
        )  # the former is never embedded
        return Grid(
            block,
            hidden,
            config.eos_token_id,
            quirks.grid_from_prompt,
            self.stop,
            quirks.canvas_tokens,
            quirks.minimum_steps,
        )

    def _begin(
        self, grid: Grid, num_slots: int, capacity: int, observer: Observer | None, differ: bool = False
    ) -> Batch:
        config, quirks = self.network.config, self.quirks
        proposer = Proposer(
            self.sampling,
            config.mask_token_id,
            self.policy.needs_entropy,
            quirks.mask_counts,
            quirks.confidence_of_temperature,
        )
        settings = SourceSettings(grid, proposer, self.policy.edits)
        candidates = 1
        if self.guesser is not None:
            settings = self.guesser.start(settings, num_slots, capacity)
            candidates += self.guesser.largest()
        target = make_source(self.network, settings, num_slots, capacity, self.cache, candidates)
        bounds = None
        if self.policy.reads_confidence:
            names = ("threshold", "edit_threshold")
            bounds = tuple(getattr(self.policy, name) for name in names if hasattr(self.policy, name))
        return Batch(Rows(grid, num_slots, capacity, observer, bounds, differ), target)

    def check(self, prompts: list[list[int]], max_new_tokens: int) -> None:
        """ValueError for a prompt that cannot be decoded, or not together with so many new tokens."""
        check_prompts(prompts, max_new_tokens, self.network.config, self.block_tokens, self.quirks)

    def _admit(self, batch: Batch) -> None:
        rows, first = batch.rows, batch.rows.num_live
        while batch.waiting and rows.num_live < rows.num_slots:
            rows.enter(batch.waiting.popleft())
        if rows.num_live > first:
            batch.target.admit(rows, first, rows.num_live - first)
            if self.guesser is not None:
                self.guesser.admit(rows, first, rows.num_live - first)

    def _advance(self, batch: Batch) -> None:
        """One target forward for all live rows, then walk every row as far as its states were foreseen."""
        rows = batch.rows
        with batch.clock("draft"):
            guesses = no_guesses(rows) if self.guesser is None else self.guesser.guess(rows, self.policy)
        with batch.clock("target"):
            proposals = batch.target.forward(rows, guesses.states, guesses.valid)
        with batch.clock("host"):
            rows.count("target_forwards", 1)
            rows.count("rows_verified", guesses.valid.sum(1))
            last, finished = self._walk(rows, guesses, proposals)
            if self.guesser is not None:
                self.guesser.observe(rows, last, proposals)
            done = (finished & ~rows.over[: rows.num_live]).nonzero()[:, 0]
            if done.numel():
                rows.next_block(done)
                if self.guesser is not None:
                    self.guesser.next_block(done)

    def _walk(self, rows: Rows, guesses: Guesses, proposals: Proposals) -> tuple[Int[Tensor, " rows"], Tensor]:
        """Move every row through foreseen states; which candidate's logits each row used last, and whose block is done."""
        last, finished = torch.zeros(rows.num_live, dtype=torch.long), torch.zeros(rows.num_live, dtype=torch.bool)
        moving, level, tried, matched = torch.arange(rows.num_live), 0, 0, 0
        before, found = guesses.states[:, 0], proposals[:, 0]
        while moving.numel():
            answerable = rows.answerable()[moving] if self.policy.edits else None
            move = advance(self.policy, rows.grid, before, found, rows.hidden_at_start[moving], answerable)
            rows.write(moving, before, move, found.doubt, found.gap)
            if level == 0:  # what writes nothing now has a full block, which no later state of it changes
                rows.count("wasted_forwards", ~move.written.any(1))
                if self.guesser is None and rows.observer is None:
                    return last, move.finished
            level += 1
            finished[moving] = move.finished
            foreseen, which = _find(guesses, moving, move.after)
            guessed = (guesses.valid[moving] & (guesses.level == level)).any(1)
            going = ~move.finished & ~rows.over[moving]
            if rows.observer is not None:
                rows.tell(moving, move, guessed & going, foreseen, before)
            counted = moving[guessed & going]
            if counted.numel():
                rows.count(f"tried_{level}", 1, counted)
                rows.count(f"matched_{level}", foreseen[guessed & going].long(), counted)
                tried, matched = tried + counted.numel(), matched + int(foreseen[guessed & going].sum())
            onward = going & foreseen
            last[moving[onward]] = which[onward]
            moving = moving[onward]
            before, found = guesses.states[moving, last[moving]], proposals[moving, last[moving]]
        if self.guesser is not None and tried:
            self.guesser.record(tried, matched)
        return last, finished

    def _collect(self, batch: Batch) -> list[tuple[int, Decoded]]:
        """Results of finished rows, whose slots become free."""
        rows, found = batch.rows, []
        for slot in reversed(rows.over[: rows.num_live].nonzero()[:, 0].tolist()):
            found.append((int(rows.index[slot]), rows.result(slot, self.label)))
            self._vacate(batch, slot)
        return found

    def _vacate(self, batch: Batch, slot: int) -> None:
        """The last live row takes the slot."""
        last = batch.rows.num_live - 1
        if slot != last:
            batch.rows.move_slot(last, slot)
            batch.target.move(last, slot)
            if self.guesser is not None:
                self.guesser.move(last, slot)
        batch.rows.num_live -= 1


def _find(guesses: Guesses, rows: Int[Tensor, " rows"], state: State) -> tuple[Tensor, Int[Tensor, " rows"]]:
    """Whether each row's whole state (tokens, positions and counters) is among its guesses, and which one."""
    wanted = State(state.tokens[:, None], state.step[:, None], state.full_steps[:, None])
    same = guesses.states[rows].equals(wanted) & guesses.valid[rows]
    same[:, 0] = False
    found, which = same.max(1)
    return found, which
