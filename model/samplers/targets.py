"""Where a decoder's proposals come from: a network and what it remembers of every row.

A target answers for candidate states of a row's current block. Several candidates of one row share the row's prefix and do not
see each other: that is what speculation asks for, and plain decoding is the case of one candidate.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.network.cache import NewKeysValues, PrefixCache
from model.network.masks import AttentionPattern, reading_pattern
from model.network.transformer import Transformer


@dataclass
class Proposals:
    """Per candidate block: the proposed token, its doubt (+inf where nothing is hidden) and its top-1/top-2 logit gap."""

    tokens: Int[Tensor, "rows candidates block"]
    doubt: Float[Tensor, "rows candidates block"]
    gap: Float[Tensor, "rows candidates block"]
    keys_values: NewKeysValues | None = None


@torch.no_grad()
def propose(network: Transformer, hidden: Float[Tensor, "asked width"], states: Int[Tensor, "rows block"]) -> tuple:
    """Tokens, doubt and gap [rows, block] from the hidden states of the masked positions, the only ones with logits.

    The mask token is never proposed. Sums run in float64 over the other tokens, so a doubt of 1e-30 is still exact.
    """
    config = network.config
    masked = states == config.mask_token_id
    logits = network.head(hidden).double()
    if logits.isnan().any():
        raise ValueError("the network returned NaN logits: the weights are damaged or overflow in this precision")
    logits[:, config.mask_token_id] = -torch.inf
    best, token = logits.max(-1)
    logits.scatter_(1, token[:, None], -torch.inf)
    second = logits.amax(-1)
    doubt = (logits - best[:, None]).exp().sum(-1)

    def spread(values: Tensor, fill: float) -> Tensor:
        return torch.full(states.shape, fill, dtype=values.dtype, device=values.device).masked_scatter(masked, values)

    tokens = states.masked_scatter(masked, token)
    return tokens, spread(doubt, torch.inf), spread(best - second, torch.inf)


class CachedTarget:
    """A block-causal network with an exact prefix cache: a forward reads only the candidates."""

    def __init__(self, network: Transformer, num_slots: int, capacity: int) -> None:
        self.network, self.block = network, network.config.block_tokens
        device, dtype = network.embedding.weight.device, network.embedding.weight.dtype
        self.cache = PrefixCache(network.config, num_slots, capacity, device, dtype)
        self.needs_commit = True

    @torch.no_grad()
    def admit(self, slots: Int[Tensor, " rows"], prompts: list[list[int]], totals: Int[Tensor, " rows"]) -> int:
        """Forget the slots, read every full block of the prompts; returns the number of forwards (0 or 1)."""
        self.cache.clear(slots)
        full = torch.tensor([len(prompt) // self.block * self.block for prompt in prompts])
        longest = int(full.max())
        if longest == 0:
            return 0
        padded = [prompt[:longest] + [0] * (longest - len(prompt)) for prompt in prompts]
        tokens = torch.tensor(padded, device=slots.device)
        positions = torch.arange(longest, device=slots.device).expand(len(prompts), -1)
        pattern = reading_pattern("block_causal", torch.zeros_like(tokens), positions, self.block)
        part = (self.cache, slots, 0)
        _, new = self.network.forward_cached(tokens, positions, pattern.allowed(), part)
        self.cache.append(slots, new, full.to(slots.device))
        return 1

    @torch.no_grad()
    def forward(
        self, slots: Int[Tensor, " rows"], states: Int[Tensor, "rows candidates block"], starts: Tensor
    ) -> Proposals:
        """Proposals for every candidate from one forward of candidates x block rows over the shared prefix."""
        rows, candidates, block = states.shape
        extent = int(self.cache.lengths[slots].max())
        positions = (starts[:, None] + torch.arange(block, device=slots.device)).repeat(1, candidates)
        own = torch.block_diag(*[torch.ones(block, block, dtype=torch.bool)] * candidates).to(slots.device)
        prefix = self.cache.visible(slots, extent)[:, None, :].expand(-1, candidates * block, -1)
        allowed = torch.cat((prefix, own.expand(rows, -1, -1)), 2)[:, None]
        flat = states.flatten(1)
        asked = flat == self.network.config.mask_token_id
        hidden, new = self.network.forward_cached(flat, positions, allowed, (self.cache, slots, extent), asked)
        tokens, doubt, gap = propose(self.network, hidden, states.view(rows * candidates, block))
        return Proposals(tokens.view(states.shape), doubt.view(states.shape), gap.view(states.shape), new)

    def commit(
        self, slots, starts, blocks, rows: Int[Tensor, " n"], picked: Int[Tensor, " n"], proposals: Proposals
    ) -> None:
        """Keep the keys and values of candidate picked[i] of forward row rows[i] behind slot slots[i]'s prefix."""
        offsets = picked[:, None] * self.block + torch.arange(self.block, device=slots.device)
        index = offsets[:, None, :, None]

        def slice_of(values: Tensor) -> Tensor:
            chosen = values[rows]
            return chosen.gather(2, index.expand(-1, chosen.shape[1], -1, chosen.shape[3]))

        assert proposals.keys_values is not None
        new = [(slice_of(keys), slice_of(values)) for keys, values in proposals.keys_values]
        self.cache.append(slots, new, torch.full_like(slots, self.block))


