"""The source of a causal network, which decodes on a grid of one-position blocks."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.network.cache import KeyValueCache, Placement, Visible
from model.network.transformer import Transformer
from model.samplers.cached_targets import PREFILL_TOKENS
from model.samplers.rows import Rows
from model.samplers.sampling import Asked
from model.samplers.states import State
from model.samplers.static_steps import static_steps
from model.samplers.targets import Proposals, Source, SourceSettings


class CausalSource(Source):
    """Proposes for a position from the forward of the token before it, over a cache of all earlier ones. Exact.

    A prompt is read when its row enters. Its last token proposes the answer's first one, so that this forward counts as decoding;
    of a prompt that is read in pieces, the earlier ones are prefill.
    """

    def __init__(self, network: Transformer, settings: SourceSettings, num_slots: int, capacity: int) -> None:
        super().__init__(network, settings)
        dtype = network.embedding.weight.dtype
        self.cache = KeyValueCache(network.config, num_slots, capacity, self.device, dtype)
        self.steps = static_steps(network, self.cache)
        self.entered: list[Float[Tensor, "rows hidden"]] = []  # ends of prompts just read, in the last slots

    def move(self, source: int, destination: int) -> None:
        """A row changes its slot."""
        self.cache.move(source, destination)

    @torch.no_grad()
    def admit(self, rows: Rows, first: int, count: int) -> None:
        """Read the prompts in slots first .. first + count - 1, a bounded number of tokens at a time."""
        lengths = rows.prompt_tokens[first : first + count]
        ends = torch.empty(count, self.network.config.hidden_size, dtype=self.cache.storage.dtype, device=self.device)
        for begin in range(0, int(lengths.max()), PREFILL_TOKENS):
            piece = (lengths - begin).clamp(0, PREFILL_TOKENS)
            row = torch.repeat_interleave(torch.arange(count), piece)
            position = begin + torch.arange(row.shape[0]) - (piece.cumsum(0) - piece)[row]
            asked = (position == lengths[row] - 1).nonzero()[:, 0]
            ends[row[asked].to(self.device)] = self._read(rows, row, position, asked, first, count)
            rows.count("prefill_forwards", (lengths > begin + PREFILL_TOKENS).long(), slice(first, first + count))
        rows.count(self.tokens_counter, lengths, slice(first, first + count))
        self.entered = [ends]

    @torch.no_grad()
    def forward(self, rows: Rows, states: State, valid: Bool[Tensor, "rows candidates"]) -> Proposals:
        """Proposals for the one position of every row's block; rows that have just entered need no forward of their own."""
        row = torch.arange(rows.num_live)
        earlier = rows.num_live - sum(map(len, self.entered))
        found, self.entered = self.entered, []
        if earlier:
            found = [self._read_next(rows, row[:earlier]), *found]
            rows.count(self.tokens_counter, 1, slice(0, earlier))
        nothing = torch.zeros_like(row)
        present = self._present(rows, states)[:, 0] if self.settings.proposer.sampling.repeat_penalty != 1.0 else None
        draws = None if rows.draws is None else rows.draws[row]
        asked = Asked(row, nothing, nothing, torch.stack((rows.sample, rows.start, nothing, nothing)), present, draws)
        answers, _ = self._propose(found[0] if len(found) == 1 else torch.cat(found), asked)
        token, doubt, gap, entropy = answers[:, :, None, None]
        return Proposals(token.long(), doubt, gap, entropy, asked)

    def _read_next(self, rows: Rows, row: Int[Tensor, " rows"]) -> Float[Tensor, "rows hidden"]:
        """The last token of each of the first rows."""
        position, nothing, count = rows.start[: len(row)] - 1, torch.zeros_like(row), len(row)
        tokens, extent, end = rows.canvas[row, position], int(position.max()) + 1, position + 1
        if self.steps is not None:
            visible = Visible(end, nothing, nothing, nothing, nothing)
            hidden = self.steps(tokens, position, row, position, visible, count, extent)
            if hidden is not None:
                return hidden
        line = torch.stack((row, position, nothing, end, nothing, nothing, nothing, nothing, tokens)).to(self.device)
        see_all = count == 1 or int(position.min()) + 1 == extent
        placement = Placement.of_equal_rows(self.cache, line[:8], count, extent, see_all)
        return self.network.forward_cached(line[8], line[1], placement, None)

    def _read(
        self,
        rows: Rows,
        row: Int[Tensor, " tokens"],
        position: Int[Tensor, " tokens"],
        asked: Int[Tensor, " asked"],
        first: int,
        count: int,
    ) -> Float[Tensor, "asked hidden"]:
        """Tokens of prompts, row by row from slot `first` on; hidden states of the asked ones."""
        nothing = torch.zeros_like(row)
        visible = Visible(position + 1, nothing, nothing, nothing, nothing)
        placement = Placement(self.cache, row, position, visible, count, int(position.max()) + 1, first)
        tokens, position = torch.stack((rows.canvas[row + first, position], position)).to(
            self.device, non_blocking=True
        )
        return self.network.forward_cached(tokens, position, placement, asked.to(self.device, non_blocking=True))
