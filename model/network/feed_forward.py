"""The dense feed-forward of a layer, and of one shared expert."""

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
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(functional.silu(gate) * up)
