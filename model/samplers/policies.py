"""Which positions of a block a step writes: small deterministic objects, pure functions of what they are shown.

`doubt` = (1 - confidence) / confidence of the proposed token in float64: it orders positions exactly as confidence does, but
stays resolvable where confidences round to 1. Ties: position ascending. Every policy writes at least one token while any is
hidden. Thresholds are strict (confidence > tau); `inclusive` takes equality too, as Fast-dLLM does.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class BlockView:
    """What a policy may look at: the current state of every row's block and the network's proposals for it."""

    hidden: Bool[Tensor, "rows block"]
    doubt: Float[Tensor, "rows block"]  # +inf where nothing was asked
    step: Int[Tensor, " rows"]  # steps this block has had
    hidden_at_start: Int[Tensor, " rows"]
    entropy: Float[Tensor, "rows block"] | None = None  # nats; only for policies that ask for it
    differs: Bool[Tensor, "rows block"] | None = None  # shown, not of the prompt, and another token is proposed


class Policy(Protocol):
    """`edits`: shown tokens of the answer get proposals too. `needs_entropy`: the view holds entropies. `reads_confidence`: what
    is chosen depends on doubts or entropies."""

    edits: bool
    needs_entropy: bool
    reads_confidence: bool

    def choose(self, view: BlockView) -> Bool[Tensor, "rows block"]:
        """The positions to fill with their proposals in this step."""
        ...

    def finished(self, was_full, is_full, edited, full_steps) -> Bool[Tensor, " rows"]:
        """Rows whose block is done after a step; `full_steps` counts the steps that began with nothing hidden."""
        ...


class RevealOnly:
    """A policy that never touches a shown token: a block is done when nothing is hidden."""

    edits = False
    needs_entropy = False
    reads_confidence = True

    def finished(self, was_full, is_full, edited, full_steps) -> Tensor:
        """Full is done."""
        return is_full


def rank_ascending(doubt: Float[Tensor, "rows block"]) -> Int[Tensor, "rows block"]:
    """0 for the smallest (most confident) position of each row, ties by position."""
    return doubt.argsort(dim=1, stable=True).argsort(dim=1)


def even_split(total: Int[Tensor, " rows"] | int, steps: int, step: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """Tokens due at `step` when `total` are split evenly over `steps`, the remainder to the first steps."""
    return total // steps + (step < total % steps).long()


def surer_than(threshold: float, doubt: Tensor, inclusive: bool = False) -> Tensor:
    """Confidence above the threshold (or equal to it)."""
    bound = 1.0 / threshold - 1.0
    return doubt <= bound if inclusive else doubt < bound


def check_steps(steps: int) -> None:
    """ValueError unless there is at least one step."""
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps {steps} must be a whole number of at least 1: a block needs at least one step")


def check_threshold(threshold: float, name: str = "threshold") -> None:
    """ValueError unless it is a probability above 0."""
    if not 0.0 < threshold <= 1.0:
        raise ValueError(f"{name} {threshold} must lie in (0, 1]")


@dataclass(frozen=True)
class FixedSteps(RevealOnly):
    """LLaDA `generate`: the tokens hidden at block start split evenly over `steps`, most confident first."""

    steps: int

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def choose(self, view: BlockView) -> Tensor:
        """The due number of most confident positions."""
        due = even_split(view.hidden_at_start, self.steps, view.step).clamp_min(1)
        return (rank_ascending(view.doubt) < due[:, None]) & view.hidden


@dataclass(frozen=True)
class UniformTime(RevealOnly):
    """Nano-LLaDA: of what is hidden, round(hidden * s / t) stay hidden, s and t the ends of `steps` equal parts of [0, 1]."""

    steps: int

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def choose(self, view: BlockView) -> Tensor:
        """The most confident positions that are not due to stay hidden; the last step reveals everything."""
        left = (self.steps - view.step).clamp_min(1).double()
        stay = (view.hidden.sum(1) * ((left - 1) / left)).round().long()
        due = (view.hidden.sum(1) - stay).clamp_min(1)
        return (rank_ascending(view.doubt) < due[:, None]) & view.hidden


@dataclass(frozen=True)
class Threshold(RevealOnly):
    """Fast-dLLM: every position with confidence above `threshold`, at least the best one."""

    threshold: float
    inclusive: bool = False

    def __post_init__(self) -> None:
        check_threshold(self.threshold)

    def choose(self, view: BlockView) -> Tensor:
        """All positions sure enough, or the best."""
        sure = surer_than(self.threshold, view.doubt, self.inclusive)
        return (sure | (rank_ascending(view.doubt) == 0)) & view.hidden


@dataclass(frozen=True)
class Hybrid(RevealOnly):
    """LLaDA 2.0: all positions above `threshold` when they are at least as many as the even split of the block asks for,
    otherwise that many most confident ones. The schedule is a floor, not a cap."""

    threshold: float
    steps: int

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        check_steps(self.steps)

    def choose(self, view: BlockView) -> Tensor:
        """The sure ones, or the scheduled number of most confident ones."""
        block = torch.full_like(view.step, view.doubt.shape[1])
        due = even_split(block, self.steps, view.step).clamp_min(1)
        return sure_or_most_confident(self.threshold, due, view)


def sure_or_most_confident(threshold: float, due: Int[Tensor, " rows"], view: BlockView) -> Tensor:
    """The hidden positions above the threshold when they are at least `due`, else the `due` most confident ones."""
    doubt = torch.where(view.hidden, view.doubt, torch.inf)
    sure = surer_than(threshold, doubt)
    enough = sure.sum(1, keepdim=True) >= due[:, None]
    return torch.where(enough, sure, rank_ascending(doubt) < due[:, None]) & view.hidden


@dataclass(frozen=True)
class Factor(RevealOnly):
    """Fast-dLLM: confidences sorted descending, the longest prefix r with (r + 1)(1 - confidence_r) < `factor`, at least one."""

    factor: float

    def __post_init__(self) -> None:
        if not self.factor > 0.0:
            raise ValueError(f"factor {self.factor} must be above 0")

    def choose(self, view: BlockView) -> Tensor:
        """The longest prefix of the confidence order that passes."""
        order = view.doubt.argsort(dim=1, stable=True)
        sorted_doubt = view.doubt.gather(1, order)
        lacking = torch.where(sorted_doubt.isfinite(), sorted_doubt / (1.0 + sorted_doubt), 1.0)  # 1 - confidence
        place = torch.arange(1, view.doubt.shape[1] + 1, device=view.doubt.device)
        passes = (place + 1) * lacking < self.factor
        longest = torch.where(passes, place, 0).amax(1).clamp_min(1)
        return (rank_ascending(view.doubt) < longest[:, None]) & view.hidden


@dataclass(frozen=True)
class EntropyThreshold(RevealOnly):
    """dParallel (arXiv:2509.26488): every position whose predictive entropy is below `nats`, at least the lowest one."""

    nats: float
    needs_entropy = True

    def __post_init__(self) -> None:
        if not self.nats > 0.0:
            raise ValueError(f"nats {self.nats} must be above 0: it is an entropy (0.45 to 0.6 in dParallel)")

    def choose(self, view: BlockView) -> Tensor:
        """All positions certain enough, or the most certain."""
        assert view.entropy is not None
        entropy = torch.where(view.hidden, view.entropy, torch.inf)
        return ((entropy < self.nats) | (rank_ascending(entropy) == 0)) & view.hidden


@dataclass(frozen=True)
class LeftToRight(RevealOnly):
    """One token a step, the first hidden one. A causal network has no other way: its blocks are one position."""

    reads_confidence = False

    def choose(self, view: BlockView) -> Tensor:
        """The first hidden position."""
        return view.hidden & (view.hidden.cumsum(1) == 1)
