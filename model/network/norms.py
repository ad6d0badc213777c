"""Root-mean-square normalisation (Zhang and Sennrich, arXiv:1910.07467) in the three forms that public networks use."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.Module):
    """x / rms(x), computed in float32 and cast back to x's dtype; `kind` says when the weight is multiplied in, if there is one.

    rms: before the cast. rms_cast_first: after it, in x's dtype. rms_unweighted: never.
    """

    def __init__(self, width: int, epsilon: float, kind: str) -> None:
        super().__init__()
        self.shape, self.epsilon, self.kind = (width,), epsilon, kind
        self.register_parameter("weight", None if kind == "rms_unweighted" else nn.Parameter(torch.ones(width)))

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """The normalised states, same shape."""
        if self.kind == "rms_cast_first" and x.dtype.itemsize < 4:
            return functional.rms_norm(x, self.shape, None, self.epsilon) * self.weight
        if x.device.type == "cpu" and x.dtype == torch.float32 and self.weight is not None and torch.is_grad_enabled():
            return _TrainedOnCpu.apply(x, self.weight, self.epsilon)
        return functional.rms_norm(x, self.shape, self.weight, self.epsilon)


class _TrainedOnCpu(torch.autograd.Function):
    """The same in seven passes over memory instead of autograd's sixteen: torch has a fused kernel on GPUs only."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = square.div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normal = x * scale
        of_weight = (gradient * normal).flatten(0, -2).sum(0)
        of_normal = gradient * weight
        along = torch.linalg.vecdot(of_normal, normal)[..., None].div_(x.shape[-1])
        return of_normal.addcmul_(normal, along, value=-1).mul_(scale), of_weight, None
