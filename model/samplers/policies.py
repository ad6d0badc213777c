"""Which hidden positions a step reveals: small deterministic objects over (doubt, step, hidden at the block's start).

`doubt` = (1 - confidence) / confidence of the proposed token in float64: it orders positions exactly as confidence does, but
stays resolvable where confidences round to 1. Ties: position ascending. Every policy reveals at least one token while any is
hidden.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Policy(Protocol):
    """A pure function of the state; `doubt` is +inf where nothing is hidden."""

    def reveal(
        self, doubt: Float[Tensor, "rows block"], step: Int[Tensor, " rows"], hidden_at_start: Int[Tensor, " rows"]
    ) -> Bool[Tensor, "rows block"]:
        """The positions to fill with their proposals in this step."""
        ...


def rank_by_confidence(doubt: Float[Tensor, "rows block"]) -> Int[Tensor, "rows block"]:
    """0 for the most confident position of each row, ties by position."""
    return doubt.argsort(dim=1, stable=True).argsort(dim=1)


def even_split(total: Int[Tensor, " rows"] | int, steps: int, step: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """Tokens due at `step` when `total` are split evenly over `steps`, the remainder to the first steps."""
    return total // steps + (step < total % steps).long()


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps {steps} must be at least 1: a block needs at least one step")


def _check_threshold(threshold: float) -> None:
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"threshold {threshold} must lie in (0, 1]")


@dataclass(frozen=True)
class FixedSteps:
    """LLaDA `generate`: the tokens hidden at block start split evenly over `steps`, most confident first."""

    steps: int

    def __post_init__(self) -> None:
        _check_steps(self.steps)

    def reveal(self, doubt: Tensor, step: Tensor, hidden_at_start: Tensor) -> Tensor:
        """The due number of most confident positions."""
        due = even_split(hidden_at_start, self.steps, step).clamp_min(1)
        return (rank_by_confidence(doubt) < due[:, None]) & doubt.isfinite()


@dataclass(frozen=True)
class Threshold:
    """Fast-dLLM: every position with confidence above `threshold`, at least the best one."""

    threshold: float

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)

    def reveal(self, doubt: Tensor, step: Tensor, hidden_at_start: Tensor) -> Tensor:
        """All positions sure enough, or the best."""
        sure = doubt < 1.0 / self.threshold - 1.0
        return (sure | (rank_by_confidence(doubt) == 0)) & doubt.isfinite()


@dataclass(frozen=True)
class Hybrid:
    """LLaDA 2.0: all positions above `threshold` when they are at least as many as the even split of the block asks for,
    otherwise that many most confident ones. The schedule is a floor, not a cap."""

    threshold: float
    steps: int

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)
        _check_steps(self.steps)

    def reveal(self, doubt: Tensor, step: Tensor, hidden_at_start: Tensor) -> Tensor:
        """The sure ones, or the scheduled number of most confident ones."""
        block = torch.full_like(step, doubt.shape[1])
        due = even_split(block, self.steps, step).clamp_min(1)[:, None]
        sure = doubt < 1.0 / self.threshold - 1.0
        enough = sure.sum(1, keepdim=True) >= due
        return torch.where(enough, sure, rank_by_confidence(doubt) < due) & doubt.isfinite()
