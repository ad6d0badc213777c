"""The hand-written backward passes are those of the formulas they stand for."""

import torch
from torch.nn import functional

from model.network.feed_forward import SwiGLU
from model.network.norms import RMSNorm
from model.network.rotary import Rotary, rotate


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_norms_gradients_are_torchs():
    x = torch.randn(3, 5, 16, generator=rng(0), requires_grad=True)
    given = torch.randn(3, 5, 16, generator=rng(1))
    norm = RMSNorm(16, 1e-5, "rms")
    with torch.no_grad():
        norm.weight.normal_(generator=rng(2))
    ours, theirs = norm(x), functional.rms_norm(x, (16,), norm.weight, 1e-5)
    assert torch.allclose(ours, theirs, atol=1e-6)
    for mine, reference in zip(
        torch.autograd.grad(ours, (x, norm.weight), given),
        torch.autograd.grad(theirs, (x, norm.weight), given),
        strict=True,
    ):
        assert torch.allclose(mine, reference, atol=1e-5)


def test_swiglu_and_rotation_pass_numerical_differentiation():
    gate_up = torch.randn(4, 12, generator=rng(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SwiGLU.apply, (gate_up,))
    turn = Rotary(6, 1e4, 32)(torch.arange(7, 12)[None], torch.float64)
    x = torch.randn(1, 2, 5, 8, generator=rng(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: rotate(values, *turn), (x,))
