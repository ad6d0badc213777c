"""Variable-length training (LLaDA 1.0, 1 % of the data): now and then a document is cut to a random length."""

from dataclasses import dataclass, replace

import torch

from model.objectives.objective import View, Wrapped
from model.text.batch import Batch


@dataclass(frozen=True)
class VariableLength(Wrapped):
    """Wraps any objective; each document keeps only its first U{1..n} tokens with this `probability`."""

    probability: float

    def corrupt(self, batch: Batch, rng: torch.Generator) -> View:
        """What the base makes of the documents as they were cut."""
        return self.base.corrupt(cut(batch, self.probability, rng), rng)


def cut(batch: Batch, probability: float, rng: torch.Generator) -> Batch:
    """The batch with what lies behind a cut turned into padding."""
    documents = batch.documents.clamp_min(0)
    shape = (len(documents), int(documents.max()) + 1)
    chance, place = torch.rand(2, *shape, generator=rng, device=rng.device).to(documents.device)
    lengths = torch.zeros(shape, device=documents.device).scatter_add_(1, documents, (batch.documents >= 0).float())
    kept = torch.where(chance < probability, (place * lengths).floor() + 1, lengths)
    gone = (batch.documents < 0) | (batch.positions >= kept.gather(1, documents))
    return replace(
        batch,
        documents=torch.where(gone, -1, batch.documents),
        positions=torch.where(gone, 0, batch.positions),
        graded=batch.graded & ~gone,
    )
