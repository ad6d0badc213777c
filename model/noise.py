"""How much is hidden, its loss weight, and which tokens: drawn per segment with a given generator.

A segment is what shares one hiding probability t: a document (masked diffusion) or a block (block diffusion). methods section 1.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.hiding import HidingConfig


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
    """Which maskable tokens are hidden, and the loss weight of each (1/t; n/k where the count k is fixed); unmaskable ones never.

    Every segment with a maskable token hides at least one (the one with the smallest draw: forcing it biases `iid_t` slightly).
    """
    num_segments = int(segments.max()) + 1
    chance = torch.rand(segments.shape, generator=rng, device=rng.device).to(segments.device)
    chance = torch.where(maskable, chance, 2.0)
    counts = torch.zeros(segments.shape[0], num_segments, device=segments.device)
    counts.scatter_add_(1, segments, maskable.float())
    if config.draw == "exact_count":
        hidden, weight = _exact_count(segments, chance, counts, rng)
    elif config.draw == "contiguous":
        hidden, weight = _contiguous(segments, maskable, counts, config.share, rng)
    elif config.draw == "blocks":
        hidden, weight = _whole_blocks(segments, maskable, counts, chance, config)
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


def _contiguous(segments, maskable, counts, share: float, rng) -> tuple[Tensor, Tensor]:
    """One run of round(share x n) of a segment's n maskable tokens, at least one, its start uniform."""
    length = (counts * share).round().clamp_min(1.0).minimum(counts)
    uniform = torch.rand(counts.shape, generator=rng, device=rng.device).to(segments.device)
    start = (uniform * (counts - length + 1)).floor().minimum(counts - length)
    before = torch.cat((torch.zeros_like(counts[:, :1]), counts.cumsum(1)[:, :-1]), 1)
    rank = maskable.cumsum(1) - 1 - before.gather(1, segments)
    begin = start.gather(1, segments)
    hidden = (rank >= begin) & (rank < begin + length.gather(1, segments))
    return hidden, (counts / length.clamp_min(1.0)).gather(1, segments)


def _whole_blocks(segments, maskable, counts, chance, config: HidingConfig) -> tuple[Tensor, Tensor]:
    """round(share x blocks) of a segment's blocks that hold a maskable token, at least one, each with all its maskable tokens."""
    column = torch.arange(segments.shape[1], device=segments.device).expand(segments.shape)
    first = torch.full_like(counts, segments.shape[1], dtype=torch.long).scatter_reduce_(1, segments, column, "amin")
    inside = column - first.gather(1, segments)
    block = torch.cumsum((inside % config.span_tokens == 0).long(), 1) - 1  # numbered along the row
    shape, most = (len(segments), int(block.max()) + 1), 2.0
    draw = torch.full(shape, most, device=segments.device).scatter_reduce_(
        1, block, chance, "amin"
    )  # of maskable tokens
    owner = torch.zeros(shape, dtype=torch.long, device=segments.device).scatter_(1, block, segments)
    holds = draw < most
    blocks = torch.zeros_like(counts).scatter_add_(1, owner, holds.float())
    wanted = (blocks * config.share).round().clamp_min(1.0)
    rank = (owner.double() * 4.0 + draw.double()).argsort(1).argsort(1)
    every = torch.zeros_like(counts).scatter_add_(1, owner, torch.ones_like(draw)).cumsum(1)
    start = torch.cat((torch.zeros_like(every[:, :1]), every[:, :-1]), 1)
    chosen = holds & (rank - start.gather(1, owner) < wanted.gather(1, owner))
    hidden = chosen.gather(1, block) & maskable
    taken = torch.zeros_like(counts).scatter_add_(1, segments, hidden.float()).clamp_min(1.0)
    return hidden, (counts / taken).gather(1, segments)
