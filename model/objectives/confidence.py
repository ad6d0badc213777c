"""CAP, confidence-aware parallel training (LLaDA 2.0 eq. 6; dParallel, arXiv:2509.26488): be sure where you are right.

`L_base + lambda * mean_{i in R} H(softmax(z_i / T))`, R = hidden positions whose first guess is right. R carries no gradient,
the entropy does; an empty R costs 0 and stays in the graph.
"""

from dataclasses import dataclass

from model.objectives.head_reading import read_head
from model.objectives.objective import Head, Terms, View, Wrapped, diffusion_terms


@dataclass(frozen=True)
class Confidence(Wrapped):
    """Wraps any diffusion objective; `strength` is the paper's lambda, `temperature` its T."""

    strength: float = 2.0
    temperature: float = 0.5

    def __post_init__(self) -> None:
        if self.strength < 0 or self.temperature <= 0:
            raise ValueError(
                f"CAP needs strength >= 0 (got {self.strength}) and temperature > 0 (got {self.temperature})"
            )

    @property
    def weights(self) -> dict[str, float]:
        """The base's terms and the entropy term."""
        return {**self.base.weights, "entropy": self.strength}

    def score(self, hidden, head: Head, view: View) -> Terms:
        """The base's terms, and the entropy summed over right first guesses; one pass through the head for both."""
        reading = read_head(hidden, head, view.targets[:, None], self.temperature)
        entropy = ((reading.entropy * reading.right).sum(), reading.right.sum().float())
        return {**diffusion_terms(reading, view), "entropy": entropy}

    def counts(self, view: View) -> None:
        """R depends on the network."""
        return None
