"""The grouped mixture of experts against its definition, one expert at a time in plain words."""

import pytest
import torch
from torch.nn import functional

from model.network.config import NetworkConfig
from model.network.experts import MixtureOfExperts, balance, take_loads
from model.network.transformer import Transformer

CONFIG = NetworkConfig(
    vocabulary_size=40, hidden_size=16, num_layers=2, num_heads=2, feed_forward_size=24, attention="bidirectional",
    num_experts=8, experts_per_token=2, num_expert_groups=4, groups_per_token=2, expert_feed_forward_size=8,
    num_shared_experts=1, num_dense_layers=1, routed_scaling_factor=2.5,
)  # fmt: skip


def mixture(bias: float = 0.3, config: NetworkConfig = CONFIG) -> MixtureOfExperts:
    rng = torch.Generator().manual_seed(3)
    made = MixtureOfExperts(config)
    for parameter in made.parameters():
        parameter.data.normal_(0.0, 0.5, generator=rng)
    made.router.expert_bias.normal_(0.0, bias, generator=rng)
    return made


def by_definition(made: MixtureOfExperts, token: torch.Tensor) -> torch.Tensor:
    """methods section 5 and the public router, for one token, with a loop over everything."""
    scores = (made.router.weight @ token).sigmoid()
    biased = scores.detach() + made.router.expert_bias
    group = [sum(sorted(biased[2 * g : 2 * g + 2].tolist())) for g in range(4)]
    open_groups = sorted(range(4), key=lambda g: -group[g])[:2]
    allowed = [e for e in range(8) if e // 2 in open_groups]
    chosen = sorted(allowed, key=lambda e: -float(biased[e]))[:2]
    total = sum(scores[e] for e in chosen) + 1e-20
    out = made.shared(token)
    for e in chosen:
        gate, up = (made.gate_up[e] @ token).chunk(2)
        out = out + 2.5 * scores[e] / total * (made.down[e] @ (functional.silu(gate) * up))
    return out


def test_the_grouped_mixture_equals_its_definition_forward_and_backward() -> None:
    made = mixture()
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    pull = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2))
    inputs = [x, *made.parameters()]
    grouped = made(x)
    plain = torch.stack([by_definition(made, token) for token in x.flatten(0, 1)]).view_as(x)
    torch.testing.assert_close(grouped, plain, atol=1e-5, rtol=1e-5)
    found = torch.autograd.grad((grouped * pull).sum(), inputs)
    wanted = torch.autograd.grad((plain * pull).sum(), inputs)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_the_bias_chooses_but_does_not_weigh() -> None:
    made = mixture()
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    chosen, weights = made.router(x)
    made.router.expert_bias += 7.0  # the same for all: the choice stays, and so must the weights
    again, same = made.router(x)
    assert torch.equal(chosen, again)
    assert torch.equal(weights, same)
    made.router.expert_bias[6:] += 100.0
    assert made.router(x)[0].sort(1).values.eq(torch.tensor([6, 7])).all()


def test_a_token_is_not_moved_by_the_tokens_beside_it() -> None:
    made = mixture().eval()
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    crowd = torch.cat((x[:1].expand(39, -1), x[5:6]))  # one expert gets nearly everything: nothing may be dropped
    torch.testing.assert_close(made(crowd)[-1], made(x)[5], atol=1e-6, rtol=1e-5)
    assert made(x[:0]).shape == (0, 16)


def test_float64_goes_through_the_same_experts() -> None:
    made, x = mixture(), torch.randn(30, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(made.double()(x.double()).float(), mixture()(x), atol=1e-5, rtol=1e-5)


def test_bfloat16_by_autocast_stays_close_and_routes_in_float32() -> None:
    made = mixture()
    x = torch.randn(30, 16, generator=torch.Generator().manual_seed(1))
    exact = made(x)
    chosen = made.router(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rough = made(x)
        assert torch.equal(made.router(x)[0], chosen)
    assert (rough - exact).abs().max() < 0.03 * exact.abs().max()
    assert not torch.equal(rough, exact)


def test_loads_count_training_tokens_once_and_balancing_evens_them() -> None:
    network = Transformer(CONFIG)
    network.initialise(torch.Generator().manual_seed(0))
    made = network.layers[1].feed_forward
    made.router.expert_bias[0] = 1.0  # expert 0 starts as everybody's favourite
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(1))
    made(x)
    with torch.no_grad():
        made(x)  # a pass that only measures
    first = take_loads(network)
    assert list(first) == [1]
    assert first[1].sum() == 400
    assert first[1][0] == 200
    assert take_loads(network)[1].sum() == 0
    for _ in range(200):
        made(x)
        balance(network, take_loads(network), 0.01)
    made(x)
    assert take_loads(network)[1].max() < 70  # an even load is 50
    assert "load" not in "".join(network.state_dict())


@pytest.mark.parametrize("change", [{"num_experts": 6}, {"experts_per_token": 5}, {"groups_per_token": 5}])
def test_sizes_that_cannot_route_are_refused_by_name(change: dict) -> None:
    with pytest.raises(ValueError, match=f"network.({'|'.join(change)}|num_experts)"):
        NetworkConfig(**{**CONFIG.to_dict(), **change})
