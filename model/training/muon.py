"""Muon: momentum, orthogonalised matrix by matrix (Jordan 2024), at AdamW's step size (arXiv:2502.16982).

torch.optim.Muon iterates in bfloat16, one matrix at a time, and takes a stacked matrix for one. Here equal shapes go through
one batched product in the gradient's own precision, and every part of a stacked projection is a matrix of its own: at the
`tiny` preset's sizes that took 332 ms a step instead of 382 without bfloat16 units, and learnt faster (docs/log.md, 2026-11-25).
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's: steepest at zero; singular values end between 0.7 and 1.2
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Groups of weights [*stack, rows, columns] that share `parts`, the row counts of the matrices stacked in them."""

    def __init__(self, groups: list[dict], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update of every weight that has a gradient: Nesterov momentum, decoupled decay."""
        assert closure is None
        by_shape: dict[tuple, list[tuple[Tensor, Tensor, float]]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = self._nesterov(parameter, group["momentum"])
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                if hasattr(parameter, "device_mesh"):
                    _add_gathered(update, parameter, group["parts"], group["lr"])
                    continue
                for matrix, target in _matrices(update, parameter, group["parts"]):
                    by_shape.setdefault(matrix.shape, []).append((matrix, target, group["lr"]))
        for shape, items in by_shape.items():
            updates = orthogonalised(torch.stack([matrix for matrix, _, _ in items]))
            for update, (_, target, rate) in zip(updates, items, strict=True):
                target.add_(update, alpha=-rate * _scale(shape))

    def _nesterov(self, parameter: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1.0 - momentum)
        return parameter.grad.lerp(state["momentum"], momentum)


def _scale(shape: tuple[int, ...]) -> float:
    """An orthogonal matrix has entries of size 1 / sqrt(longer side); AdamW's updates have about 0.2."""
    return 0.2 * max(shape) ** 0.5


def _add_gathered(update: Tensor, parameter: Tensor, parts: tuple[int, ...] | None, rate: float) -> None:
    """The update of a parameter cut over processes (DTensor): each gathers one whole weight at a time and keeps its own part.

    The iterations are done by every process; what it costs beside AdamW grows with the number of processes.
    """
    from torch.distributed.tensor import distribute_tensor

    whole = update.full_tensor()
    for matrix, target in list(_matrices(whole, whole, parts)):
        target.copy_(orthogonalised(matrix[None])[0].mul_(_scale(matrix.shape)))
    own = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.add_(own, alpha=-rate)


def _matrices(update: Tensor, parameter: Tensor, parts: tuple[int, ...] | None) -> Iterator[tuple[Tensor, Tensor]]:
    sizes = list(parts or (parameter.shape[-2],))
    for piece, target in zip(update.split(sizes, -2), parameter.split(sizes, -2), strict=True):
        stacked = piece.dim() == 3  # experts
        yield from zip(piece, target, strict=True) if stacked else [(piece, target)]


def orthogonalised(matrices: Float[Tensor, "stack rows columns"]) -> Float[Tensor, "stack rows columns"]:
    """U V^T of every matrix U S V^T, nearly: singular values between 0.7 and 1.2."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
