"""Two optional terms beside any diffusion loss: the repeat penalty (Nano-LLaDA) and z-loss; both cost a pass through the head."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

from model.network.documents import FlatDocuments
from model.objectives.objective import Head, Objective, Terms, View
from model.text.batch import Batch


@dataclass(frozen=True)
class Penalties:
    """Wraps any objective whose views are flat rows of documents.

    repeat: unlikelihood, the mean of -log(1 - p(token before)) over hidden positions whose true token differs from it.
    z: the mean of (log of the softmax's normaliser)^2 over hidden positions (PaLM), which keeps logits from drifting.
    """

    base: Objective
    repeat: float = 0.0
    z: float = 0.0

    @property
    def weights(self) -> dict[str, float]:
        """The base's and the two penalties'."""
        return {**self.base.weights, "repeat": self.repeat, "z": self.z}

    def corrupt(self, batch: Batch, rng: torch.Generator) -> View:
        """What the base reads."""
        return self.base.corrupt(batch, rng)

    def score(self, hidden, head: Head, view: View) -> Terms:
        """The base's terms and the penalties."""
        logits = head(hidden).float()
        normaliser = logits.logsumexp(-1)
        before, differs = token_before(view)
        log_repeat = (logits.gather(1, before[:, None])[:, 0] - normaliser)[differs]
        unlikely = -torch.log1p(-log_repeat.exp().clamp_max(1 - 1e-6))
        counts = self._own_counts(view)
        return {
            **self.base.score(hidden, head, view),
            "repeat": (unlikely.sum(), counts["repeat"]),
            "z": (normaliser.square().sum(), counts["z"]),
        }

    def counts(self, view: View) -> dict[str, Tensor] | None:
        """The base's counts, where it knows them, and the penalties'."""
        counts = self.base.counts(view)
        return counts and {**counts, **self._own_counts(view)}

    def _own_counts(self, view: View) -> dict[str, Tensor]:
        return {
            "repeat": token_before(view)[1].sum().float(),
            "z": torch.tensor(float(view.targets.numel()), device=view.targets.device),
        }


def token_before(view: View) -> tuple[Int[Tensor, " graded"], Bool[Tensor, " graded"]]:
    """The true token that stands before each hidden one in its document, and where there is one and it is another token."""
    assert isinstance(view.pattern, FlatDocuments)
    clean = view.tokens.masked_scatter(view.graded, view.targets)
    before = functional.pad(clean[:, :-1], (1, 0))
    sizes = [length for count, length in view.pattern.groups for _ in range(count)]
    begins = torch.zeros_like(view.graded)
    begins[0, torch.tensor([0, *sizes[:-1]], device=begins.device).cumsum(0)] = True
    follows = (functional.pad(view.positions[:, :-1], (1, 0)) + 1 == view.positions) & ~begins
    chosen = before[view.graded]
    return chosen, follows[view.graded] & (chosen != view.targets)
