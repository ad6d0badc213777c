"""What a section's `hiding` says: the law that draws what is hidden. No torch here: the first stage checks it before any work."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

SHARES = ("contiguous", "blocks")  # laws that hide a fixed share
DRAWS = ("iid_t", "exact_count", *SHARES)
SCHEDULES = ("linear", "cosine", "cosine_squared")
WEIGHTINGS = ("likelihood", "plain_mean")


@dataclass(frozen=True)
class HidingConfig:
    """Which law draws what is hidden; t is clipped to [minimum_fraction, maximum_fraction] under `iid_t` (the bandwidth).

    schedule (LLaDA 2.0 eq. 2): the share 1 - alpha(t) that time t ~ U hides, weighted by -alpha'(t) / (1 - alpha(t)).
    alpha: `linear` 1 - t, `cosine` 1 - cos(pi/2 (1 - t)) (MDLM), `cosine_squared` cos^2(pi t / 2) (Nano-LLaDA).
    All have the same expected loss.
    weighting: `likelihood` as above over maskable tokens; `plain_mean` over hidden tokens (dFactory), no bound of anything.
    complementary (LLaDA 2.0): beside x_t the network reads its inverse, t' = 1 - t, so that every maskable token is hidden once.
    `contiguous` hides one run of `share` of a segment's maskable tokens, `blocks` that share of its blocks of `span_tokens`
    (Nano-LLaDA's `wsd` hiding); a `ratio_curriculum` moves the share. Neither bounds a likelihood.
    """

    draw: str = "iid_t"
    minimum_fraction: float = 0.001
    maximum_fraction: float = 0.999
    complementary: bool = False
    schedule: str = "linear"
    weighting: str = "likelihood"
    share: float = 0.5  # of contiguous and blocks only
    span_tokens: int = 16  # of blocks only

    def __post_init__(self) -> None:
        if self.draw not in DRAWS:
            raise ValueError(f"hiding.draw '{self.draw}' must be one of {', '.join(DRAWS)}")
        if not 0.0 < self.minimum_fraction < self.maximum_fraction <= 1.0:
            raise ValueError(
                f"the hidden share must satisfy 0 < hiding.minimum_fraction ({self.minimum_fraction}) < "
                f"hiding.maximum_fraction ({self.maximum_fraction}) <= 1"
            )
        if not 0.0 < self.share <= 1.0 or self.span_tokens < 1:
            raise ValueError(
                f"hiding.share {self.share} must lie in (0, 1] and hiding.span_tokens {self.span_tokens} be at least 1"
            )
        for key, known in (("schedule", SCHEDULES), ("weighting", WEIGHTINGS)):
            if getattr(self, key) not in known:
                raise ValueError(f"hiding.{key} '{getattr(self, key)}' must be one of {', '.join(known)}")
        if self.schedule != "linear" and (self.draw != "iid_t" or self.complementary):
            raise ValueError(
                f"hiding.schedule {self.schedule} needs draw iid_t (got {self.draw}) and cannot be complementary: "
                "choose linear, or leave those out"
            )
        if self.complementary and (self.draw != "iid_t" or self.maximum_fraction == 1.0):
            raise ValueError(
                f"hiding.complementary needs draw iid_t and maximum_fraction below 1 (got {self.draw}, {self.maximum_fraction}): "
                "the inverse hides a share of 1 - t and is weighted by its reciprocal"
            )

    @classmethod
    def from_section(cls, values: Mapping[str, Any] | None) -> "HidingConfig":
        """What a section's `hiding` says; ValueError that names an unknown key or a broken rule."""
        known = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping | None):
            raise ValueError(f"hiding is {values!r}: it must map {', '.join(sorted(known))} to values")
        if unknown := sorted(set(values or {}) - known):
            raise ValueError(f"unknown key(s) hiding.{', hiding.'.join(unknown)}; known: {', '.join(sorted(known))}")
        return cls(**(values or {}))
