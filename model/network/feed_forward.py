"""The dense feed-forward of a layer, and of one shared expert."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class StackedLinear(nn.Linear):
    """Several matrices that read the same input, as one product. `parts[name]`: row counts of the matrices in a weight."""

    def __init__(self, in_features: int, parts: tuple[int, ...], bias: bool = False) -> None:
        super().__init__(in_features, sum(parts), bias=bias)
        self.parts = {"weight": parts}


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate x) * up x), gate and up in one matrix."""

    def __init__(self, hidden_size: int, feed_forward_size: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_up = StackedLinear(hidden_size, (feed_forward_size, feed_forward_size), bias=bias)
        self.down = nn.Linear(feed_forward_size, hidden_size, bias=bias)

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """The transformed states, same shape."""
        return self.down(swiglu(self.gate_up(x)))


def swiglu(gate_up: Float[Tensor, "*batch twice"]) -> Float[Tensor, "*batch once"]:
    """silu(gate) * up of [gate ; up], which nobody else may need: without a way back it is overwritten."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return SwiGLU.apply(gate_up)
    gate, up = gate_up.chunk(2, -1)
    if torch.compiler.is_compiling():  # one pass, whatever is written here
        return functional.silu(gate) * up
    return functional.silu(gate, inplace=True).mul_(up)


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up of [gate ; up]. Keeps its input alone, and writes both gradients into one tensor."""

    @staticmethod
    def forward(ctx, gate_up: Float[Tensor, "*batch twice"]) -> Float[Tensor, "*batch once"]:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        both = torch.empty_like(gate_up)
        of_gate, of_up = both.chunk(2, -1)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=of_gate)
        torch.mul(functional.silu(gate), gradient, out=of_up)
        return both
