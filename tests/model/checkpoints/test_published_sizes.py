"""The configurations of published networks are read as they stand and give exactly the published number of parameters."""

import pytest
import torch

from model.checkpoints.derive import first_and_last_layers, layer_subset
from model.checkpoints.network_weights import empty_network
from model.network.transformer import Transformer, num_parameters
from model.registry import resolve

PUBLISHED = {
    "llada": (  # GSAI-ML/LLaDA-8B-Instruct
        8_015_581_184,
        {
            "d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 32, "mlp_hidden_size": 12288, "vocab_size": 126464,
            "embedding_size": 126464, "max_sequence_length": 4096, "rope_theta": 500000.0, "weight_tying": False,
            "mask_token_id": 126336, "eos_token_id": 126081, "pad_token_id": 126081, "activation_type": "silu",
            "block_type": "llama", "multi_query_attention": None, "include_bias": False, "precision": "amp_bf16",
        },
    ),
    "llama": (  # meta-llama/Llama-3.1-8B-Instruct
        8_030_261_248,
        {
            "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "mlp_bias": False, "attention_bias": False, "pretraining_tp": 1,
            "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3",
                             "original_max_position_embeddings": 8192},
            "tie_word_embeddings": False, "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009],
            "hidden_act": "silu", "torch_dtype": "bfloat16", "transformers_version": "4.42.3", "use_cache": True,
        },
    ),
    "qwen2": (  # Qwen/Qwen2.5-7B-Instruct
        7_615_616_512,
        {
            "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
            "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0, "sliding_window": 131072, "use_sliding_window": False, "max_window_layers": 28,
            "tie_word_embeddings": False, "bos_token_id": 151643, "eos_token_id": 151645, "attention_dropout": 0.0,
        },
    ),
    "qwen3": (  # Qwen/Qwen3-8B
        8_190_735_360,
        {
            "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40960,
            "rms_norm_eps": 1e-6, "rope_theta": 1000000, "rope_scaling": None, "sliding_window": None,
            "use_sliding_window": False, "max_window_layers": 36, "tie_word_embeddings": False, "attention_bias": False,
            "bos_token_id": 151643, "eos_token_id": 151645, "initializer_range": 0.02,
        },
    ),
}  # fmt: skip


def published(family: str) -> Transformer:
    return empty_network(resolve("family", family).read_config(PUBLISHED[family][1]), "meta", torch.bfloat16)


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_published_configuration_gives_the_published_number_of_parameters(family):
    assert num_parameters(published(family)) == PUBLISHED[family][0]


def test_half_the_layers_of_llada_8b_are_43_5_percent_fewer_parameters():
    teacher = published("llada")
    student = layer_subset(teacher, first_and_last_layers(32, 16))
    assert round(100 * (1 - num_parameters(student) / num_parameters(teacher)), 1) == 43.5
