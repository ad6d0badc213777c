"""MiniMind (`model_type: minimind`, dense) and Nano-LLaDA's variant of it, which has the same model_type and other tensors.

Nano-LLaDA's config.json is told by `attention_is_causal`; its networks have no norm weights, normalise the embedding too, and
normalise queries and keys after the rotation. Its trainer saves `.pt` files (state dict under `model_state_dict`).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from model.checkpoints.families.family import Family, Rule, fixed, ignored, same, when_set
from model.checkpoints.families.llama import TENSORS, one_token
from model.network.config import NetworkConfig
from model.network.rotary import RotaryScaling

# What `inference_rope_scaling` stands for. MiniMind's ramp ends at width / 2 - 1 at the latest, YaRN's own at width - 1: the same
# for every published size, where it ends below both.
YARN = RotaryScaling("yarn", 16.0, 2048, attention_factor=1.0)


def _read_scaling(values: Mapping[str, Any]) -> dict[str, Any]:
    wanted = bool(values.get("inference_rope_scaling")) and values.get("max_position_embeddings", 32768) > 2048
    return {"rotary_scaling": YARN if wanted else None}


def _write_scaling(config: NetworkConfig) -> dict[str, Any]:
    return {"inference_rope_scaling": config.rotary_scaling == YARN}


def _nano_width(hidden_size: int) -> int:
    return (hidden_size * 8 // 3 + 63) // 64 * 64


def _upstream_width(hidden_size: int) -> int:
    return math.ceil(hidden_size * math.pi / 64) * 64


def _width(default: Callable[[int], int]) -> Rule:
    """intermediate_size, where None is the trainer's own rule, and the width in use that Nano-LLaDA's file may state."""

    def read(values: Mapping[str, Any]) -> dict[str, Any]:
        width = values.get("intermediate_size") or default(values["hidden_size"])
        stated = values.get("effective_intermediate_size", width)
        if stated != width:
            raise ValueError(f"effective_intermediate_size is {stated}, and intermediate_size gives {width}")
        return {"feed_forward_size": width}

    def write(config: NetworkConfig) -> dict[str, Any]:
        if default is _upstream_width:
            return {"intermediate_size": config.feed_forward_size}
        is_default = config.feed_forward_size == default(config.hidden_size)
        return {
            "intermediate_size": None if is_default else config.feed_forward_size,
            "effective_intermediate_size": config.feed_forward_size,
        }

    return Rule(("intermediate_size", "effective_intermediate_size"), read, write, "feed_forward_size")


_SIZES = (
    same("vocab_size", "vocabulary_size", write=lambda config: config.embedding_rows),
    same("hidden_size", "hidden_size"),
    same("num_hidden_layers", "num_layers"),
    same("num_attention_heads", "num_heads"),
    same("rope_theta", "rotary_base", 1e6, read=float),
    same("max_position_embeddings", "maximum_positions", 32768),
    same("bos_token_id", "bos_token_id", 1),
    same("eos_token_id", "eos_token_id", 2, read=one_token),
    fixed("hidden_act", "silu"),
    ignored("dropout", 0.0),
    ignored("architectures", ["MiniMindForCausalLM"]),
)
FAMILY = Family(
    name="minimind",
    model_type="minimind",
    rules=(
        *_SIZES,
        _width(_upstream_width),
        same("num_key_value_heads", "num_key_value_heads", 4, write=lambda config: config.key_value_heads),
        same("head_dim", "head_size", None, write=lambda config: config.width_per_head),
        same("rms_norm_eps", "norm_epsilon", 1e-6),
        same("tie_word_embeddings", "tie_embeddings", True),
        when_set("pad_token_id", "pad_token_id"),
        # Left out when false, as older files do; `rope_scaling` only repeats it.
        Rule(
            ("inference_rope_scaling", "rope_scaling"), _read_scaling,
            lambda config: {key: value for key, value in _write_scaling(config).items() if value},
        ),
        fixed("use_moe", False),
        ignored("flash_attn", True),
        # Say something only with use_moe.
        *(ignored(key) for key in ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob",
                                   "router_aux_loss_coef", "n_routed_experts", "n_shared_experts", "scoring_func",
                                   "aux_loss_alpha", "seq_aux")),
    ),
    tensors=TENSORS,
    always={"attention": "causal", "norm": "rms", "query_key_norm": True, "query_key_norm_place": "before_rotary"},
    derived_tensors=r"(model\.)?freqs_(cos|sin)",
    stores_tied_head=True,
    recognises=lambda values: "attention_is_causal" not in values,
)  # fmt: skip
NANO_LLADA = Family(
    name="nano_llada",
    model_type="minimind",
    rules=(
        *_SIZES,
        _width(_nano_width),
        same("rms_norm_eps", "norm_epsilon", 1e-5),
        same("pad_token_id", "pad_token_id", 0),
        Rule(("inference_rope_scaling", "rope_scaling"), _read_scaling, _write_scaling),
        same(
            "attention_is_causal", "attention", True,
            read=lambda value: "causal" if value else "bidirectional",
            write=lambda config: config.attention == "causal",
        ),
        when_set("mask_token_id", "mask_token_id"),
    ),
    tensors={
        "embedding.weight": "token_emb.weight",
        "layers.{layer}.attention.query_key_value.weight": (
            "blocks.{layer}.attn.c_q.weight", "blocks.{layer}.attn.c_k.weight", "blocks.{layer}.attn.c_v.weight",
        ),
        "layers.{layer}.attention.output.weight": "blocks.{layer}.attn.c_proj.weight",
        "layers.{layer}.feed_forward.gate_up.weight": (
            "blocks.{layer}.mlp.gate_proj.weight", "blocks.{layer}.mlp.up_proj.weight",
        ),
        "layers.{layer}.feed_forward.down.weight": "blocks.{layer}.mlp.down_proj.weight",
        "unembedding.weight": "lm_head.weight",
    },
    always={
        "norm": "rms_unweighted", "embedding_norm": True, "query_key_norm": True, "query_key_norm_place": "after_rotary",
        "tie_embeddings": False,
    },
    derived_tensors=r"cos|sin",
    recognises=lambda values: "attention_is_causal" in values,
)  # fmt: skip
