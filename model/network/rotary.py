"""Rotary position embedding, half-split pairing (dimension j turns with j + half), as in Llama and LLaDA."""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

SCALINGS = ("linear", "yarn", "llama3")


@dataclass(frozen=True)
class RotaryScaling:
    """How positions beyond those a network was trained on are squeezed into the angles it knows.

    `linear`: every frequency is divided by `factor` (arXiv:2306.15595). `yarn` (arXiv:2309.00071): dimensions that turn more than
    `beta_fast` times over `original_maximum_positions` keep their frequency, those below `beta_slow` turns are divided by
    `factor`, with a linear ramp in between; cosine and sine are multiplied by `attention_factor` (None: 0.1 ln(factor) + 1).
    `llama3` (Llama 3.1): as yarn by wavelength, between original / `low_frequency_factor` and original /
    `high_frequency_factor` positions, without an attention factor.
    """

    kind: str
    factor: float
    original_maximum_positions: int | None = None  # linear does not need it
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0

    def __post_init__(self) -> None:
        if self.kind not in SCALINGS:
            raise ValueError(f"network.rotary_scaling.kind '{self.kind}' must be one of {', '.join(SCALINGS)}")
        if not self.factor >= 1:
            raise ValueError(f"network.rotary_scaling.factor {self.factor} must be at least 1")
        if self.kind != "linear" and not self.original_maximum_positions:
            raise ValueError(f"network.rotary_scaling: {self.kind} needs original_maximum_positions")
        if self.kind == "yarn" and not self.beta_fast > self.beta_slow:
            raise ValueError(
                f"network.rotary_scaling.beta_fast {self.beta_fast} must be above beta_slow {self.beta_slow}"
            )
        if self.kind == "llama3" and not self.high_frequency_factor > self.low_frequency_factor:
            raise ValueError(
                f"network.rotary_scaling.high_frequency_factor {self.high_frequency_factor} must be above "
                f"low_frequency_factor {self.low_frequency_factor}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "RotaryScaling":
        """The scaling of a saved dictionary; ValueError that names any unknown or missing key."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"unknown key(s) in network.rotary_scaling: {', '.join(unknown)}; known: {', '.join(sorted(known))}"
            )
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"incomplete network.rotary_scaling: {error}") from error

    @property
    def magnitude(self) -> float:
        """What cosine and sine are multiplied by."""
        if self.kind != "yarn":
            return 1.0
        return 0.1 * math.log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor

    def frequencies(self, plain: Float[Tensor, " half"], base: float, width: int) -> Float[Tensor, " half"]:
        """The scaled frequencies (radians per position) of the plain ones."""
        if self.kind == "linear":
            return plain / self.factor
        ramp = self._yarn_ramp(base, width) if self.kind == "yarn" else self._llama3_ramp(plain)
        return plain / self.factor * ramp + plain * (1 - ramp)

    def _yarn_ramp(self, base: float, width: int) -> Float[Tensor, " half"]:
        """0 where a dimension keeps its frequency, 1 where it is divided by `factor`."""
        low, high = (
            width * math.log(self.original_maximum_positions / (turns * 2 * math.pi)) / (2 * math.log(base))
            for turns in (self.beta_fast, self.beta_slow)
        )
        low, high = max(math.floor(low), 0), min(math.ceil(high), width - 1)
        dimensions = torch.arange(width // 2, dtype=torch.float64)
        return ((dimensions - low) / max(high - low, 0.001)).clamp(0, 1)

    def _llama3_ramp(self, plain: Float[Tensor, " half"]) -> Float[Tensor, " half"]:
        turns = self.original_maximum_positions * plain / (2 * math.pi)
        low, high = self.low_frequency_factor, self.high_frequency_factor
        return 1 - ((turns - low) / (high - low)).clamp(0, 1)


class Rotary:
    """Angles for absolute positions up to the network's maximum.

    No module: the table is derived, belongs to no checkpoint, and must stay float32 when the network is cast to a narrower type.
    It is made at first use on the device of the positions, so that a network can be built on the meta device.
    """

    def __init__(self, width: int, base: float, maximum_positions: int, scaling: RotaryScaling | None = None) -> None:
        self.width, self.base, self.maximum_positions, self.scaling = width, base, maximum_positions, scaling
        self._tables: dict[torch.device, Float[Tensor, "length half"]] = {}

    def _table(self, device: torch.device) -> Float[Tensor, "length half"]:
        if device not in self._tables:
            frequencies = self.base ** -(torch.arange(0, self.width, 2, dtype=torch.float64) / self.width)
            if self.scaling is not None:
                frequencies = self.scaling.frequencies(frequencies, self.base, self.width)
            angles = torch.arange(self.maximum_positions, dtype=torch.float64)[:, None] * frequencies
            self._tables[device] = angles.float().to(device)
        return self._tables[device]

    def __call__(
        self, positions: Int[Tensor, "batch rows"], dtype: torch.dtype
    ) -> tuple[Float[Tensor, "batch 1 rows width"], Float[Tensor, "batch 1 rows width"]]:
        """Cosine and signed sine of every position's angles, each repeated over both halves."""
        angles = self._table(positions.device)[positions][:, None]
        cosine, sine = angles.cos(), angles.sin()
        if self.scaling is not None and self.scaling.magnitude != 1:
            cosine, sine = cosine * self.scaling.magnitude, sine * self.scaling.magnitude
        cosine, sine = cosine.to(dtype), sine.to(dtype)
        return torch.cat((cosine, cosine), -1), torch.cat((-sine, sine), -1)


def rotate(
    x: Float[Tensor, "batch heads rows width"],
    cosine: Float[Tensor, "batch 1 rows turned"],
    signed_sine: Float[Tensor, "batch 1 rows turned"],
) -> Float[Tensor, "batch heads rows width"]:
    """x with its first `turned` dimensions turned by its position's angles, in the dtype of the angles.

    Same dtype as x, except while training on a CPU: attention may want the wider one there (model/network/attention.py).
    """
    turned = cosine.shape[-1]
    if turned < x.shape[-1]:
        return torch.cat((rotate(x[..., :turned], cosine, signed_sine), x[..., turned:]), -1)
    wide = x.to(cosine.dtype)
    dtype = wide.dtype if x.device.type == "cpu" and torch.is_grad_enabled() else x.dtype
    turn = _turned if torch.compiler.is_compiling() else _Turn.apply
    return turn(wide, cosine, signed_sine).to(dtype)


class _Turn(torch.autograd.Function):
    """x cos + swap(x) sin, where swap exchanges the halves; the way back turns the other way."""

    @staticmethod
    def forward(ctx, x: Tensor, cosine: Tensor, signed_sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, signed_sine)
        return _turned(x, cosine, signed_sine)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, signed_sine = ctx.saved_tensors
        return _turned(gradient, cosine, -signed_sine), None, None


def _turned(x: Tensor, cosine: Tensor, signed_sine: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    # One product over whole rows: adding to halves in place is slower on a CPU, in bfloat16 by half.
    return (x * cosine).addcmul_(torch.cat((second, first), -1), signed_sine)
