"""Muon orthogonalises every matrix by itself, moves matrices only, and resumes with its momentum; names are checked."""

import pytest
import torch
from training_example import fingerprint, trainer, write_rows

from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.training.loop import seeded
from model.training.muon import Muon, orthogonalised
from model.training.optimizer import make_optimizers


def test_orthogonalised_matrices_have_singular_values_near_one():
    matrices = torch.randn(3, 24, 40, generator=seeded(0))
    for stack in (matrices, matrices.mT):
        values = torch.linalg.svdvals(orthogonalised(stack))
        assert values.min() > 0.6 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices[0], full_matrices=False)
    assert (
        torch.nn.functional.cosine_similarity(orthogonalised(matrices)[0].flatten(), (left @ right).flatten(), dim=0)
        > 0.97
    )


def test_every_part_of_a_stacked_weight_is_stepped_as_if_it_were_alone():
    rng = seeded(1)
    start, gradient = torch.randn(24, 16, generator=rng), torch.randn(24, 16, generator=rng)
    stacked = torch.nn.Parameter(start.clone())
    stacked.grad = gradient.clone()
    Muon([{"params": [stacked], "parts": (16, 8)}], 0.1, 0.01).step()
    for rows in (slice(0, 16), slice(16, 24)):
        alone = torch.nn.Parameter(start[rows].clone())
        alone.grad = gradient[rows].clone()
        Muon([{"params": [alone], "parts": None}], 0.1, 0.01).step()
        assert torch.allclose(stacked[rows], alone, atol=1e-5)


def test_experts_are_matrices_of_their_own_and_the_router_is_left_to_adamw():
    config = NetworkConfig(
        vocabulary_size=20, hidden_size=16, num_layers=2, num_heads=2, feed_forward_size=24, num_experts=4,
        experts_per_token=2, expert_feed_forward_size=8, num_shared_experts=1, num_dense_layers=1,
    )  # fmt: skip
    network = Transformer(config)
    network.initialise(seeded(2))
    muon, adamw = make_optimizers(network, "muon", 1e-2, 0.0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    stepped = {names[id(p)]: group["parts"] for group in muon.param_groups for p in group["params"]}
    others = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert stepped["layers.1.feed_forward.gate_up"] == (8, 8) and stepped["layers.1.feed_forward.down"] is None
    assert "layers.1.feed_forward.router.weight" in others and "embedding.weight" in others
    assert not stepped.keys() & others and len(stepped) + len(others) == len(names)
    network.layers[1].feed_forward.gate_up.grad = torch.randn(4, 16, 16, generator=seeded(3))
    before = network.layers[1].feed_forward.gate_up.detach().clone()
    muon.step()
    moved = (network.layers[1].feed_forward.gate_up - before).unflatten(1, (2, 8)).flatten(0, 1)
    values = torch.linalg.svdvals(moved / (1e-2 * 0.2 * 16**0.5))
    assert values.min() > 0.6 and values.max() < 1.3


def test_muon_learns_and_resumes_with_its_momentum(tmp_path):
    torch.set_num_threads(1)
    data = write_rows(tmp_path / "rows")
    whole = trainer(tmp_path / "whole", data, steps=60, optimizer="muon")
    whole.run()
    losses = [point["val/bits_per_byte"] for point in whole.progress.curve if "val/bits_per_byte" in point]
    assert losses[-1] < 0.8 * losses[0]
    # The newest resume point is step 55: whoever goes on from there ends where the whole run ended.
    resumed = trainer(tmp_path / "whole", data, steps=60, optimizer="muon")
    resumed.run()
    assert fingerprint(resumed) == fingerprint(whole)


def test_an_unknown_optimizer_is_refused_with_the_choices():
    with pytest.raises(ValueError, match=r"optimizer 'sgd' must be one of adamw, muon"):
        make_optimizers(torch.nn.Linear(2, 2), "sgd", 0.1, 0.0)
