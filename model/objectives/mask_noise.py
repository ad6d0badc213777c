"""Noise on the mask token's embedding while an AR network is being converted (LLaDA 2.0).

An AR network never trained that row: its norm has decayed, every masked position reads the same small vector, and gradients
explode. Gaussian noise there in the first steps keeps positions apart until the row has been learnt.
"""

from dataclasses import dataclass, replace

import torch

from model.objectives.objective import Head, Objective, Terms, View
from model.text.batch import Batch


@dataclass(frozen=True)
class NoisyMasks:
    """Wraps any diffusion objective; `scale` is the noise's standard deviation, `hidden_size` the embedding's width."""

    base: Objective
    scale: float
    hidden_size: int

    @property
    def weights(self) -> dict[str, float]:
        """The base's."""
        return self.base.weights

    def corrupt(self, batch: Batch, rng: torch.Generator) -> View:
        """The base's view with noise at hidden positions and nowhere else."""
        view = self.base.corrupt(batch, rng)
        size = (*view.tokens.shape, self.hidden_size)
        noise = self.scale * torch.randn(size, generator=rng, device=rng.device).to(view.tokens.device)
        return replace(view, embedding_noise=noise * view.graded[..., None])

    def score(self, hidden, head: Head, view: View) -> Terms:
        """The base's terms."""
        return self.base.score(hidden, head, view)

    def counts(self, view: View) -> dict[str, torch.Tensor] | None:
        """The base's counts."""
        return self.base.counts(view)
