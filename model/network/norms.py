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
        return functional.rms_norm(x, self.shape, self.weight, self.epsilon)
