"""Noise on the mask token's embedding while an AR network is being converted (LLaDA 2.0).

An AR network never trained that row: its norm has decayed, every masked position reads the same small vector, and gradients
explode. Gaussian noise there in the first steps keeps positions apart until the row has been learnt.
"""

from dataclasses import dataclass, replace

import torch

from model.objectives.objective import View, Wrapped
from model.text.batch import Batch


@dataclass(frozen=True)
class NoisyMasks(Wrapped):
    """Wraps any diffusion objective; `scale` is the noise's standard deviation, `hidden_size` the embedding's width."""

    scale: float
    hidden_size: int

    def corrupt(self, batch: Batch, rng: torch.Generator) -> View:
        """The base's view with noise at hidden positions and nowhere else."""
        view = self.base.corrupt(batch, rng)
        size = (*view.tokens.shape, self.hidden_size)
        noise = self.scale * torch.randn(size, generator=rng, device=rng.device).to(view.tokens.device)
        return replace(view, embedding_noise=noise * view.graded[..., None])
