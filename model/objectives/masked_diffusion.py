"""Masked diffusion (LLaDA 1.0, arXiv:2502.09992): hide tokens, read both ways, 1/t-weighted cross-entropy on the hidden ones.

Labels stand at the same position (no shift). Every document of a packed row draws its own t.
"""

from dataclasses import dataclass, field

import torch

from model.network.masks import AttentionPattern
from model.noise import HidingConfig, draw_hidden
from model.objectives.objective import Head, Terms, View, diffusion_counts, diffusion_terms
from model.text.batch import Batch


@dataclass(frozen=True)
class MaskedDiffusion:
    """The loss is an upper bound of the negative log-likelihood per maskable token (methods section 1)."""

    mask_token_id: int
    hiding: HidingConfig = field(default_factory=HidingConfig)

    @property
    def weights(self) -> dict[str, float]:
        """The bound is the loss; accuracy is only measured."""
        return {"diffusion": 1.0, "accuracy": 0.0}

    def corrupt(self, batch: Batch, rng: torch.Generator) -> View:
        """The batch with a share t of each document's graded tokens replaced by the mask token, read bidirectionally."""
        segments = batch.documents.clamp_min(0)
        hidden, weights = draw_hidden(segments, batch.graded, self.hiding, rng)
        tokens = torch.where(hidden, self.mask_token_id, batch.tokens)
        pattern = AttentionPattern("bidirectional", batch.documents, batch.positions)
        maskable = batch.graded.sum().float()
        return View(tokens, batch.positions, pattern, hidden, batch.tokens[hidden], weights[hidden], maskable)

    def score(self, hidden, head: Head, view: View) -> Terms:
        """Weighted cross-entropy on the hidden tokens."""
        return diffusion_terms(head(hidden), view)

    def counts(self, view: View) -> dict[str, torch.Tensor]:
        """Maskable tokens, hidden tokens."""
        return diffusion_counts(view)
