"""The head read in pieces against all logits at once: values, gradients, precision and memory."""

import pytest
import torch
from torch import nn

from model.objectives import head_reading
from model.objectives.head_reading import read_head

VOCABULARY, WIDTH = 50, 8


@pytest.fixture(
    params=[(10 * VOCABULARY, 0), (10 * VOCABULARY, 10**6), (10**6, 10**6)],
    ids=["computed again", "in pieces", "in one"],
)
def piece(request, monkeypatch):
    for name, value in zip(("PIECE_NUMBERS", "KEPT_NUMBERS"), request.param, strict=True):
        monkeypatch.setattr(head_reading, name, value)


def loss_and_gradients(head, hidden, weight, ids, temperature):
    reading = read_head(hidden, head, ids, temperature)
    rows = torch.linspace(0.5, 2.0, len(hidden)).to(hidden)
    loss = (reading.cross_entropy * rows).sum() + (reading.picked[:, 1:].sum(1) * rows.flip(0)).sum()
    loss = loss + reading.normaliser.square().mean() + 0.3 * (reading.entropy * rows).sum()
    return (loss, reading, *torch.autograd.grad(loss, (hidden, weight)))


@pytest.mark.parametrize("temperature", [None, 0.5, 2.0])
@pytest.mark.parametrize("rows", [1, 33])
def test_in_pieces_is_all_at_once(piece, temperature, rows):
    rng = torch.Generator().manual_seed(0)
    linear = nn.Linear(WIDTH, VOCABULARY, bias=False).double()
    linear.weight.data.copy_(torch.randn(VOCABULARY, WIDTH, generator=rng))
    hidden = torch.randn(rows, WIDTH, generator=rng).double().requires_grad_()
    ids = torch.randint(0, VOCABULARY, (rows, 3), generator=rng)
    ids[0] = 7  # an id asked for twice counts twice
    ours = loss_and_gradients(linear, hidden, linear.weight, ids, temperature)
    plain = loss_and_gradients(lambda x: linear(x), hidden, linear.weight, ids, temperature)
    for a, b in zip(ours[2:], plain[2:], strict=True):
        assert torch.allclose(a, b, atol=1e-10)
    assert float(ours[0].detach()) == pytest.approx(float(plain[0].detach()), rel=1e-10)
    assert torch.equal(ours[1].right, plain[1].right)


def test_nothing_hidden_costs_nothing_and_stays_in_the_graph():
    linear, hidden = nn.Linear(WIDTH, VOCABULARY, bias=False), torch.zeros(0, WIDTH, requires_grad=True)
    reading = read_head(hidden, linear, torch.zeros(0, 1, dtype=torch.long), 0.5)
    (reading.cross_entropy.sum() + reading.entropy.sum()).backward()
    assert not linear.weight.grad.any()


def test_under_autocast_products_are_narrow_and_sums_wide():
    rng = torch.Generator().manual_seed(1)
    linear = nn.Linear(WIDTH, VOCABULARY, bias=False)
    hidden = torch.randn(20, WIDTH, generator=rng).requires_grad_()
    ids = torch.randint(0, VOCABULARY, (20, 1), generator=rng)
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = read_head(hidden, linear, ids, 0.5), read_head(hidden, lambda x: linear(x), ids, 0.5)
    assert ours.normaliser.dtype == torch.float32
    assert torch.allclose(ours.cross_entropy, plain.cross_entropy, atol=1e-6)
    ours.cross_entropy.sum().backward()
    assert linear.weight.grad.dtype == hidden.grad.dtype == torch.float32


def test_all_logits_are_never_held(monkeypatch):
    """4,096 rows of a vocabulary of 50: no tensor of the forward and backward passes is larger than a piece or an input."""
    monkeypatch.setattr(head_reading, "PIECE_NUMBERS", 64 * VOCABULARY)
    monkeypatch.setattr(head_reading, "KEPT_NUMBERS", 1000 * VOCABULARY)
    linear, hidden = nn.Linear(WIDTH, VOCABULARY, bias=False), torch.randn(4096, WIDTH, requires_grad=True)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            nonlocal largest
            out = function(*arguments, **(named or {}))
            for value in out if isinstance(out, tuple | list) else [out]:
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.numel())
            return out

    with Watch():
        reading = read_head(hidden, linear, torch.zeros(4096, 1, dtype=torch.long), 0.5)
        (reading.cross_entropy.sum() + reading.entropy.sum()).backward()
    assert largest == hidden.numel() == 4096 * WIDTH < 4096 * VOCABULARY
