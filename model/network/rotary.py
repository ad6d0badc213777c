"""Rotary position embedding, half-split pairing (dimension j turns with j + half), as in Llama and LLaDA."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Rotary(nn.Module):
    """Angles for absolute positions; the table grows when a longer position is asked for."""

    def __init__(self, width: int, base: float, maximum_positions: int) -> None:
        super().__init__()
        self.width, self.base = width, base
        self.register_buffer("table", self._angles(maximum_positions), persistent=False)

    def _angles(self, length: int) -> Float[Tensor, "length half"]:
        frequencies = self.base ** -(torch.arange(0, self.width, 2, dtype=torch.float64) / self.width)
        return (torch.arange(length, dtype=torch.float64)[:, None] * frequencies).float()

    def forward(
        self, positions: Int[Tensor, "batch rows"], dtype: torch.dtype
    ) -> tuple[Float[Tensor, "batch 1 rows width"], Float[Tensor, "batch 1 rows width"]]:
        """Cosine and signed sine of every position's angles, each repeated over both halves."""
        angles = self.table[positions][:, None]
        cosine, sine = angles.cos().to(dtype), angles.sin().to(dtype)
        return torch.cat((cosine, cosine), -1), torch.cat((-sine, sine), -1)


def rotate(
    x: Float[Tensor, "batch heads rows width"],
    cosine: Float[Tensor, "batch 1 rows width"],
    signed_sine: Float[Tensor, "batch 1 rows width"],
) -> Float[Tensor, "batch heads rows width"]:
    """x turned by its position's angles."""
    half = x.shape[-1] // 2
    return x * cosine + torch.cat((x[..., half:], x[..., :half]), -1) * signed_sine
