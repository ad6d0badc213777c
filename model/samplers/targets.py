"""Where a decoder's proposals come from: a network, and what it remembers of every row.

A source answers for candidate states of every row's current block. Several candidates of one row share its prefix and do not see
each other: that is what speculation asks for, and plain decoding is the case of one candidate.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.network.masks import AttentionPattern
from model.network.transformer import Transformer
from model.samplers.rows import Rows
from model.samplers.sampling import Asked, Proposer
from model.samplers.states import Grid, State

LOGITS_AT_ONCE, LOGITS_IN_CACHE = 2**25, 2**18  # a forward's logits are made, and looked at, so many at a time


@dataclass(frozen=True)
class Proposals:
    """Per candidate block: the proposed token, its doubt (+inf where nothing was asked), top-1/top-2 logit gap and entropy."""

    tokens: Int[Tensor, "*candidates block"]
    doubt: Float[Tensor, "*candidates block"]
    gap: Float[Tensor, "*candidates block"]
    entropy: Float[Tensor, "*candidates block"]
    asked: Asked | None = None
    logits: Float[Tensor, "asked vocabulary"] | None = None  # guided, where a guesser wants to draw from them again

    def __getitem__(self, index) -> "Proposals":
        return Proposals(self.tokens[index], self.doubt[index], self.gap[index], self.entropy[index])


@dataclass(frozen=True)
class SourceSettings:
    """What every source of one decode shares."""

    grid: Grid
    proposer: Proposer
    edits: bool  # shown tokens of the answer are asked too
    keep_logits: bool = False


class Source:
    """Asks a network about candidate states; how rows are laid out is the subclass's part."""

    def __init__(self, network: Transformer, settings: SourceSettings) -> None:
        self.network, self.settings = network, settings
        self.lanes = settings.proposer.sampling.lanes
        self.device = network.embedding.weight.device
        self.tokens_counter = "target_tokens"

    def wanted(
        self, rows: Rows, states: State, valid: Bool[Tensor, "rows candidates"]
    ) -> Bool[Tensor, "rows candidates block"]:
        """The positions that get proposals: hidden ones, and under token editing the answer's shown ones."""
        wanted = states.tokens == rows.mask
        if self.settings.edits:
            wanted = wanted | rows.answerable()[:, None]
        return wanted & valid[:, :, None]

    def describe(self, rows: Rows, states: State, wanted: Bool[Tensor, "rows candidates block"]) -> Asked:
        """The asked positions, in row-major order."""
        row, candidate, offset = wanted.nonzero(as_tuple=True)
        counters = (rows.sample[row], rows.start[row] // rows.block, states.step[row, candidate], offset)
        present = None
        if self.settings.proposer.sampling.repeat_penalty != 1.0:
            present = self._present(rows, states)[row, candidate]
        draws = None if rows.draws is None else rows.draws[row]
        return Asked(row, candidate, offset, torch.stack(counters), present, draws)

    def _present(self, rows: Rows, states: State) -> Bool[Tensor, "rows candidates vocabulary"]:
        """Which tokens stand in the prompt, the finished blocks and the candidate."""
        count, candidates, _ = states.tokens.shape
        mask, width = rows.mask, self.network.unembedding.weight.shape[0]
        finished = torch.arange(rows.canvas.shape[1]) < rows.start[:, None]
        shown = torch.where(finished, rows.canvas[:count], mask)[:, None].expand(-1, candidates, -1)
        present = torch.zeros(count, candidates, max(width, mask + 1), dtype=torch.bool)
        present.scatter_(2, shown, True).scatter_(2, states.tokens, True)
        present[:, :, mask] = False
        return present[:, :, :width]

    def proposals(self, hidden: Tensor, states: State, asked: Asked) -> Proposals:
        """Proposals from the hidden states of the asked positions (given ones, then unconditional ones, under guidance)."""
        shape = states.tokens.shape
        spread = [states.tokens.clone(), *(torch.full(shape, torch.inf, dtype=torch.float64) for _ in range(3))]
        logits = None
        if asked.row.numel():
            found, logits = self._propose(hidden, asked)
            for values, own in zip(spread, found, strict=True):
                values[asked.row, asked.candidate, asked.offset] = own.to(values.dtype)
        return Proposals(*spread, asked, logits)

    def _propose(self, hidden: Tensor, asked: Asked) -> tuple[Float[Tensor, "4 asked"], Tensor | None]:
        """What the proposer says on the host, and the logits if they are to be kept.

        The head answers for many positions at once, for it reads its whole matrix each time; what is done to their logits in
        float64 goes a few positions at a time, so that they stay in a processor's cache. Neither ever fills a device.
        """
        proposer, keep = self.settings.proposer, self.settings.keep_logits
        width, is_cpu = self.network.unembedding.weight.shape[0], self.device.type == "cpu"
        if asked.row.shape[0] * width <= LOGITS_IN_CACHE:
            logits = proposer.guided(self.network.head(hidden), asked)
            kept = logits.clone() if keep else None
            return self._checked(proposer.propose(logits, asked)), kept
        many = max(LOGITS_AT_ONCE // width, 1)
        few = min(max(LOGITS_IN_CACHE // width, 1), many) if is_cpu else many
        found, kept = [], []
        given = hidden.unflatten(0, (self.lanes, -1))
        for first in range(0, asked.row.shape[0], many):
            raw = self.network.head(given[:, first : first + many].flatten(0, 1)).unflatten(0, (self.lanes, -1))
            for begin in range(0, raw.shape[1], few):
                part = asked[first + begin : first + min(begin + few, many)]
                logits = proposer.guided(raw[:, begin : begin + few].flatten(0, 1), part)
                if keep:
                    kept.append(logits.clone())
                found.append(proposer.propose(logits, part))
        return self._checked(torch.cat(found, 1)), torch.cat(kept) if keep else None

    def _checked(self, answers: Float[Tensor, "4 asked"]) -> Float[Tensor, "4 asked"]:
        """On the host; this is the one wait for the device in a step."""
        answers = answers.cpu()
        if answers[1].isnan().any():
            raise ValueError("the network returned NaN logits: its weights are damaged or overflow in this precision")
        return answers


class RecomputingSource(Source):
    """No cache: every forward reads each candidate's whole window, for bidirectional networks the whole canvas. Always exact."""

    def admit(self, rows: Rows, first: int, count: int) -> None:
        """Nothing is remembered."""

    def move(self, source: int, destination: int) -> None:
        """Nothing is remembered."""

    @torch.no_grad()
    def forward(self, rows: Rows, states: State, valid: Bool[Tensor, "rows candidates"]) -> Proposals:
        """Proposals for every valid candidate; each is a batch row of its own."""
        wanted = self.wanted(rows, states, valid)
        asked = self.describe(rows, states, wanted)
        row, candidate = valid.nonzero(as_tuple=True)
        causal = self.network.config.attention == "block_causal"
        lengths = (rows.start + rows.block if causal else rows.total)[row]
        extent = int(lengths.max())
        columns = rows.columns()[row]
        tokens = rows.canvas[row, :extent].scatter(1, columns, states.tokens[row, candidate])
        positions = torch.arange(extent).expand(tokens.shape)
        inside = positions < lengths[:, None]
        where = torch.zeros_like(inside).scatter(1, columns, wanted[row, candidate])
        rows.counters[self.tokens_counter].index_add_(0, row, lengths * self.lanes)
        if self.lanes == 2:
            free = torch.where(positions < rows.prompt_tokens[row, None], rows.mask, tokens)
            tokens, positions, inside = torch.cat((tokens, free)), positions.repeat(2, 1), inside.repeat(2, 1)
            where = where.repeat(2, 1)
        documents = torch.where(inside, 0, -1)
        tokens, positions, documents = torch.stack((tokens, positions, documents)).to(self.device)
        pattern = AttentionPattern(self.network.config.attention, documents, positions, rows.block)
        hidden = self.network(tokens, positions, pattern, asked=where.to(self.device))
        return self.proposals(hidden, states, asked)
