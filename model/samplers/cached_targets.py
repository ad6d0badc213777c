"""Sources with a key-value cache: a forward reads what is not stored yet."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from model.network.cache import KeyValueCache, Placement, Visible
from model.network.transformer import Transformer
from model.samplers.rows import Rows
from model.samplers.states import State
from model.samplers.static_steps import static_steps
from model.samplers.targets import Proposals, Source, SourceSettings

PREFILL_TOKENS = 512  # of a long prompt per forward: bounds the attention mask, whatever the prompt's length


@dataclass
class Segments:
    """Runs of tokens of one forward, before they are laid out flat: all vectors run over segments."""

    row: Int[Tensor, " segments"]
    candidate: Int[Tensor, " segments"]  # -1: a finished block that waits to be stored
    position: Int[Tensor, " segments"]  # of the first token
    column: Int[Tensor, " segments"]  # of the first token in the cache
    length: Int[Tensor, " segments"]


class CachedSource(Source):
    """A cache, so that a forward reads the candidates alone, and with them the finished block that is not stored yet.

    Block-causal networks (`prefix`): exact. Bidirectional ones, as Fast-dLLM (arXiv:2505.22618): each block's first forward reads
    the whole canvas; then `prefix` reads from the block's start to the canvas's end, `dual` the block alone. Approximate.
    """

    def __init__(
        self,
        network: Transformer,
        settings: SourceSettings,
        num_slots: int,
        capacity: int,
        mode: str,
        candidates: int = 1,
    ) -> None:
        super().__init__(network, settings)
        self.block, self.is_causal = settings.grid.block, network.config.attention == "block_causal"
        self.to_the_end = mode == "prefix" and not self.is_causal
        spare = (capacity if self.to_the_end else self.block) * (candidates - 1)
        dtype = network.embedding.weight.dtype
        self.cache = KeyValueCache(network.config, num_slots * self.lanes, capacity + spare, self.device, dtype)
        self.steps = static_steps(network, self.cache)
        self.stored = torch.zeros(num_slots, dtype=torch.long)  # columns that are final, or read for the current block
        self.fresh = torch.full((num_slots,), -1)  # bidirectional: the block whose first forward has been made

    def move(self, source: int, destination: int) -> None:
        """A row changes its slot."""
        for lane in range(self.lanes):
            self.cache.move(source * self.lanes + lane, destination * self.lanes + lane)
        self.stored[destination], self.fresh[destination] = self.stored[source], self.fresh[source]

    @torch.no_grad()
    def admit(self, rows: Rows, first: int, count: int) -> None:
        """Read the full blocks of the prompts in slots first .. first + count - 1, a bounded number of tokens at a time."""
        chosen = torch.arange(first, first + count)
        self.stored[chosen], self.fresh[chosen] = 0, -1
        if not self.is_causal:
            return
        starts = rows.start[chosen]
        piece = max(PREFILL_TOKENS // self.block, 1) * self.block
        for begin in range(0, int(starts.max()), piece):
            length = (starts - begin).clamp(0, piece)
            part = Segments(
                chosen, torch.full_like(chosen, -1), torch.full_like(chosen, begin), chosen * 0 + begin, length
            )
            nothing = torch.zeros(0, dtype=torch.long)
            self._run(rows, part, None, begin + int(length.max()), first, count, nothing)
            self.stored[chosen] += length
            if self.tokens_counter == "target_tokens":
                rows.count("prefill_forwards", (length > 0).long(), chosen)

    @torch.no_grad()
    def forward(self, rows: Rows, states: State, valid: Bool[Tensor, "rows candidates"]) -> Proposals:
        """Proposals for every valid candidate from one forward over the shared prefix."""
        wanted = self.wanted(rows, states, valid)
        asked = self.describe(rows, states, wanted)
        base = int((rows.start + self.block if self.is_causal else rows.total).max())
        segments, extent = self._segments(rows, valid, base)
        hidden = self._run(rows, segments, states, extent, 0, rows.num_live, wanted)
        served = valid[:, 0].nonzero()[:, 0]
        self.stored[served] = self.fresh[served] = rows.start[served]
        return self.proposals(hidden, states, asked)

    def _segments(self, rows: Rows, valid: Tensor, base: int) -> tuple[Segments, int]:
        """What is read for every candidate: own window with what waits before it, the others' in spare columns from `base` on."""
        row, candidate = valid.nonzero(as_tuple=True)
        start, own = rows.start[row], candidate == 0
        first = torch.zeros_like(row)
        if self.is_causal:
            first = torch.where(own, self.stored[row], start)
            length = start + self.block - first
        else:
            whole = own & (self.fresh[row] != start)
            first = torch.where(whole, 0, start)
            length = torch.where(whole | torch.tensor(self.to_the_end), rows.total[row] - first, self.block)
        spare = int(torch.where(own, 0, length).max())
        column = torch.where(own, first, base + (candidate - 1) * spare)
        extent = base + spare * int(candidate.max())
        return Segments(row, candidate, first, column, length), extent

    def _run(
        self, rows: Rows, part: Segments, states: State | None, extent: int, first: int, count: int, wanted
    ) -> Tensor:
        """One forward over the segments' tokens; hidden states of the wanted positions."""
        segment = torch.repeat_interleave(torch.arange(part.row.shape[0]), part.length)
        offset = torch.arange(segment.shape[0]) - (part.length.cumsum(0) - part.length)[segment]
        row, candidate = part.row[segment], part.candidate[segment]
        position, column = part.position[segment] + offset, part.column[segment] + offset
        tokens = rows.canvas[row, position]
        place = position - rows.start[row]
        inside = (candidate >= 0) & (place >= 0) & (place < self.block)
        asked = torch.zeros_like(inside)
        if states is not None:
            at = (row[inside], candidate[inside], place[inside])
            tokens[inside] = states.tokens[at]
            asked[inside] = wanted[at]
        visible = self._visible(rows, row, candidate, position, part.column[segment], part.length[segment])
        rows.counters[self.tokens_counter].index_add_(0, row, torch.full_like(row, self.lanes))
        return self._call(rows, (row - first, tokens, position, column, visible, asked), extent, first, count)

    def _visible(self, rows: Rows, row, candidate, position, column, length) -> Visible:
        """Own block and all before it; under bidirectional attention the whole canvas, with a candidate's block in its place."""
        start = rows.start[row]
        other = candidate > 0
        none = torch.zeros_like(row)
        if self.is_causal:
            end, resume, stop = (position // self.block + 1) * self.block, none, none
        else:
            end, stop = rows.total[row], torch.where(other & (not self.to_the_end), rows.total[row], 0)
            resume = torch.where(other, start + self.block, 0)
        own, own_end = torch.where(other, column, 0), torch.where(other, column + length, 0)
        return Visible(torch.where(other, start, end), resume, stop, own, own_end)

    def _call(self, rows: Rows, line: tuple, extent: int, first: int, count: int) -> Tensor:
        """The flat line through the network; under guidance each row's twin, its prompt masked, follows it."""
        row, tokens, position, column, visible, asked = line
        where = asked.nonzero()[:, 0]
        if self.lanes == 2:
            order = torch.cat((row * 2, row * 2 + 1)).argsort(stable=True)
            free = torch.where(position < rows.prompt_tokens[row + first], rows.mask, tokens)
            tokens, twin = torch.cat((tokens, free))[order], torch.cat((row * 2, row * 2 + 1))[order]
            half = torch.cat((asked, asked))[order]
            where = torch.cat([(half & (twin % 2 == lane)).nonzero()[:, 0] for lane in range(2)])
            row, position, column = twin, position.repeat(2)[order], column.repeat(2)[order]
            visible = Visible(*(bound.repeat(2)[order] for bound in vars(visible).values()))
        if first == 0 and self.steps is not None:
            hidden = self.steps(tokens, position, row, column, visible, count * self.lanes, extent)
            if hidden is not None:
                return hidden.index_select(0, where.to(self.device, non_blocking=True))
        placement = Placement(self.cache, row, column, visible, count * self.lanes, extent, first * self.lanes)
        tokens, position = torch.stack((tokens, position)).to(self.device, non_blocking=True)
        return self.network.forward_cached(tokens, position, placement, where.to(self.device, non_blocking=True))
