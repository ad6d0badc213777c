"""The dry run of a preset: published sizes come out, and what does not fit is named before anything is downloaded."""

from pathlib import Path

import pytest
import torch

from model.checkpoints.derive import first_and_last_layers, layer_subset
from model.checkpoints.store import load_checkpoint
from model.network.config import NetworkConfig
from model.network.transformer import Transformer, num_parameters
from tasks.parameters import load_params
from tasks.plan import kept_for_backward, main, plan

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests/fixtures"


def small(**changes) -> dict:
    """A preset for the fixture llada2-moe-tiny."""
    network = {
        "hidden_size": 64, "num_layers": 3, "num_heads": 4, "num_key_value_heads": 2, "head_size": 16,
        "feed_forward_size": 128, "norm": "rms_cast_first", "norm_epsilon": 1e-6, "tie_embeddings": False,
        "rotary_base": 600000.0, "rotary_fraction": 0.5, "maximum_positions": 256, "num_experts": 8, "experts_per_token": 2,
        "num_expert_groups": 4, "groups_per_token": 2, "expert_feed_forward_size": 32, "num_shared_experts": 1,
        "num_dense_layers": 1, "routed_scaling_factor": 2.5,
    } | changes  # fmt: skip
    return {
        "preset": "small",
        "plan": {
            "stage": "tune_cap",
            "family": "llada2_moe",
            "gpus": 2,
            "gpu_memory_gib": 80,
        },
        "tokenize": {"vocabulary_size": 128, "row_tokens": 32, "block_tokens": 32},
        "network": network,
        "tune_cap": {"start_from": "tests/fixtures/llada2-moe-tiny", "batch_rows": 4, "steps": 10},
    }


def test_the_published_draft_has_43_5_percent_fewer_parameters_and_is_never_allocated() -> None:
    params = load_params(ROOT / "presets/llada-8b-distill.yaml")
    config = NetworkConfig.from_dict({**params["network"], "vocabulary_size": params["tokenize"]["vocabulary_size"]})
    with torch.device("meta"):
        teacher = Transformer(config)
    student = layer_subset(teacher, first_and_last_layers(32, params["distill_draft"]["layers"]))
    assert all(parameter.is_meta for parameter in student.parameters())
    assert num_parameters(teacher) == 8_015_581_184  # the public checkpoint's
    assert round(100 * (1 - num_parameters(student) / num_parameters(teacher)), 1) == 43.5


def test_a_folder_that_is_here_is_compared_tensor_by_tensor() -> None:
    assert "every tensor has its name and shape" in plan(small(), None, ROOT)
    with pytest.raises(ValueError, match="is not the preset's network: feed_forward_size 128 instead of 96"):
        plan(small(feed_forward_size=96), None, ROOT)


def test_a_network_that_the_family_cannot_hold_is_refused_by_its_field() -> None:
    with pytest.raises(ValueError, match="query_key_norm"):
        plan(small(query_key_norm=False), None, ROOT)


def test_a_batch_that_the_gpus_cannot_share_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_rows 4 must be a multiple of accumulation_steps 1 x 3 GPUs"):
        plan(small(), 3, ROOT)
    (tmp_path / "params.yaml").write_text("preset: bare\n")
    assert main([str(tmp_path / "params.yaml")]) == 2
    assert "needs a line like plan:" in capsys.readouterr().err


def test_the_plan_names_the_launch_and_refuses_another_number_of_processes() -> None:
    params = small()
    params["tune_cap"] |= {"processes": 2, "distribution": "fsdp2"}
    assert "tasks.tune_cap --instance tune_cap (tune_cap.processes: 2, distribution: fsdp2)" in plan(params, None, ROOT)
    with pytest.raises(ValueError, match=r"tune_cap\.processes is 2 and the plan counts 4 GPUs"):
        plan(params, 4, ROOT)


def test_kept_activations_are_those_of_a_real_graph() -> None:
    network = load_checkpoint(FIXTURES / "llada-tiny").network
    kept: dict[int, torch.Tensor] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    tokens = torch.zeros(2, 48, dtype=torch.long)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(tokens, tokens, torch.ones(2, 1, 48, 48, dtype=torch.bool))
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    activations, copies = kept_for_backward(network.config, 2, 48, "float32")
    assert copies == 0
    assert activations == pytest.approx(real, rel=0.02)
    longer, _ = kept_for_backward(network.config, 4, 48, "float32")
    assert 1.5 * activations < longer <= 2 * activations
