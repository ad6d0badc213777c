"""How many steps ahead it pays to guess, from what guessing costs and how often it was right."""

from collections.abc import Mapping
from dataclasses import dataclass, field


def speed_up(acceptance: float, depth: int, row_cost: float, draft_cost: float, free_guesses: int = 0) -> float:
    """S(k) = E / (v(k) + c d(k)) of methods section 3: plain forwards replaced per target forward, over what that one costs.

    E = 1 + a + ... + a^k steps at a match probability a; v(k) = 1 + row_cost k, 0 where reading the weights is all that costs and
    1 where computing is; d(k) draft forwards of draft_cost target forwards each: a chain's `free_guesses` first ones cost none.
    """
    steps = sum(acceptance**level for level in range(depth + 1))
    return steps / (1.0 + row_cost * depth + draft_cost * max(depth - free_guesses, 0))


@dataclass
class AdaptiveDepth:
    """The depth that the measured acceptance makes best: the argmax of `speed_up`.

    `by_rows`: draft and row cost as they were measured with a number of live rows, instead of `draft_cost` and `row_cost`. When
    guessing does not pay, one forward in `probe_every` still guesses, to notice when it would.
    """

    maximum: int = 8
    draft_cost: float = 0.5
    row_cost: float = 0.1
    probe_every: int = 16
    by_rows: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    free_guesses: int = 0
    tried: float = field(default=0.0, init=False)
    matched: float = field(default=0.0, init=False)
    forwards: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        checked_depth(self.maximum)

    @property
    def acceptance(self) -> float:
        """The share of right guesses measured so far (one imagined success and failure at the start)."""
        return (self.matched + 1.0) / (self.tried + 2.0)

    def speed_up(self, depth: int, rows: int = 1) -> float:
        """S(depth) for so many live rows at the acceptance measured so far."""
        draft_cost, row_cost = self.draft_cost, self.row_cost
        if self.by_rows:
            enough = [count for count in self.by_rows if count >= rows]
            draft_cost, row_cost = self.by_rows[min(enough, default=max(self.by_rows))]
        return speed_up(self.acceptance, depth, row_cost, draft_cost, self.free_guesses)

    def best(self, rows: int = 1) -> int:
        """The depth that promises most; 0: better not guess."""
        return max(range(self.maximum + 1), key=lambda depth: self.speed_up(depth, rows))

    def now(self, rows: int = 1) -> int:
        """The depth for the next forward over so many live rows."""
        self.forwards += 1
        best = self.best(rows)
        return best or int(self.forwards % self.probe_every == 0)

    def record(self, tried: int, matched: int) -> None:
        """Count guesses; older ones fade, so that the depth follows the text."""
        self.tried, self.matched = 0.98 * self.tried + tried, 0.98 * self.matched + matched


def checked_depth(depth: int) -> int:
    """The depth; ValueError below 1."""
    if depth < 1:
        raise ValueError(f"speculation depth {depth} must be at least 1")
    return depth
