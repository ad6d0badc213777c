"""Who may attend to whom, as a small description that each backend turns into what it needs.

A pattern names a rule and carries per-row vectors; the dense boolean matrix that torch's SDPA takes on a CPU is built once per
forward from it and shared by all layers.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

KINDS = ("causal", "bidirectional", "block_causal", "block_diffusion")


@dataclass(frozen=True)
class AttentionPattern:
    """An attention rule inside documents; every rule forbids looking into another document or at padding.

    causal: keys at positions up to the query's. bidirectional: the whole document. block_causal: keys in blocks up to
    the query's. block_diffusion: the training mask of block diffusion (arXiv:2503.09573) over `[x_t ; x_0]`: a noisy row
    sees the noisy rows of its own block and the clean rows of earlier blocks; a clean row sees clean rows block-causally.
    """

    kind: str
    documents: Int[Tensor, "batch rows"]  # -1 = padding
    positions: Int[Tensor, "batch rows"]  # inside the document
    block_tokens: int = 1
    # Only for block_diffusion: rows of x_t; where there are several x_t of one x_0, the number of the copy and 0 for x_0.
    noisy: Bool[Tensor, "batch rows"] | Int[Tensor, "batch rows"] | None = None

    def allowed(self) -> Bool[Tensor, "batch 1 rows rows"]:
        """The dense matrix [batch, 1, query, key]; padding rows see themselves alone, so that no softmax is empty."""
        same = self.documents[:, :, None] == self.documents[:, None, :]
        if self.kind == "causal":
            allowed = same & (self.positions[:, None, :] <= self.positions[:, :, None])
        elif self.kind == "bidirectional":
            allowed = same
        else:
            allowed = same & self._blocks_allowed()
        padding = self.documents < 0
        if padding.any():
            itself = torch.eye(padding.shape[1], dtype=torch.bool, device=padding.device)
            allowed = torch.where(padding[:, :, None], itself, allowed)
        return allowed[:, None]

    def _blocks_allowed(self) -> Bool[Tensor, "batch rows rows"]:
        blocks = self.positions // self.block_tokens
        query, key = blocks[:, :, None], blocks[:, None, :]
        if self.kind == "block_causal":
            return key <= query
        assert self.kind == "block_diffusion" and self.noisy is not None
        # With rank = 2 * block (+ 1 for a clean row), a key is visible when it is the query's own (same block, same half)
        # or a clean key whose block lies before (noisy query) or not after (clean query): one comparison each.
        noisy_query, noisy_key = self.noisy[:, :, None], self.noisy[:, None, :]
        own = (noisy_query == noisy_key) & (noisy_key != 0) & (query == key)
        earlier = (noisy_key == 0) & (key < query + (noisy_query == 0).long())
        return own | earlier


def reading_pattern(
    kind: str, documents: Int[Tensor, "batch rows"], positions: Int[Tensor, "batch rows"], block_tokens: int
) -> AttentionPattern:
    """The pattern with which a network of attention `kind` reads plain (not doubled) rows."""
    return AttentionPattern(kind, documents, positions, block_tokens)


def asked_columns(asked: Bool[Tensor, "batch rows"]) -> tuple[Int[Tensor, "batch most"], Bool[Tensor, "batch most"]]:
    """The asked columns of every row in order, padded to the row with most of them, and which are not padding."""
    columns = (~asked).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(1, int(asked.sum(1).max()))]
    return columns, asked.gather(1, columns)
