"""Llama 2 and 3 (`model_type: llama`), and whatever was saved in that layout; the tensor names are also Qwen's and MiniMind's."""

from model.checkpoints.families.family import DTYPE, Family, fixed, ignored, same
from model.checkpoints.families.rope import rope

_LAYER = "model.layers.{layer}."
TENSORS = {
    "embedding.weight": "model.embed_tokens.weight",
    "layers.{layer}.attention_norm.weight": _LAYER + "input_layernorm.weight",
    "layers.{layer}.attention.query_key_value.{part}": (
        _LAYER + "self_attn.q_proj.{part}",
        _LAYER + "self_attn.k_proj.{part}",
        _LAYER + "self_attn.v_proj.{part}",
    ),
    "layers.{layer}.attention.query_norm.weight": _LAYER + "self_attn.q_norm.weight",
    "layers.{layer}.attention.key_norm.weight": _LAYER + "self_attn.k_norm.weight",
    "layers.{layer}.attention.output.{part}": _LAYER + "self_attn.o_proj.{part}",
    "layers.{layer}.feed_forward_norm.weight": _LAYER + "post_attention_layernorm.weight",
    "layers.{layer}.feed_forward.gate_up.{part}": (_LAYER + "mlp.gate_proj.{part}", _LAYER + "mlp.up_proj.{part}"),
    "layers.{layer}.feed_forward.down.{part}": _LAYER + "mlp.down_proj.{part}",
    "norm.weight": "model.norm.weight",
    "unembedding.weight": "lm_head.weight",
}
DERIVED = r".*rotary_emb\.inv_freq"  # stored by old versions of transformers


def one_token(value: int | list[int]) -> int:
    """The first of several end-of-sequence ids; generation ends at one here."""
    return value[0] if isinstance(value, list) else value


SIZES = (
    same("vocab_size", "vocabulary_size", write=lambda config: config.embedding_rows),
    same("hidden_size", "hidden_size"),
    same("num_hidden_layers", "num_layers"),
    same("num_attention_heads", "num_heads"),
    same("num_key_value_heads", "num_key_value_heads", None, write=lambda config: config.key_value_heads),
    fixed("hidden_act", "silu"),
    ignored("initializer_range", 0.02),
    ignored("attention_dropout", 0.0),
    ignored("use_cache", True),
    ignored("torch_dtype", DTYPE),
    same("bos_token_id", "bos_token_id", None),
    same("eos_token_id", "eos_token_id", None, read=one_token),
    same("pad_token_id", "pad_token_id", None),
)
FAMILY = Family(
    name="llama",
    model_type="llama",
    rules=(
        *SIZES,
        same("intermediate_size", "feed_forward_size"),
        same("head_dim", "head_size", None, write=lambda config: config.width_per_head),
        same("max_position_embeddings", "maximum_positions", 2048),
        same("rms_norm_eps", "norm_epsilon", 1e-6),
        same("tie_word_embeddings", "tie_embeddings", False),
        same(
            "attention_bias", "attention_bias", False,
            read=lambda value: "all" if value else "none", write=lambda config: config.attention_bias == "all",
        ),
        same("mlp_bias", "feed_forward_bias", False),
        rope(10_000.0),
        fixed("pretraining_tp", 1),
        ignored("architectures", ["LlamaForCausalLM"]),
    ),
    tensors=TENSORS,
    always={"attention": "causal", "norm": "rms_cast_first", "query_key_norm": False},
    derived_tensors=DERIVED,
)  # fmt: skip
