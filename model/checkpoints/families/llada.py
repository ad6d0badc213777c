"""LLaDA 1.0 (GSAI-ML/LLaDA-8B, `model_type: llada`, arXiv:2502.09992): a bidirectional Llama block, untied head."""

from collections.abc import Mapping
from typing import Any

from model.checkpoints.families.family import Family, Rule, fixed, ignored, only_read, same

_BLOCK = "model.transformer.blocks.{layer}."


def _read_width(values: Mapping[str, Any]) -> dict[str, Any]:
    width = values.get("mlp_hidden_size")
    if width is None:
        width = values.get("mlp_ratio", 4) * values["d_model"]
    return {"feed_forward_size": width}


FAMILY = Family(
    name="llada",
    model_type="llada",
    rules=(
        same("d_model", "hidden_size"),
        same("n_layers", "num_layers"),
        same("n_heads", "num_heads"),
        same("n_kv_heads", "num_key_value_heads", None, write=lambda config: config.key_value_heads),
        Rule(
            ("mlp_hidden_size", "mlp_ratio"), _read_width,
            lambda config: {"mlp_hidden_size": config.feed_forward_size, "mlp_ratio": 4}, "feed_forward_size",
        ),
        same("vocab_size", "vocabulary_size"),
        same("embedding_size", "embedding_size", None, write=lambda config: config.embedding_rows),
        same("max_sequence_length", "maximum_positions"),
        same("rms_norm_eps", "norm_epsilon", 1e-5),
        same("rope_theta", "rotary_base", 10_000.0, read=float),
        same("rope_full_precision", "rotary_full_precision", True),
        same("weight_tying", "tie_embeddings", True),
        same(
            "include_qkv_bias", "attention_bias", False,
            read=lambda value: "query_key_value" if value else "none",
            write=lambda config: config.attention_bias == "query_key_value",
        ),
        same("mask_token_id", "mask_token_id", None),
        same("eos_token_id", "eos_token_id", None),
        same("pad_token_id", "pad_token_id", None),
        fixed("activation_type", "silu"),
        fixed("block_type", "llama"),
        fixed("layer_norm_type", "rms"),
        fixed("layer_norm_with_affine", True),
        fixed("attention_layer_norm", False),
        fixed("multi_query_attention", None, False),
        fixed("bias_for_layer_norm", False, None),
        fixed("include_bias", False),
        fixed("input_emb_norm", False),
        fixed("scale_logits", False),
        fixed("rope", True),
        fixed("alibi", False),
        fixed("block_group_size", 1),
        only_read(fixed("clip_qkv", None)),
        ignored("attention_layer_norm_with_affine", True),
        ignored("alibi_bias_max", 8.0),
        ignored("attention_dropout", 0.0),
        ignored("embedding_dropout", 0.0),
        ignored("residual_dropout", 0.0),
        ignored("flash_attention", False),
        ignored("init_cutoff_factor", None),
        ignored("init_device", "meta"),
        ignored("init_fn", "mitchell"),
        ignored("init_std", 0.02),
        ignored("precision", "amp_bf16"),
        ignored("transformers_version", "4.46.3"),
        ignored("use_cache", False),
        ignored("architectures", ["LLaDAModelLM"]),
        ignored(
            "auto_map",
            {
                "AutoConfig": "configuration_llada.LLaDAConfig",
                "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM",
                "AutoModel": "modeling_llada.LLaDAModelLM",
            },
        ),
    ),
    tensors={
        "embedding.weight": "model.transformer.wte.weight",
        "layers.{layer}.attention_norm.weight": _BLOCK + "attn_norm.weight",
        "layers.{layer}.attention.query_key_value.{part}": (
            _BLOCK + "q_proj.{part}", _BLOCK + "k_proj.{part}", _BLOCK + "v_proj.{part}",
        ),
        "layers.{layer}.attention.output.weight": _BLOCK + "attn_out.weight",
        "layers.{layer}.feed_forward_norm.weight": _BLOCK + "ff_norm.weight",
        "layers.{layer}.feed_forward.gate_up.weight": (_BLOCK + "ff_proj.weight", _BLOCK + "up_proj.weight"),
        "layers.{layer}.feed_forward.down.weight": _BLOCK + "ff_out.weight",
        "norm.weight": "model.transformer.ln_f.weight",
        "unembedding.weight": "model.transformer.ff_out.weight",
    },
    always={"attention": "bidirectional", "norm": "rms_cast_first", "query_key_norm": False},
)  # fmt: skip
