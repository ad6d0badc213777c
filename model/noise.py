"""How much is hidden, its loss weight, and which tokens: drawn per segment with a given generator.

A segment is what shares one hiding probability t: a document (masked diffusion) or a block (block diffusion). methods section 1.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

DRAWS = ("iid_t", "exact_count")
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
    """

    draw: str = "iid_t"
    minimum_fraction: float = 0.001
    maximum_fraction: float = 0.999
    complementary: bool = False
    schedule: str = "linear"
    weighting: str = "likelihood"

    def __post_init__(self) -> None:
        if self.draw not in DRAWS:
            raise ValueError(f"draw '{self.draw}' must be one of {', '.join(DRAWS)}")
        if not 0.0 < self.minimum_fraction < self.maximum_fraction <= 1.0:
            raise ValueError(
                f"the hidden share must satisfy 0 < minimum_fraction ({self.minimum_fraction}) < "
                f"maximum_fraction ({self.maximum_fraction}) <= 1"
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


def complement(
    hidden: Bool[Tensor, "batch length"],
    maskable: Bool[Tensor, "batch length"],
    weights: Float[Tensor, "batch length"],
) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch length"]]:
    """What the inverse hides, every maskable token that `hidden` shows, and its loss weight 1 / (1 - t)."""
    return maskable & ~hidden, 1.0 / (1.0 - 1.0 / weights)


def draw_hidden(
    segments: Int[Tensor, "batch length"],
    maskable: Bool[Tensor, "batch length"],
    config: HidingConfig,
    rng: torch.Generator,
) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch length"]]:
    """Which maskable tokens are hidden, and the loss weight of each (1/t, or n/k under exact_count); unmaskable ones never.

    Every segment with a maskable token hides at least one (the one with the smallest draw: forcing it biases `iid_t` slightly).
    """
    num_segments = int(segments.max()) + 1
    chance = torch.rand(segments.shape, generator=rng, device=rng.device).to(segments.device)
    chance = torch.where(maskable, chance, 2.0)
    counts = torch.zeros(segments.shape[0], num_segments, device=segments.device)
    counts.scatter_add_(1, segments, maskable.float())
    if config.draw == "exact_count":
        hidden, weight = _exact_count(segments, chance, counts, rng)
    else:
        hidden, weight = _iid(segments, chance, num_segments, config, rng)
    return hidden & maskable, weight


def _iid(segments, chance, num_segments: int, config: HidingConfig, rng) -> tuple[Tensor, Tensor]:
    low, high = config.minimum_fraction, config.maximum_fraction
    shape = (segments.shape[0], num_segments)
    # Stratified over the whole batch: every t is still uniform, their spread over a batch is even (lower variance of the loss).
    order = torch.randperm(shape[0] * num_segments, generator=rng, device=rng.device).to(segments.device)
    offset = torch.rand((), generator=rng, device=rng.device).to(segments.device)
    uniform = ((order.float() + offset) / order.numel()).view(shape)
    fraction, weight = hidden_share(uniform, low, high, config.schedule)
    smallest = torch.full(shape, 3.0, device=segments.device).scatter_reduce_(1, segments, chance, "amin")
    own_fraction = fraction.gather(1, segments)
    hidden = (chance < own_fraction) | (chance == smallest.gather(1, segments))
    return hidden, weight.gather(1, segments)


def hidden_share(
    uniform: Float[Tensor, "*any"], low: float, high: float, schedule: str
) -> tuple[Float[Tensor, "*any"], Float[Tensor, "*any"]]:
    """The share to hide, in [low, high], and its loss weight, of uniform numbers spread over the times whose shares those are.

    With s = 1 - alpha the weight is s'(t) / s(t), times (time span) / (high - low): 1 where every share is allowed.
    """
    if schedule == "linear":
        share = uniform * (high - low) + low
        return share, 1.0 / share
    power = {"cosine": 1, "cosine_squared": 2}[schedule]  # s = sin^power(pi t / 2)
    start, end = (math.asin(bound ** (1 / power)) for bound in (low, high))
    angle = uniform * (end - start) + start
    return angle.sin() ** power, power * (end - start) / (high - low) / angle.tan()


def weighed(
    weights: Float[Tensor, " hidden"], maskable: Float[Tensor, ""], config: HidingConfig
) -> tuple[Float[Tensor, " hidden"], Float[Tensor, ""]]:
    """Loss weights of the hidden tokens, and what their sum is divided by."""
    if config.weighting == "likelihood":
        return weights, maskable
    return torch.ones_like(weights), torch.tensor(float(weights.numel()), device=weights.device)


def _exact_count(segments, chance, counts, rng) -> tuple[Tensor, Tensor]:
    uniform = torch.rand(counts.shape, generator=rng, device=rng.device).to(segments.device)
    chosen = (uniform * counts).floor().clamp_max((counts - 1).clamp_min(0)) + 1  # U{1..n}
    key = segments.double() * 4.0 + chance.double()  # chance < 4: sorts by segment, then by draw
    rank = key.argsort(dim=1).argsort(dim=1)
    first = torch.zeros_like(counts).scatter_add_(1, segments, torch.ones_like(chance)).cumsum(1)
    start = torch.cat((torch.zeros_like(first[:, :1]), first[:, :-1]), 1)
    hidden = (rank - start.gather(1, segments)) < chosen.gather(1, segments)
    return hidden, (counts / chosen).gather(1, segments)
