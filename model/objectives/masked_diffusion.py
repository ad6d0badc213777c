"""Masked diffusion (LLaDA 1.0, arXiv:2502.09992): hide tokens, read both ways, 1/t-weighted cross-entropy on the hidden ones.

Labels stand at the same position (no shift). Every document of a packed row draws its own t.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.network.documents import FlatDocuments
from model.noise import HidingConfig, complement, draw_hidden, weighed
from model.objectives.flat import document_numbers, flat_rows, with_graded
from model.objectives.head_reading import read_head
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
        return self.view(batch, *self.draw(batch, rng))

    def draw(
        self, batch: Batch, rng: torch.Generator
    ) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch length"]]:
        """What is hidden, document by document, and its weights."""
        return draw_hidden(batch.documents.clamp_min(0), batch.graded, self.hiding, rng)

    def parts(self, batch: Batch) -> Int[Tensor, "batch length"]:
        """Which part of its document a token lies in: tokens of one part, here all, share one t."""
        return torch.zeros_like(batch.positions)

    def view(self, batch: Batch, hidden: Bool[Tensor, "batch length"], weights: Float[Tensor, "batch length"]) -> View:
        """Whole documents with the hidden tokens replaced; complementary copies follow as rows of their own."""
        if self.hiding.complementary:
            inverse, inverse_weights = complement(hidden, batch.graded, weights)
            hidden, weights = torch.cat((hidden, inverse)), torch.cat((weights, inverse_weights))
            batch = Batch(*(torch.cat((values, values)) for values in batch.tensors()))
        documents = document_numbers(batch)
        rows = flat_rows(documents, with_graded(documents, batch.graded))
        graded, targets = rows.take(hidden), rows.take(batch.tokens)
        pattern = FlatDocuments("bidirectional", rows.groups, rows.take(batch.positions), rows.real[None])
        weights, maskable = weighed(rows.take(weights)[graded], batch.graded.sum().float(), self.hiding)
        return View(
            tokens=torch.where(graded, self.mask_token_id, targets),
            positions=pattern.positions,
            pattern=pattern,
            graded=graded,
            targets=targets[graded],
            weights=weights,
            maskable=maskable,
            source=rows.source[graded[0]],
        )

    def score(self, hidden, head: Head, view: View) -> Terms:
        """Weighted cross-entropy on the hidden tokens."""
        return diffusion_terms(read_head(hidden, head, view.targets[:, None]), view)

    def counts(self, view: View) -> dict[str, Tensor]:
        """Maskable tokens, hidden tokens."""
        return diffusion_counts(view)
