"""Qwen3, dense (`model_type: qwen3`): Llama with normalised queries and keys."""

from model.checkpoints.families.family import Family, ignored, same
from model.checkpoints.families.llama import DERIVED, SIZES, TENSORS
from model.checkpoints.families.qwen2 import FULL_ATTENTION
from model.checkpoints.families.rope import rope

FAMILY = Family(
    name="qwen3",
    model_type="qwen3",
    rules=(
        *SIZES,
        *FULL_ATTENTION,
        same("intermediate_size", "feed_forward_size"),
        same("head_dim", "head_size", 128, write=lambda config: config.width_per_head),
        same("max_position_embeddings", "maximum_positions", 32768),
        same("rms_norm_eps", "norm_epsilon", 1e-6),
        same("tie_word_embeddings", "tie_embeddings", False),
        same(
            "attention_bias", "attention_bias", False,
            read=lambda value: "all" if value else "none", write=lambda config: config.attention_bias == "all",
        ),
        rope(10_000.0),
        ignored("architectures", ["Qwen3ForCausalLM"]),
    ),
    tensors=TENSORS,
    always={"attention": "causal", "norm": "rms_cast_first", "query_key_norm": True},
    derived_tensors=DERIVED,
)  # fmt: skip
