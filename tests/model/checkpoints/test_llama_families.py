"""Llama, Qwen2 and Qwen3: the logits of transformers' own networks, in from what it saves and out into what it loads."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from model.checkpoints.families.rope import read_scaling
from model.checkpoints.store import export_checkpoint, load_checkpoint
from model.network.masks import AttentionPattern

SIZES = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip
MADE = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama-biased": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, head_dim=16)),
    "llama-tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama-llama3": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
    "llama-linear": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0})
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen2-yarn": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, rope_parameters=YARN)),
    "qwen2-yarn-factor": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SIZES, rope_parameters=YARN | {"attention_factor": 0.7, "beta_fast": 8.0, "beta_slow": 2.0})
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16, tie_word_embeddings=True)),
}


def made(name: str) -> torch.nn.Module:
    network = MADE[name]()
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in sorted(network.named_parameters()):
            spread = 0.3 if parameter.dim() > 1 else 0.1
            parameter.normal_(0.0 if parameter.dim() > 1 else 1.0, spread, generator=rng)
    return network.eval()


@pytest.mark.parametrize("name", MADE)
def test_logits_are_those_of_transformers_and_an_export_loads_there(name, tmp_path):
    theirs = made(name)
    theirs.save_pretrained(tmp_path / "in")
    checkpoint = load_checkpoint(tmp_path / "in")
    assert checkpoint.family == name.partition("-")[0]
    tokens = torch.randint(0, 60, (2, 96), generator=torch.Generator().manual_seed(6))
    positions = torch.arange(96).expand_as(tokens)
    with torch.no_grad():
        want = theirs(tokens).logits
        pattern = AttentionPattern("causal", torch.zeros_like(tokens), positions)
        found = checkpoint.network.head(checkpoint.network(tokens, positions, pattern))
        assert (found - want).abs().max() < 1e-4
        export_checkpoint(tmp_path / "out", checkpoint.network, checkpoint.config, checkpoint.family)
        again = type(theirs).from_pretrained(tmp_path / "out").eval()
        assert torch.equal(again(tokens).logits, want)


@pytest.mark.parametrize(
    "scaling, positions, base",
    [
        (YARN | {"original_max_position_embeddings": 32768}, 131072, 1e6),  # Qwen2.5 and Qwen3 as their cards show it
        (YARN | {"original_max_position_embeddings": 4096, "factor": 16.0, "beta_fast": 64.0}, 65536, 1e4),
        (LLAMA3 | {"original_max_position_embeddings": 8192}, 131072, 5e5),  # Llama 3.1
    ],
)
def test_scaled_frequencies_are_those_of_transformers_at_published_sizes(scaling, positions, base):
    config = LlamaConfig(
        hidden_size=4096, num_attention_heads=32, max_position_embeddings=positions,
        rope_parameters=scaling | {"rope_theta": base},
    )  # fmt: skip
    want, magnitude = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
    ours = read_scaling(scaling, positions)
    plain = base ** -(torch.arange(0, 128, 2, dtype=torch.float64) / 128)
    assert torch.allclose(ours.frequencies(plain, base, 128).float(), want, rtol=1e-6, atol=0)
    assert ours.magnitude == pytest.approx(magnitude)
    kept = (ours.frequencies(plain, base, 128) == plain).sum()
    assert 0 < kept < 63  # some dimensions keep their frequency, some do not
