"""Qwen2 and Qwen2.5, dense (`model_type: qwen2`): Llama with biases on queries, keys and values."""

from collections.abc import Mapping
from typing import Any

from model.checkpoints.families.family import Family, Rule, fixed, ignored, only_read, same
from model.checkpoints.families.llama import DERIVED, SIZES, TENSORS
from model.checkpoints.families.rope import rope


def _read_layer_types(values: Mapping[str, Any]) -> dict[str, Any]:
    types = values.get("layer_types")
    if types is not None and (set(types) != {"full_attention"} or len(types) != values.get("num_hidden_layers")):
        raise ValueError(
            f"layer_types must name full_attention once for each of {values.get('num_hidden_layers')} layers: sliding "
            "windows are not supported"
        )
    return {}


FULL_ATTENTION = (
    fixed("use_sliding_window", False),
    ignored("sliding_window"),
    ignored("max_window_layers"),
    Rule(("layer_types",), _read_layer_types, lambda config: {}),
)
FAMILY = Family(
    name="qwen2",
    model_type="qwen2",
    rules=(
        *SIZES,
        *FULL_ATTENTION,
        same("intermediate_size", "feed_forward_size"),
        same("max_position_embeddings", "maximum_positions", 32768),
        same("rms_norm_eps", "norm_epsilon", 1e-6),
        same("tie_word_embeddings", "tie_embeddings", False),
        rope(10_000.0),
        only_read(fixed("use_mrope", False)),
        ignored("architectures", ["Qwen2ForCausalLM"]),
    ),
    tensors=TENSORS,
    always={
        "attention": "causal",
        "norm": "rms_cast_first",
        "query_key_norm": False,
        "attention_bias": "query_key_value",
    },
    derived_tensors=DERIVED,
)
