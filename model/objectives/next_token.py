"""Next token (autoregressive): mean cross-entropy of token i + 1 given tokens up to i, inside each document."""

from dataclasses import dataclass

import torch

from model.network.masks import AttentionPattern
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
        follows = same & batch.graded[:, 1:]
        graded = torch.cat((follows, torch.zeros_like(follows[:, :1])), 1)
        targets = batch.tokens[:, 1:][follows]
        ones = torch.ones(targets.shape, device=targets.device)
        pattern = AttentionPattern("causal", batch.documents, batch.positions)
        return View(batch.tokens, batch.positions, pattern, graded, targets, ones, ones.sum())

    def score(self, hidden, head: Head, view: View) -> Terms:
        """Cross-entropy summed over graded tokens."""
        total, right = weighted_cross_entropy(read_head(hidden, head, view.targets[:, None]), view)
        return {"next_token": (total, view.maskable), "accuracy": (right, view.maskable)}

    def counts(self, view: View) -> dict[str, torch.Tensor]:
        """Both terms count graded tokens."""
        return {"next_token": view.maskable, "accuracy": view.maskable}
