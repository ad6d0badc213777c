"""The state of all rows of a batch, kept on the host: canvas, current block, steps, and what has been counted.

A row is one prompt's decode in progress; rows 0 .. num_live - 1 are live, so that a cache can show them as one view.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.samplers.results import Decoded, Observer, Step
from model.samplers.sampling import GREEDY, Draws, Sampling
from model.samplers.states import Grid, Move, State

COUNTERS = (
    "target_forwards",
    "prefill_forwards",
    "commit_forwards",
    "wasted_forwards",
    "draft_forwards",
    "steps",
    "rows_verified",
    "target_tokens",
    "draft_tokens",
)


@dataclass(frozen=True)
class Entry:
    """A prompt that waits for a slot. `sampling`: its own way of drawing, in a batch whose rows may differ in it."""

    index: int
    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling | None = None


class Rows:
    """Slots of a batch. `differ`: every row draws its own way, with noise that depends on its own seed alone."""

    def __init__(
        self,
        grid: Grid,
        num_slots: int,
        capacity: int,
        observer: Observer | None = None,
        bounds: tuple[float, ...] | None = (),  # confidences at which the policy decides; None: it does not look at any
        differ: bool = False,
    ) -> None:
        shape = (num_slots, capacity)
        self.grid, self.block, self.mask = grid, grid.block, grid.mask
        self.canvas = torch.full(shape, grid.mask)
        self.revealed_at = torch.zeros(shape, dtype=torch.int32)
        self.confidence = torch.zeros(shape, dtype=torch.float64)
        names = ("index", "prompt_tokens", "limit", "end", "total", "start", "step", "full_steps", "hidden_at_start")
        names += ("sample",)  # the first counter of a row's noise
        self.fields = {name: torch.zeros(num_slots, dtype=torch.long) for name in names}
        self.gap = torch.full((num_slots,), torch.inf, dtype=torch.float64)
        self.margin = torch.full((num_slots,), torch.inf, dtype=torch.float64)
        self.over = torch.zeros(num_slots, dtype=torch.bool)  # finished, its result not yet taken
        self.cut: dict[int, int] = {}  # index -> length of answer under the on_placement quirk
        self.counters = {name: torch.zeros(num_slots, dtype=torch.long) for name in COUNTERS}
        self.draws = Draws.greedy(num_slots) if differ else None
        self.num_slots = num_slots
        self.num_live = 0
        self.observer, self.cancelled, self.bounds = observer, False, bounds

    @property
    def num_live(self) -> int:
        """How many slots hold a row."""
        return self._num_live

    @num_live.setter
    def num_live(self, count: int) -> None:
        self._num_live = count
        self._live = {name: field[:count] for name, field in self.fields.items()}
        self._columns: Tensor | None = None

    def __getattr__(self, name: str) -> Tensor:
        live = self.__dict__.get("_live", {})
        if name not in live:
            raise AttributeError(name)
        return live[name]

    def enter(self, entry: Entry) -> int:
        """Lay a prompt into the next slot; the prompt's tail stands clean in its block. Returns the slot."""
        slot, grid, prompt, max_new_tokens = self.num_live, self.grid, entry.prompt, entry.max_new_tokens
        self.num_live += 1
        start, length = grid.begin(len(prompt)), len(prompt)
        values = {
            "index": entry.index,
            "sample": 0 if self.draws else entry.index,
            "prompt_tokens": length,
            "limit": length + max_new_tokens,
            "end": grid.end(length, max_new_tokens),
            "total": grid.canvas(length, max_new_tokens),
            "start": start,
            "hidden_at_start": start + self.block - length,
        }
        for name, field in self.fields.items():
            field[slot] = values.get(name, 0)
        self.canvas[slot] = self.mask
        self.canvas[slot, :length] = torch.tensor(prompt)
        self.gap[slot] = self.margin[slot] = torch.inf
        self.over[slot] = False
        if self.draws:
            self.draws.put(slot, entry.sampling or GREEDY)
        for counter in self.counters.values():
            counter[slot] = 0
        return slot

    def count(self, name: str, amounts: Tensor | int, chosen: Tensor | slice | None = None) -> None:
        """Add to a counter of the live rows, or of chosen ones."""
        if name not in self.counters:
            self.counters[name] = torch.zeros(self.num_slots, dtype=torch.long)
        if chosen is None:
            chosen = slice(0, self.num_live)
        if isinstance(chosen, slice):
            self.counters[name][chosen].add_(amounts)
        else:
            self.counters[name][chosen] += amounts

    def columns(self) -> Int[Tensor, "rows block"]:
        """Positions of every live row's current block."""
        if self._columns is None:
            self._columns = self.start[:, None] + torch.arange(self.block)
        return self._columns

    def state(self) -> State:
        """The live rows' current states."""
        return State(self.canvas[: self.num_live].gather(1, self.columns()), self.step, self.full_steps)

    def answerable(self) -> Bool[Tensor, "rows block"]:
        """Positions of the current blocks that belong to the answer, not to the prompt."""
        return self.columns() >= self.prompt_tokens[:, None]

    def write(self, rows: Int[Tensor, " rows"], before: State, move: Move, doubt: Tensor, gap: Tensor) -> None:
        """Take a step: the chosen rows' blocks, reports and counters; `doubt` and `gap` are those of the proposals."""
        columns = self.columns()[rows]
        self.canvas[rows[:, None], columns] = move.after.tokens
        self.fields["step"][rows], self.fields["full_steps"][rows] = move.after.step, move.after.full_steps
        row, place = move.written.nonzero(as_tuple=True)
        at = (rows[row], columns[row, place])
        self.revealed_at[at] = self.counters["target_forwards"][at[0]].int()
        self.confidence[at] = (doubt[row, place] + 1.0).reciprocal()
        self.gap[rows] = torch.minimum(self.gap[rows], torch.where(move.written, gap, torch.inf).amin(1))
        if self.bounds is not None:
            margin = _selection_margin(move.written, before.tokens == self.mask, doubt, self.bounds)
            self.margin[rows] = torch.minimum(self.margin[rows], margin)
        self.count("steps", 1, rows)
        self.over[rows] = self._ended(rows, before, move)

    def _ended(self, rows: Int[Tensor, " rows"], before: State, move: Move) -> Bool[Tensor, " rows"]:
        """Rows that are finished: at the last block's end, or stopped by an EOS of the answer."""
        grid, tokens = self.grid, move.after.tokens
        at_end = move.finished & (self.start[rows] + self.block >= self.end[rows])
        if grid.eos is None or grid.stop == "never":
            return at_end
        is_eos = tokens == grid.eos
        if not is_eos.any():
            return at_end
        clear = (tokens == self.mask).long().cumsum(1) == 0
        if grid.stop == "on_placement":
            return at_end | self._placed(rows, before, tokens, is_eos, clear) | self._has_eos(rows, is_eos, move)
        if grid.stop == "early":
            at_end = at_end | (is_eos & clear & self.answerable()[rows]).any(1)
        return at_end | self._has_eos(rows, is_eos, move)

    def _has_eos(self, rows, is_eos, move: Move) -> Tensor:
        return move.finished & (is_eos & self.answerable()[rows]).any(1)

    def _placed(self, rows, before: State, tokens, is_eos, clear) -> Tensor:
        """LLaDA 2.0's early stop, with its consequences for prompts that hold an EOS and for EOS beyond the limit."""
        found = torch.zeros(rows.shape[0], dtype=torch.bool)
        for number in (is_eos & (before.tokens != tokens)).any(1).nonzero()[:, 0].tolist():
            row = int(rows[number])
            prompt_tokens, index = int(self.prompt_tokens[row]), int(self.index[row])
            if (self.canvas[row, :prompt_tokens] == self.grid.eos).any():
                self.cut[index], found[number] = 0, True
                continue
            first = int(is_eos[number].nonzero()[0, 0])
            if clear[number, first]:
                self.cut[index] = int(self.start[row]) + first + 1 - prompt_tokens
                found[number] = True
        return found

    def next_block(self, rows: Int[Tensor, " rows"]) -> None:
        """Go on to the next block, all of it hidden."""
        self._columns = None
        self.fields["start"][rows] += self.block
        self.fields["hidden_at_start"].index_fill_(0, rows, self.block)
        for name in ("step", "full_steps"):
            self.fields[name].index_fill_(0, rows, 0)

    def tell(
        self, rows, move: Move, drafted: Bool[Tensor, " rows"], accepted: Bool[Tensor, " rows"], before: State
    ) -> None:
        """Report what a step wrote to the observer, row by row; remember when it asks to stop."""
        assert self.observer is not None
        for number, row in enumerate(rows.tolist()):
            columns = self.columns()[row, move.written[number]]
            if not columns.numel():
                continue
            step = Step(
                int(self.index[row]),
                int(self.counters["target_forwards"][row]),
                columns.tolist(),
                self.canvas[row, columns].tolist(),
                self.confidence[row, columns].tolist(),
                (before.tokens[number, move.written[number]] != self.mask).tolist(),
                bool(drafted[number]),
                bool(drafted[number] & accepted[number]),
            )
            self.cancelled |= bool(self.observer(step))

    def move_slot(self, source: int, destination: int) -> None:
        """The row in slot `source` goes on in slot `destination`."""
        self._columns = None
        held = (self.canvas, self.revealed_at, self.confidence, self.gap, self.margin, self.over)
        for values in (*held, *self.fields.values(), *self.counters.values()):
            values[destination] = values[source]
        if self.draws:
            self.draws.move(source, destination)

    def settled(self, slot: int) -> list[int]:
        """The tokens of a row's answer that stand in finished blocks: they will not change."""
        return self.canvas[slot, int(self.prompt_tokens[slot]) : int(min(self.start[slot], self.limit[slot]))].tolist()

    def result(self, slot: int, cache: str, cancelled: bool = False) -> Decoded:
        """The answer in a slot; a cancelled one reaches to its first hidden position."""
        begin, end = int(self.prompt_tokens[slot]), int(min(self.limit[slot], self.end[slot]))
        index = int(self.index[slot])
        if index in self.cut:
            end = begin + self.cut.pop(index)
        tokens = self.canvas[slot, begin:end].tolist()
        tokens = tokens[: tokens.index(self.mask)] if self.mask in tokens else tokens
        if self.grid.eos in tokens:
            tokens = tokens[: tokens.index(self.grid.eos) + 1]
        kept = slice(begin, begin + len(tokens))
        return Decoded(
            tokens,
            self.revealed_at[slot, kept].tolist(),
            self.confidence[slot, kept].tolist(),
            {name: int(counter[slot]) for name, counter in self.counters.items()},
            cancelled=cancelled,
            smallest_gap=float(self.gap[slot]),
            smallest_margin=float(self.margin[slot]),
            cache=cache,
        )


def _selection_margin(
    written: Bool[Tensor, "rows block"],
    hidden: Bool[Tensor, "rows block"],
    doubt: Float[Tensor, "rows block"],
    bounds: tuple[float, ...],
) -> Float[Tensor, " rows"]:
    """How little confidences would have to change for another choice: the least confident revealed position against the most
    confident one left hidden, and every asked position against the policy's thresholds."""
    confidence = 1.0 / (1.0 + doubt)
    lowest = torch.where(written & hidden, confidence, torch.inf).amin(1)
    highest = torch.where(hidden & ~written, confidence, -torch.inf).amax(1)
    margin = torch.where((lowest < torch.inf) & (highest > -torch.inf), (lowest - highest).abs(), torch.inf)
    for bound in bounds:
        distance = torch.where(doubt.isfinite(), (confidence - bound).abs(), torch.inf).amin(1)
        margin = torch.minimum(margin, distance)
    return margin
