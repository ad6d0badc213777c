"""Public networks: the logits, the routing and the files of the reference code, on copies of the fixtures in tests/fixtures."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.checkpoints.store import Checkpoint, export_checkpoint, load_checkpoint
from model.network.experts import mixtures
from model.network.masks import AttentionPattern
from model.network.transformer import Transformer
from model.registry import resolve

FIXTURES = Path(__file__).parents[2] / "fixtures"
FAMILIES = {
    "llada-tiny": "llada",
    "llada2-moe-tiny": "llada2_moe",
    "llada21-edit-tiny": "llada2_moe",
    "minimind-tiny": "nano_llada",
    "minimind-upstream-tiny": "minimind",
}
MIXTURES = [name for name, family in FAMILIES.items() if family == "llada2_moe"]
CASES = [
    ("llada-tiny", "logits", "logits.input_ids", "bidirectional"),
    ("llada-tiny", "padded0", "padded0.logits_input_ids", "bidirectional"),
    ("llada-tiny", "padded1", "padded1.logits_input_ids", "bidirectional"),
    ("minimind-tiny", "ar", "ar.input_ids", "causal"),
    ("minimind-tiny", "diffusion", "diffusion.input_ids", "bidirectional"),
    ("minimind-tiny", "diffusion_docs", "diffusion_docs.input_ids", "bidirectional"),
    ("minimind-upstream-tiny", "ar", "ar.input_ids", "causal"),
    *((name, f"logits.{kind}", "logits.input_ids", {"full": "bidirectional", "block": "block_causal"}[kind])
      for name in MIXTURES for kind in ("full", "block")),
]  # fmt: skip


@torch.no_grad()
def logits(checkpoint: Checkpoint, tokens: torch.Tensor, kind: str, allowed: torch.Tensor | None) -> torch.Tensor:
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    pattern = AttentionPattern(kind, torch.zeros_like(tokens), positions, block_tokens=8)
    return checkpoint.network.head(checkpoint.network(tokens, positions, pattern if allowed is None else allowed))


@pytest.mark.parametrize("name, case, tokens, kind", CASES, ids=lambda value: value if "-" in value else None)
def test_logits_are_those_of_the_public_code(name, case, tokens, kind):
    expected = load_file(FIXTURES / name / "expected.safetensors")
    allowed = expected.get(f"{case}.attn_mask")
    if (
        f"{case}.logits_attention_mask" in expected
    ):  # keys of padding are not attended, positions count from the row's start
        allowed = expected[f"{case}.logits_attention_mask"].bool()[:, None, None].expand(-1, -1, 40, -1)
    found = logits(load_checkpoint(FIXTURES / name), expected[tokens], kind, allowed)
    difference = (found - expected[f"{case}.logits"]).abs()
    if f"{case}.logits_attention_mask" in expected:  # what a padding row itself answers means nothing
        difference = difference[expected[f"{case}.logits_attention_mask"].bool()]
    assert difference.max() < 1e-4


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("kind", ["full", "block"])
def test_every_token_is_routed_as_by_the_public_code(name, kind):
    checkpoint, expected = load_checkpoint(FIXTURES / name), load_file(FIXTURES / name / "expected.safetensors")
    routed = {}
    for index, mixture in mixtures(checkpoint.network):
        mixture.router.register_forward_hook(lambda _, __, out, index=index: routed.__setitem__(index, out))
    logits(checkpoint, expected["logits.input_ids"], {"full": "bidirectional", "block": "block_causal"}[kind], None)
    assert sorted(routed) == [1, 2]
    for index, (chosen, weights) in routed.items():
        assert torch.equal(chosen, expected[f"logits.{kind}.router{index}.topk_idx"])
        assert torch.allclose(weights, expected[f"logits.{kind}.router{index}.topk_weight"], atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_export_has_the_keys_names_shapes_and_bytes_of_what_was_loaded(name, tmp_path):
    checkpoint = load_checkpoint(FIXTURES / name)
    assert checkpoint.family == FAMILIES[name]
    export_checkpoint(tmp_path / "out", checkpoint.network, checkpoint.config, checkpoint.family)
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", FIXTURES / name))
    assert ours == theirs
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", FIXTURES / name))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype and torch.equal(ours[key], value), key


@pytest.mark.parametrize("name", FAMILIES)
def test_export_in_shards_then_import_is_bit_identical(name, tmp_path):
    checkpoint = load_checkpoint(FIXTURES / name)
    export_checkpoint(tmp_path, checkpoint.network, checkpoint.config, checkpoint.family, maximum_shard_bytes=100_000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(shards) > 2 and sorted(set(index["weight_map"].values())) == shards
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    again = load_checkpoint(tmp_path)
    assert again.config == checkpoint.config
    for key, value in checkpoint.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[key], value), key


def test_merged_experts_are_the_same_network(tmp_path):
    """dFactory trains on one tensor per projection, stacked over the experts."""
    checkpoint = load_checkpoint(FIXTURES / "llada2-moe-tiny")
    export_checkpoint(tmp_path, checkpoint.network, checkpoint.config, "llada2_moe_merged")
    stored = load_file(tmp_path / "model.safetensors")
    single = load_file(FIXTURES / "llada2-moe-tiny/model.safetensors")
    for kind in ("gate", "up", "down"):
        whole = torch.stack([single[f"model.layers.1.mlp.experts.{e}.{kind}_proj.weight"] for e in range(8)])
        assert torch.equal(stored[f"model.layers.1.mlp.experts.{kind}_proj"], whole)
    again = load_checkpoint(tmp_path)
    assert again.family == "llada2_moe_merged"
    for key, value in checkpoint.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[key], value), key


def test_a_trainers_pt_file_is_the_same_network_as_its_safetensors():
    folder = FIXTURES / "minimind-tiny"
    from_pt, from_safetensors = (
        load_checkpoint(path).network.state_dict() for path in (folder / "ar_checkpoint.pt", folder)
    )
    for key, value in from_safetensors.items():
        assert torch.equal(from_pt[key], value), key


def test_minimind_scales_its_angles_as_its_own_code_does():
    """Its ramp multiplies the frequencies by 1 - ramp + ramp / factor, and only beyond the 2048 positions of training."""
    values = json.loads((FIXTURES / "minimind-tiny/config.json").read_text()) | {"inference_rope_scaling": True}
    family = resolve("family", "nano_llada")
    assert family.read_config(values | {"max_position_embeddings": 2048}).rotary_scaling is None
    config = family.read_config(values | {"max_position_embeddings": 32768, "hidden_size": 256, "intermediate_size": 64,
                                          "effective_intermediate_size": 64})  # fmt: skip
    low, high = (64 * math.log(2048 / (turns * 2 * math.pi)) / (2 * math.log(1e6)) for turns in (32, 1))
    low, high = max(math.floor(low), 0), min(math.ceil(high), 31)
    ramp = ((torch.arange(32) - low) / (high - low)).clamp(0, 1).double()
    plain = 1e6 ** -(torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    found = config.rotary_scaling.frequencies(plain, config.rotary_base, 64)
    assert torch.allclose(found, plain * (1 - ramp + ramp / 16)) and not torch.allclose(found, plain)
    assert config.rotary_scaling.magnitude == 1.0
    assert family.write_config(config, "float32")["inference_rope_scaling"] is True


def test_a_grouped_llada_with_a_larger_table_is_written_and_read(tmp_path):
    values = json.loads((FIXTURES / "llada-tiny/config.json").read_text())
    config = resolve("family", "llada").read_config(
        values | {"n_kv_heads": 2, "vocab_size": 150, "embedding_size": 160}
    )
    network = Transformer(config).eval()
    network.initialise(torch.Generator().manual_seed(0))
    export_checkpoint(tmp_path, network, config, "llada")
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["model.transformer.wte.weight"].shape == stored["model.transformer.ff_out.weight"].shape == (160, 64)
    assert stored["model.transformer.blocks.0.k_proj.weight"].shape == (32, 64)
    again = load_checkpoint(tmp_path)
    assert again.config == config
    for key, value in network.state_dict().items():
        assert torch.equal(again.network.state_dict()[key], value), key


@pytest.mark.parametrize("attention", ["block_causal", "bidirectional"])
def test_what_a_family_has_no_key_for_survives_an_export(attention, tmp_path):
    from dataclasses import replace

    checkpoint = load_checkpoint(FIXTURES / "minimind-upstream-tiny")
    config = replace(checkpoint.config, attention=attention, block_tokens=4, mask_token_id=95)
    export_checkpoint(tmp_path, checkpoint.network, config, "minimind")
    assert load_checkpoint(tmp_path).config == config


def test_a_network_is_not_written_as_a_family_that_cannot_say_what_it_is(tmp_path):
    checkpoint = load_checkpoint(FIXTURES / "minimind-tiny")
    with pytest.raises(
        ValueError, match=r"cannot be written as llama: .*embedding_norm would be False instead of True"
    ):
        export_checkpoint(tmp_path / "out", checkpoint.network, checkpoint.config, "llama")
    with pytest.raises(ValueError, match="Did you mean 'llada'"):
        export_checkpoint(tmp_path / "out", checkpoint.network, checkpoint.config, "lada")
    assert not list(tmp_path.iterdir())


def test_narrow_weights_are_loaded_in_the_dtype_asked_for_and_a_routers_bias_stays_wide():
    network = load_checkpoint(FIXTURES / "llada2-moe-tiny", dtype=torch.bfloat16).network
    assert {value.dtype for value in network.parameters()} == {torch.bfloat16}
    assert network.layers[1].feed_forward.router.expert_bias.dtype == torch.float32


def test_on_the_meta_device_everything_is_checked_and_nothing_is_allocated():
    network = load_checkpoint(FIXTURES / "llada2-moe-tiny", device="meta").network
    assert all(value.is_meta for value in network.state_dict().values())
