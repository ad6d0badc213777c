"""Next token (autoregressive): mean cross-entropy of token i + 1 given tokens up to i, inside each document."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from model.network.documents import FlatDocuments
from model.objectives.flat import document_numbers, flat_rows, with_graded
from model.objectives.head_reading import read_head
from model.objectives.objective import Head, Terms, View, weighted_cross_entropy
from model.text.batch import Batch


@dataclass(frozen=True)
class NextToken:
    """The AR objective; with a graded answer only its tokens (each predicted from the token before it) are costed."""

    @property
    def weights(self) -> dict[str, float]:
        """The only term of the loss."""
        return {"next_token": 1.0, "accuracy": 0.0}

    def corrupt(self, batch: Batch, rng: torch.Generator) -> View:
        """Clean tokens, causal; row i is graded when token i + 1 is graded and of the same document."""
        same = (batch.documents[:, 1:] == batch.documents[:, :-1]) & (batch.documents[:, 1:] >= 0)
        follows = functional.pad(same & batch.graded[:, 1:], (0, 1))
        documents = document_numbers(batch)
        rows = flat_rows(documents, with_graded(documents, follows))
        graded, positions = rows.take(follows), rows.take(batch.positions)
        targets = rows.take(batch.tokens.roll(-1, 1))[graded]
        ones = torch.ones(targets.shape, device=targets.device)
        return View(
            tokens=rows.take(batch.tokens),
            positions=positions,
            pattern=FlatDocuments("causal", rows.groups, positions, rows.real[None]),
            graded=graded,
            targets=targets,
            weights=ones,
            maskable=ones.sum(),
            source=rows.source[graded[0]],
        )

    def score(self, hidden, head: Head, view: View) -> Terms:
        """Cross-entropy summed over graded tokens."""
        total, right = weighted_cross_entropy(read_head(hidden, head, view.targets[:, None]), view)
        return {"next_token": (total, view.maskable), "accuracy": (right, view.maskable)}

    def counts(self, view: View) -> dict[str, torch.Tensor]:
        """Both terms count graded tokens."""
        return {"next_token": view.maskable, "accuracy": view.maskable}
