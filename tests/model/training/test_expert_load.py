"""Training a tiny mixture of experts through the ordinary loop: distillation, CAP, and what is done with the loads."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_example import CONFIG, MASK, fresh_network, trainer, write_rows

from model.checkpoints.derive import layer_subset
from model.checkpoints.store import load_checkpoint, save_checkpoint
from model.objectives.block_diffusion import BlockDiffusion
from model.objectives.confidence import Confidence
from model.objectives.match_teacher import MatchTeacher
from model.samplers.decode import make_decoder

MIXTURE = replace(
    CONFIG, num_layers=3, num_dense_layers=1, num_experts=8, experts_per_token=2, num_expert_groups=4, groups_per_token=2,
    expert_feed_forward_size=12, num_shared_experts=1, routed_scaling_factor=2.5,
)  # fmt: skip


@pytest.mark.slow
def test_a_mixture_is_distilled_tuned_by_cap_saved_and_decoded(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows")
    base = BlockDiffusion(MASK, 4)
    few = {"steps": 6, "validate_every_steps": 2, "validation_rows": 8, "judge": BlockDiffusion(MASK, 4)}
    teacher = trainer(tmp_path / "t", data, base, fresh_network(MIXTURE), **few)
    teacher.run()
    student = layer_subset(teacher.raw_network, [0, 2])
    draft = trainer(tmp_path / "d", data, MatchTeacher(base, teacher.raw_network), student, **few)
    draft.run()
    tuned = trainer(tmp_path / "c", data, Confidence(base), fresh_network(MIXTURE), **few)
    tuned.run()
    for run in (teacher, draft, tuned):
        losses = [point["val/loss"] for point in run.progress.curve if "val/loss" in point]
        assert losses[-1] < losses[0]
    save_checkpoint(tmp_path / "saved", draft.raw_network, draft.raw_network.config, tmp_path)
    back = load_checkpoint(tmp_path / "saved").network
    assert all(torch.equal(value, draft.raw_network.state_dict()[name]) for name, value in back.state_dict().items())
    (answer,) = make_decoder(back, {"name": "threshold", "threshold": 0.9})([[5, 8, 11]], 8)
    assert MASK not in answer.tokens


@pytest.mark.parametrize("choice", ["frozen", "balanced"])
def test_the_bias_moves_by_its_step_only_where_balanced_was_chosen(tmp_path: Path, choice: str) -> None:
    data = write_rows(tmp_path / "rows")
    run = trainer(
        tmp_path / "w", data, None, fresh_network(MIXTURE), steps=3, expert_bias=choice, expert_bias_step=0.25
    )
    run.run()
    bias = run.raw_network.layers[1].feed_forward.router.expert_bias
    assert bias.abs().max() <= 0.75
    assert (bias != 0).any() == (choice == "balanced")
    assert torch.equal(bias, (bias * 4).round() / 4)


def test_loads_are_logged_as_shares_of_every_layer(tmp_path: Path) -> None:
    run = trainer(tmp_path / "w", write_rows(tmp_path / "rows"), None, fresh_network(MIXTURE), steps=3)
    run.run()
    logged = {name: value for _, metrics in run.tracker.points for name, value in metrics.items()}
    for layer in (1, 2):
        shares = [logged[f"experts/layer_{layer:02d}/expert_{index:03d}"] for index in range(8)]
        assert sum(shares) == pytest.approx(1.0)
        assert logged[f"experts/layer_{layer:02d}/busiest"] == max(shares) >= 1 / 8
    assert "experts/layer_00/busiest" not in logged


def test_balancing_a_dense_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expert_bias 'balanced' needs a mixture of experts"):
        trainer(tmp_path / "w", write_rows(tmp_path / "rows"), expert_bias="balanced")
