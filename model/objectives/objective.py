"""The seam between a training method and everything else: `corrupt` says what the network reads, `score` what it costs.

The loop, the optimizer, the data and the hooks know nothing about a method; a method knows nothing about them. Losses are
(sum, count) pairs under names; the loop divides once, by counts summed over accumulation steps and processes, so that
accumulation x processes is one big batch (methods section 1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.network.masks import AttentionPattern
from model.objectives.head_reading import Reading
from model.text.batch import Batch

Head = Callable[[Float[Tensor, "*batch hidden"]], Float[Tensor, "*batch vocabulary"]]
Terms = dict[str, tuple[Float[Tensor, ""], Float[Tensor, ""]]]


@dataclass(frozen=True)
class View:
    """What the network reads for one batch, and what of it is graded.

    `graded` marks rows of the view; `targets`, `weights` run over the graded rows in row-major order. `maskable` is the
    number of tokens that could have been graded: the count that a likelihood is normalised by. `source` is where each graded row
    stood in the flattened batch, for objectives that must know.
    """

    tokens: Int[Tensor, "batch rows"]
    positions: Int[Tensor, "batch rows"]
    pattern: AttentionPattern
    graded: Bool[Tensor, "batch rows"]
    targets: Int[Tensor, " graded"]
    weights: Float[Tensor, " graded"]
    maskable: Float[Tensor, ""]
    embedding_noise: Float[Tensor, "batch rows hidden"] | None = None
    source: Int[Tensor, " graded"] | None = None


class Objective(Protocol):
    """A training method. `weights[name]` multiplies sum / count of the term `name` in the loss; 0 makes it a mere measurement."""

    weights: dict[str, float]

    def corrupt(self, batch: Batch, rng: torch.Generator) -> View:
        """What the network reads; everything random about the step is drawn here, from `rng`."""
        ...

    def score(self, hidden: Float[Tensor, "graded hidden"], head: Head, view: View) -> Terms:
        """Named (sum, count) pairs of the graded rows' hidden states; it gets the head, not logits, so a fused loss fits."""
        ...

    def counts(self, view: View) -> dict[str, Tensor] | None:
        """The counts `score` will report, when they follow from the view alone (None: they depend on the network)."""
        ...


@dataclass(frozen=True)
class Wrapped:
    """Passes everything on to `base`: a method that changes one part of another inherits the rest from here."""

    base: Objective

    @property
    def weights(self) -> dict[str, float]:
        """The base's."""
        return self.base.weights

    def corrupt(self, batch: Batch, rng: torch.Generator) -> View:
        """What the base reads."""
        return self.base.corrupt(batch, rng)

    def score(self, hidden: Float[Tensor, "graded hidden"], head: Head, view: View) -> Terms:
        """The base's terms."""
        return self.base.score(hidden, head, view)

    def counts(self, view: View) -> dict[str, Tensor] | None:
        """The base's counts."""
        return self.base.counts(view)


class Drawing(Objective, Protocol):
    """An objective whose `corrupt` is `view` of what `draw` hides, so that others may draw for it or change what it reads."""

    def draw(
        self, batch: Batch, rng: torch.Generator
    ) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch length"]]:
        """What is hidden, and the weight of every place in the loss."""
        ...

    def view(self, batch: Batch, hidden: Bool[Tensor, "batch length"], weights: Float[Tensor, "batch length"]) -> View:
        """What the network reads when that is hidden."""
        ...


def weighted_cross_entropy(reading: Reading, view: View) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sum of weight x cross-entropy (nats, in float32) and the number of right first guesses."""
    return (reading.cross_entropy * view.weights).sum(), reading.right.sum().float()


def diffusion_terms(reading: Reading, view: View) -> Terms:
    """The likelihood bound (weighted sum over maskable tokens) and, for people, the share of hidden tokens guessed right."""
    total, right = weighted_cross_entropy(reading, view)
    return {"diffusion": (total, view.maskable), "accuracy": (right, _num(view.targets))}


def diffusion_counts(view: View) -> dict[str, Tensor]:
    """The counts of `diffusion_terms`."""
    return {"diffusion": view.maskable, "accuracy": _num(view.targets)}


def _num(targets: Tensor) -> Tensor:
    return torch.tensor(float(targets.numel()), device=targets.device)
