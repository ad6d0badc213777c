"""Attention across the documents of a packed row: what document-level attention (LLaDA 2.0) is compared with."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from model.objectives.objective import Drawing, View, Wrapped
from model.text.batch import Batch


@dataclass(frozen=True)
class WithinRow(Wrapped):
    """Hides the same tokens with the same weights as the base, but the network reads the row as one document."""

    base: Drawing

    def corrupt(self, batch: Batch, rng: torch.Generator) -> View:
        """The view of the joined row."""
        return self.view(batch, *self.draw(batch, rng))

    def draw(
        self, batch: Batch, rng: torch.Generator
    ) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch length"]]:
        """The base's draw: documents keep a t of their own."""
        return self.base.draw(batch, rng)

    def view(self, batch: Batch, hidden: Bool[Tensor, "batch length"], weights: Float[Tensor, "batch length"]) -> View:
        """The base's view of the joined row."""
        return self.base.view(joined(batch), hidden, weights)


def joined(batch: Batch) -> Batch:
    """Every row as one document; positions count from the row's start."""
    real = batch.documents >= 0
    column = torch.arange(real.shape[1], device=real.device).expand(real.shape)
    return replace(batch, documents=real.long() - 1, positions=torch.where(real, column, 0))
