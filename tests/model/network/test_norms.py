"""The three norms differ in a narrow dtype by where the weight comes in, as the public codes do."""

import pytest
import torch

from model.network.norms import RMSNorm
from model.network.rotary import Rotary, rotate

X = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(32, generator=torch.Generator().manual_seed(1))


def plain(x: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)


def made(kind: str, dtype: torch.dtype) -> RMSNorm:
    norm = RMSNorm(32, 1e-5, kind)
    if norm.weight is not None:
        with torch.no_grad():
            norm.weight.copy_(WEIGHT)
    return norm.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weight_comes_in_before_the_cast_after_it_or_never(dtype):
    x, weight = X.to(dtype), WEIGHT.to(dtype)
    want = {
        "rms": (plain(x) * weight.float()).to(dtype),
        "rms_cast_first": plain(x).to(dtype) * weight,
        "rms_unweighted": plain(x).to(dtype),
    }
    for kind, value in want.items():
        assert torch.allclose(made(kind, dtype)(x).float(), value.float(), rtol=1e-6, atol=1e-6), kind
    assert torch.equal(want["rms"], want["rms_cast_first"]) == (dtype == torch.float32)


def test_angles_stay_wide_when_the_network_is_narrow_and_full_precision_turns_in_float32():
    rotary, positions = Rotary(16, 1e4, 4096), torch.tensor([[4095]])
    cosine, sine = rotary(positions, torch.bfloat16)
    exact = (4095 * 1e4 ** -(torch.arange(0, 16, 2, dtype=torch.float64) / 16)).cos()
    assert torch.allclose(cosine[0, 0, 0, :8].double(), exact, atol=4e-3)  # a bfloat16 angle would be anywhere
    x = torch.randn(1, 2, 1, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    wide = rotate(x.float(), *rotary(positions, torch.float32)).bfloat16()
    with torch.no_grad():
        assert torch.equal(rotate(x, *rotary(positions, torch.float32)), wide)
        assert not torch.equal(rotate(x, cosine, sine), wide)
    kept = rotate(
        x, *rotary(positions, torch.float32)
    )  # while training on a CPU attention may want what was not rounded
    assert kept.dtype == torch.float32 and torch.equal(kept.bfloat16(), wide)


def test_only_the_first_dimensions_turn_and_they_turn_as_a_head_of_their_own():
    x = torch.randn(1, 2, 5, 16, generator=torch.Generator().manual_seed(3))
    turn = Rotary(8, 1e4, 16)(torch.arange(5)[None], torch.float32)
    turned = rotate(x, *turn)
    assert torch.equal(turned[..., 8:], x[..., 8:]) and torch.equal(turned[..., :8], rotate(x[..., :8], *turn))