class CanvasTarget:
    """A bidirectional network: every forward reads the whole canvas, later blocks included (as masks). No cache, so exact."""

    def __init__(self, network: Transformer, num_slots: int, capacity: int) -> None:
        self.network, self.block = network, network.config.block_tokens
        device = network.embedding.weight.device
        self.canvas = torch.full((num_slots, capacity), network.config.mask_token_id, device=device)
        self.lengths = torch.zeros(num_slots, dtype=torch.long, device=device)
        self.needs_commit = False

    def admit(self, slots: Int[Tensor, " rows"], prompts: list[list[int]], totals: Int[Tensor, " rows"]) -> int:
        """Lay out prompt and masks; `totals` is each row's canvas length (a multiple of the block)."""
        self.canvas[slots] = self.network.config.mask_token_id
        for slot, prompt in zip(slots.tolist(), prompts, strict=True):
            self.canvas[slot, : len(prompt)] = torch.tensor(prompt, device=slots.device)
        self.lengths[slots] = totals
        return 0

    @torch.no_grad()
    def forward(
        self, slots: Int[Tensor, " rows"], states: Int[Tensor, "rows candidates block"], starts: Tensor
    ) -> Proposals:
        """Proposals for every candidate; each candidate is a canvas row of its own."""
        _, candidates, block = states.shape
        extent = int(self.lengths[slots].max())
        canvas = self.canvas[slots, :extent].repeat_interleave(candidates, 0)
        columns = starts.repeat_interleave(candidates)[:, None] + torch.arange(block, device=slots.device)
        canvas.scatter_(1, columns, states.view(-1, block))
        positions = torch.arange(extent, device=slots.device).expand(canvas.shape)
        inside = positions < self.lengths[slots].repeat_interleave(candidates)[:, None]
        pattern = AttentionPattern("bidirectional", torch.where(inside, 0, -1), positions)
        asked = torch.zeros_like(inside).scatter(
            1, columns, states.view(-1, block) == self.network.config.mask_token_id
        )
        hidden = self.network(canvas, positions, pattern, asked=asked)
        tokens, doubt, gap = propose(self.network, hidden, states.view(-1, block))
        return Proposals(tokens.view(states.shape), doubt.view(states.shape), gap.view(states.shape))

    def commit(self, slots, starts, blocks: Int[Tensor, "n block"], rows, picked, proposals: Proposals | None) -> None:
        """Put finished blocks on the canvas; nothing else needs to be kept."""
        columns = starts[:, None] + torch.arange(self.block, device=slots.device)
        self.canvas[slots[:, None], columns] = blocks
