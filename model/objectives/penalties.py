"""Two optional terms beside any diffusion loss: the repeat penalty (Nano-LLaDA) and z-loss; both cost a pass through the head."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional

from model.network.documents import FlatDocuments
from model.objectives.head_reading import read_head
from model.objectives.objective import Head, Terms, View, Wrapped


@dataclass(frozen=True)
class Penalties(Wrapped):
    """Wraps any objective whose views are flat rows of documents.

    repeat: unlikelihood, the mean of -log(1 - p(true token)) over hidden positions that repeat the token before them in their
    document; `ignored` ids (EOS fills blocks) never count.
    z: the mean of (log of the softmax's normaliser)^2 over hidden positions (PaLM), which keeps logits from drifting.
    """

    repeat: float = 0.0
    z: float = 0.0
    ignored: tuple[int, ...] = ()

    @property
    def weights(self) -> dict[str, float]:
        """The base's and the two penalties'."""
        return {**self.base.weights, "repeat": self.repeat, "z": self.z}

    def score(self, hidden, head: Head, view: View) -> Terms:
        """The base's terms and the penalties."""
        reading = read_head(hidden, head, view.targets[:, None])
        probability = (-reading.cross_entropy[repeats(view, self.ignored)]).exp()
        unlikely = -torch.log1p(-probability.clamp_max(1 - 1e-6))
        counts = self._own_counts(view)
        return {
            **self.base.score(hidden, head, view),
            "repeat": (unlikely.sum(), counts["repeat"]),
            "z": (reading.normaliser.square().sum(), counts["z"]),
        }

    def counts(self, view: View) -> dict[str, Tensor] | None:
        """The base's counts, where it knows them, and the penalties'."""
        counts = self.base.counts(view)
        return counts and {**counts, **self._own_counts(view)}

    def _own_counts(self, view: View) -> dict[str, Tensor]:
        return {
            "repeat": repeats(view, self.ignored).sum().float(),
            "z": torch.tensor(float(view.targets.numel()), device=view.targets.device),
        }


def repeats(view: View, ignored: tuple[int, ...]) -> Bool[Tensor, " graded"]:
    """Which hidden tokens are the same as the token right before them in their document, as far as the view holds it."""
    assert isinstance(view.pattern, FlatDocuments)
    clean = view.tokens.masked_scatter(view.graded, view.targets)
    sizes = [length for count, length in view.pattern.groups for _ in range(count)]
    begins = torch.zeros_like(view.graded)
    begins[0, torch.tensor([0, *sizes[:-1]], device=begins.device).cumsum(0)] = True
    follows = (functional.pad(view.positions[:, :-1], (1, 0)) + 1 == view.positions) & ~begins
    same = follows & (functional.pad(clean[:, :-1], (1, 0)) == clean)
    return same[view.graded] & ~torch.isin(view.targets, view.targets.new_tensor(ignored))
