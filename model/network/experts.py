"""Mixture of experts as LLaDA 2.0 routes it (methods section 5): every token through its best few experts, run grouped.

Tokens are sorted by expert and all experts are applied by one grouped matrix product, forward and backward, so that an expert
without tokens costs nothing and no kernel is started per expert. No capacity limit, no dropping: rows never influence each other.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from model.network.config import NetworkConfig
from model.network.experts_on_cpu import GroupedLinear, GroupedSum, busy_experts
from model.network.feed_forward import FeedForward, SwiGLU, swiglu


class Router(nn.Module):
    """Sigmoid scores in float32; the biased ones choose, the unbiased ones weigh.

    Experts stand in groups; only the groups with the largest sum of their two best biased scores take part. `expert_bias` has no
    gradient: it stays as it is, or `balance` moves it.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.num_groups, self.kept_groups = config.num_expert_groups, config.groups_per_token
        self.kept, self.scale = config.experts_per_token, config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.register_buffer("expert_bias", torch.zeros(config.num_experts))
        nn.init.normal_(self.weight, std=0.02)

    def forward(
        self, x: Float[Tensor, "tokens hidden"]
    ) -> tuple[Int[Tensor, "tokens kept"], Float[Tensor, "tokens kept"]]:
        """The chosen experts of every token, best biased score first, and their weights (float32)."""
        with torch.autocast(x.device.type, enabled=False):
            wide = torch.promote_types(x.dtype, torch.float32)
            scores = functional.linear(x.to(wide), self.weight.to(wide)).sigmoid()
            chosen = self._choose(scores.detach() + self.expert_bias.to(wide))
            weights = scores.gather(1, chosen)
            if self.kept > 1:
                weights = weights / (weights.sum(1, keepdim=True) + 1e-20)
            return chosen, weights * self.scale

    def _choose(self, biased: Float[Tensor, "tokens experts"]) -> Int[Tensor, "tokens kept"]:
        if self.kept_groups < self.num_groups:
            grouped = biased.unflatten(1, (self.num_groups, -1))
            best = grouped.topk(2, dim=2).values.sum(2).topk(self.kept_groups, dim=1).indices
            closed = torch.ones_like(grouped[:, :, 0], dtype=torch.bool).scatter(1, best, False)
            biased = grouped.masked_fill(closed[:, :, None], float("-inf")).flatten(1)
        return biased.topk(self.kept, dim=1).indices


class MixtureOfExperts(nn.Module):
    """Routed experts, stacked, plus shared experts that every token passes (added unweighted)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        experts, hidden, width = config.num_experts, config.hidden_size, config.expert_feed_forward_size
        self.router = Router(config)
        self.parts = {"gate_up": (width, width)}  # as StackedLinear says it
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, width))
        for stacked in (self.gate_up, self.down):
            nn.init.normal_(stacked, std=0.02)
        shared = config.num_shared_experts
        self.shared = FeedForward(hidden, shared * width, config.feed_forward_bias) if shared else None
        self.load: Int[Tensor, " experts"] | None = None  # no buffer: it belongs to this process and to no checkpoint

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """The mixture's output, same shape. While training, tokens per expert are added to `load`."""
        flat = x.flatten(0, -2)
        chosen, weights = self.router(flat)
        counts = chosen.new_zeros(self.gate_up.shape[0]).scatter_add_(
            0, chosen.flatten(), torch.ones_like(chosen.flatten())
        )
        if self.training and torch.is_grad_enabled():
            self.load = counts if self.load is None else self.load + counts
        mixed = self._routed(flat, chosen, weights, counts).view_as(x)
        return mixed if self.shared is None else mixed + self.shared(x)

    def _routed(self, x: Tensor, chosen: Tensor, weights: Tensor, counts: Tensor) -> Float[Tensor, "tokens hidden"]:
        kept = chosen.shape[1]
        order = chosen.flatten().argsort(stable=True)  # rows (token, choice) by expert
        back = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
        ends = counts.cumsum(0).to(torch.int32)
        rows = _Reorder.apply(x.to(_product_dtype(x)), order, back, kept)
        if type(x) is Tensor and x.device.type == "cpu":  # a tensor without memory (tasks/plan.py) has no counts
            busy = busy_experts(counts)
            wide = swiglu(GroupedLinear.apply(rows, self.gate_up.to(rows.dtype), busy))
            places = back.view_as(weights)
            return GroupedSum.apply(wide, self.down.to(rows.dtype), weights, places, order, busy).to(x.dtype)
        rows = _grouped_linear(SwiGLU.apply(_grouped_linear(rows, self.gate_up, ends)), self.down, ends)
        rows = _Reorder.apply(rows, back, order, 1).unflatten(0, (-1, kept))
        return (rows.to(weights.dtype) * weights[:, :, None]).sum(1).to(x.dtype)


class _Reorder(torch.autograd.Function):
    """Row order[i] // repeats of x at i. The way back is a gather and a sum over the repeats, where autograd's own would be a
    scatter (slow on a CPU, and in an undefined order on a GPU)."""

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, back: Tensor, repeats: int) -> Tensor:
        ctx.save_for_backward(back)
        ctx.repeats = repeats
        return x.index_select(0, order if repeats == 1 else order // repeats)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        rows = gradient.index_select(0, ctx.saved_tensors[0])
        return (rows if ctx.repeats == 1 else rows.unflatten(0, (-1, ctx.repeats)).sum(1)), None, None, None


def _product_dtype(x: Tensor) -> torch.dtype:
    """What a linear layer would compute in: grouped_mm does not follow autocast by itself."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _grouped_linear(
    rows: Float[Tensor, "rows width"], stacked: Float[Tensor, "experts out width"], ends: Int[Tensor, " experts"]
) -> Float[Tensor, "rows out"]:
    """Rows up to ends[0] through the first expert's matrix, up to ends[1] through the second's, and so on."""
    stacked = stacked.to(rows.dtype)
    if rows.dtype == torch.float64:  # grouped_mm has no kernel for it, and proofs of exactness need it
        parts = rows.tensor_split(ends[:-1].long().cpu())
        return torch.cat([part @ matrix.t() for part, matrix in zip(parts, stacked.unbind(0), strict=True)])
    return functional.grouped_mm(rows, stacked.transpose(1, 2), offs=ends)


def mixtures(network: nn.Module) -> Iterator[tuple[int, MixtureOfExperts]]:
    """(layer, mixture) of every layer that has one."""
    for index, layer in enumerate(network.layers):
        if isinstance(layer.feed_forward, MixtureOfExperts):
            yield index, layer.feed_forward


def take_loads(network: nn.Module) -> dict[int, Int[Tensor, " experts"]]:
    """Tokens each expert was given in training forwards since the last call, by layer; counting begins again at zero."""
    loads = {}
    for index, mixture in mixtures(network):
        none = torch.zeros_like(mixture.router.expert_bias, dtype=torch.long)
        loads[index], mixture.load = none if mixture.load is None else mixture.load, None
    return loads


@torch.no_grad()
def balance(network: nn.Module, loads: dict[int, Int[Tensor, " experts"]], step: float) -> None:
    """Moves every expert's bias by `step` towards an even load: up when it had fewer tokens than the mean, down when more
    (arXiv:2408.15664)."""
    for index, mixture in mixtures(network):
        load = loads[index].float()
        mixture.router.expert_bias += step * (load.mean() - load).sign().to(mixture.router.expert_bias.dtype)
