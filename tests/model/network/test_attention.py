"""Attention means the same in every precision and on either path."""

import pytest
import torch

from model.network.attention import WIDE_KEYS, attend


def heads(rows: int, count: int, seed: int) -> torch.Tensor:
    return torch.randn(2, count, rows, 16, generator=torch.Generator().manual_seed(seed))


def run(dtype: torch.dtype, rows: int, mask: torch.Tensor | None, causal: bool) -> list[torch.Tensor]:
    inputs = [heads(rows, count, seed).to(dtype).requires_grad_() for seed, count in enumerate((4, 2, 2))]
    out = attend(*inputs, mask, causal)
    assert out.dtype == dtype
    return [out, *torch.autograd.grad(out, inputs, heads(rows, 4, 3).to(dtype))]


@pytest.mark.parametrize("rows", [24, WIDE_KEYS + 24])
@pytest.mark.parametrize("how", ["boolean", "additive", "causal", "everything"])
def test_training_in_bfloat16_has_the_gradients_of_float32(rows, how):
    allowed = torch.rand(2, 1, rows, rows, generator=torch.Generator().manual_seed(9)) < 0.5
    allowed |= torch.eye(rows, dtype=torch.bool)
    mask = {"boolean": allowed, "additive": torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)}.get(how)
    for narrow, wide in zip(
        *(run(dtype, rows, mask, how == "causal") for dtype in (torch.bfloat16, torch.float32)), strict=True
    ):
        assert (narrow.float() - wide).norm() < 0.01 * wide.norm()


def test_queries_wider_than_values_are_narrowed_where_nothing_is_trained():
    query, key, value = (heads(24, 4, seed) for seed in range(3))
    out = attend(query, key, value.bfloat16(), None)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), None))
