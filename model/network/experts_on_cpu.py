"""A mixture's products and sums on a CPU, where passes over memory cost and kernels do not.

Nothing is touched for an expert without tokens, weighted rows are summed where they lie in cache, and the gradients of the
weights are taken before the last product, where rows are narrow.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Busy = list[tuple[int, int]]  # (expert, number of its rows), for those that have any, in order
_AS_NUMPY = {torch.float32: np.float32, torch.float64: np.float64, torch.bfloat16: np.uint16, torch.float16: np.uint16}


def busy_experts(counts: Int[Tensor, " experts"]) -> Busy:
    """The experts that have rows."""
    return [(expert, count) for expert, count in enumerate(counts.tolist()) if count]


class GroupedLinear(torch.autograd.Function):
    """The first busy expert's rows through its matrix, the next one's through its own, and so on."""

    @staticmethod
    def forward(
        ctx, rows: Float[Tensor, "rows width"], stacked: Float[Tensor, "experts out width"], busy: Busy
    ) -> Float[Tensor, "rows out"]:
        ctx.save_for_backward(rows, stacked)
        ctx.busy = busy
        return _products(rows, stacked.mT, busy)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, stacked = ctx.saved_tensors
        return _products(gradient, stacked, ctx.busy), _outer_products(gradient, rows, stacked, ctx.busy), None


class GroupedSum(torch.autograd.Function):
    """As GroupedLinear, then out[t] = sum over choices c of weights[t, c] * row places[t, c]. `order` sorts pairs (t, c) as the
    rows are sorted."""

    @staticmethod
    def forward(
        ctx,
        rows: Float[Tensor, "rows width"],
        stacked: Float[Tensor, "experts out width"],
        weights: Float[Tensor, "tokens kept"],
        places: Int[Tensor, "tokens kept"],
        order: Int[Tensor, " rows"],
        busy: Busy,
    ) -> Float[Tensor, "tokens out"]:
        ctx.save_for_backward(rows, stacked, weights, places, order)
        ctx.busy = busy
        found = _products(rows, stacked.mT, busy)
        out = weights.new_zeros(weights.shape[0], stacked.shape[1])
        for choice in range(weights.shape[1]):
            out.addcmul_(found.index_select(0, places[:, choice]), weights[:, choice, None])
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, stacked, weights, places, order = ctx.saved_tensors
        scale = weights.flatten().index_select(0, order)[:, None]
        pulled = gradient.to(rows.dtype).index_select(0, order // weights.shape[1])
        unweighted = _products(pulled, stacked, ctx.busy)
        of_scale = (rows * unweighted.to(weights.dtype)).sum(1)
        of_stacked = _outer_products(pulled, (rows * scale).to(rows.dtype), stacked, ctx.busy)
        of_weights = of_scale.index_select(0, places.flatten()).view_as(weights)
        return unweighted.mul_(scale), of_stacked, of_weights, None, None, None


def _products(rows: Tensor, stacked: Tensor, busy: Busy) -> Tensor:
    """Every expert's rows times its matrix [in, out]."""
    out = rows.new_empty(rows.shape[0], stacked.shape[2])
    for (expert, _), part, target in zip(busy, *_split(busy, rows, out), strict=True):
        torch.mm(part, stacked[expert], out=target)
    return out


def _outer_products(left: Tensor, right: Tensor, like: Tensor, busy: Busy) -> Tensor:
    """left^T right of every expert's rows, stacked.

    The rest is zero in memory fresh from the system (calloc), which becomes real where it is written; torch.zeros writes all.
    """
    stacked = torch.from_numpy(np.zeros(like.shape, _AS_NUMPY[like.dtype])).view(like.dtype)
    for (expert, _), one, other in zip(busy, *_split(busy, left, right), strict=True):
        torch.mm(one.t(), other, out=stacked[expert])
    return stacked


def _split(busy: Busy, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    counts = [count for _, count in busy]
    return (tensor.split(counts) for tensor in tensors)
