"""A network that is a table: the logits of a position are a hash of every shown token, so that no two states look alike."""

from types import SimpleNamespace

import torch

from model.network.config import NetworkConfig
from model.samplers.sampling import gumbel_noise

MASK, EOS, BLOCK = 13, 1, 4
BIAS = torch.zeros(14, dtype=torch.float64)
BIAS[EOS] = -2.0  # answers of some length


class TableNetwork:
    """`agreement`: the share of states at which the table is that of seed 0; elsewhere it is its own. Bidirectional, float64."""

    def __init__(self, seed: int = 0, agreement: float = 1.0, block: int = BLOCK, **changes) -> None:
        self.config = NetworkConfig(
            14, 8, 1, 1, 8, attention="bidirectional", block_tokens=block, mask_token_id=MASK, eos_token_id=EOS, **changes
        )  # fmt: skip
        self.seed, self.agreement = seed, agreement
        self.embedding = SimpleNamespace(weight=torch.zeros(1, dtype=torch.float64))
        self.unembedding = SimpleNamespace(weight=torch.zeros(14, 1))

    def __call__(self, tokens, positions, pattern, asked):
        shown = torch.where(tokens == MASK, 0, (tokens + 1) * (positions * 31 + 7) ** 2)
        row, position = asked.nonzero(as_tuple=True)
        counters = torch.stack((shown.sum(1)[row], position))
        ours = gumbel_noise(self.seed + 1, counters, 14)
        target = gumbel_noise(1, counters, 14)
        agrees = gumbel_noise(5, counters[:1], 1).neg().exp().neg().exp() < self.agreement  # uniform in (0, 1)
        return torch.where(agrees, target, ours) * 2.5 + BIAS

    def head(self, hidden):
        return hidden
