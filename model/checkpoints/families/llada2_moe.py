"""LLaDA 2.x (inclusionAI/LLaDA2.0-mini, -flash; `model_type: llada2_moe`, arXiv:2512.15745), and dFactory's merged experts.

The public layout has one tensor per expert; dFactory trains with each projection stacked over the experts.
"""

from dataclasses import replace

from model.checkpoints.families.family import DTYPE, Family, Rule, fixed, ignored, only_read, same, when_set
from model.checkpoints.families.llama import one_token
from model.checkpoints.families.rope import rope

_LAYER = "model.layers.{layer}."
_MLP = _LAYER + "mlp."
_RULES = (
    same("vocab_size", "vocabulary_size", write=lambda config: config.embedding_rows),
    same("hidden_size", "hidden_size"),
    same("num_hidden_layers", "num_layers"),
    same("num_attention_heads", "num_heads"),
    # 0 means: as many as query heads.
    same("num_key_value_heads", "num_key_value_heads", None, lambda value: value or None, lambda config: config.key_value_heads),
    same("head_dim", "head_size", None, write=lambda config: config.width_per_head),
    same("intermediate_size", "feed_forward_size"),
    same("max_position_embeddings", "maximum_positions", 16384),
    same("rms_norm_eps", "norm_epsilon", 1e-5),
    same("tie_word_embeddings", "tie_embeddings", False),
    rope(10_000.0, fraction=0.5),
    same(
        "use_qkv_bias", "attention_bias", False,
        read=lambda value: "query_key_value" if value else "none",
        write=lambda config: config.attention_bias == "query_key_value",
    ),
    same("num_experts", "num_experts", 16),
    same("num_experts_per_tok", "experts_per_token", 2),
    same("n_group", "num_expert_groups", 8),
    same("topk_group", "groups_per_token", 4),
    same("moe_intermediate_size", "expert_feed_forward_size"),
    same("num_shared_experts", "num_shared_experts", 0),
    same("first_k_dense_replace", "num_dense_layers", 0),
    same("routed_scaling_factor", "routed_scaling_factor", 2.5),
    same("pad_token_id", "pad_token_id", None),
    when_set("mask_token_id", "mask_token_id"),
    when_set("bos_token_id", "bos_token_id"),
    replace(when_set("eos_token_id", "eos_token_id"), read=same("eos_token_id", "eos_token_id", None, read=one_token).read),
    fixed("hidden_act", "silu"),
    fixed("use_bias", False),
    only_read(fixed("use_qk_norm", True)),
    fixed("use_rmsnorm", True),
    fixed("norm_head", False),
    fixed("moe_router_enable_expert_bias", True),
    fixed("score_function", "sigmoid"),
    fixed("norm_topk_prob", True),
    fixed("use_sliding_window", False),
    fixed("using_split_qkv_in_self_attention", False),
    Rule(("rotary_dim",), lambda values: {}, lambda config: {"rotary_dim": config.rotary_width}),
    ignored("router_dtype", "fp32"),
    ignored("sliding_window"),
    ignored("attention_dropout", 0.0),
    ignored("embedding_dropout", 0.0),
    ignored("output_dropout", 0.0),
    ignored("norm_softmax", False),
    ignored("initializer_range", 0.02),
    ignored("max_window_layers", 28),
    ignored("output_router_logits", False),
    ignored("use_cache", False),
    ignored("torch_dtype", DTYPE),
    ignored("transformers_version", "4.52.3"),
    ignored("architectures", ["LLaDA2MoeModelLM"]),
    ignored(
        "auto_map",
        {
            "AutoConfig": "configuration_llada2_moe.LLaDA2MoeConfig",
            "AutoModel": "modeling_llada2_moe.LLaDA2MoeModel",
            "AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM",
        },
    ),
)  # fmt: skip
FAMILY = Family(
    name="llada2_moe",
    model_type="llada2_moe",
    rules=_RULES,
    tensors={
        "embedding.weight": "model.word_embeddings.weight",
        "layers.{layer}.attention_norm.weight": _LAYER + "input_layernorm.weight",
        "layers.{layer}.attention.query_key_value.{part}": _LAYER + "attention.query_key_value.{part}",
        "layers.{layer}.attention.query_norm.weight": _LAYER + "attention.query_layernorm.weight",
        "layers.{layer}.attention.key_norm.weight": _LAYER + "attention.key_layernorm.weight",
        "layers.{layer}.attention.output.weight": _LAYER + "attention.dense.weight",
        "layers.{layer}.feed_forward_norm.weight": _LAYER + "post_attention_layernorm.weight",
        "layers.{layer}.feed_forward.gate_up.weight": (_MLP + "gate_proj.weight", _MLP + "up_proj.weight"),
        "layers.{layer}.feed_forward.down.weight": _MLP + "down_proj.weight",
        "layers.{layer}.feed_forward.router.weight": _MLP + "gate.weight",
        "layers.{layer}.feed_forward.router.expert_bias": _MLP + "gate.expert_bias",
        "layers.{layer}.feed_forward.gate_up": (
            _MLP + "experts.{expert}.gate_proj.weight", _MLP + "experts.{expert}.up_proj.weight",
        ),
        "layers.{layer}.feed_forward.down": _MLP + "experts.{expert}.down_proj.weight",
        "layers.{layer}.feed_forward.shared.gate_up.weight": (
            _MLP + "shared_experts.gate_proj.weight", _MLP + "shared_experts.up_proj.weight",
        ),
        "layers.{layer}.feed_forward.shared.down.weight": _MLP + "shared_experts.down_proj.weight",
        "norm.weight": "model.norm.weight",
        "unembedding.weight": "lm_head.weight",
    },
    always={
        "attention": "block_causal", "block_tokens": 32, "norm": "rms_cast_first", "query_key_norm": True,
        "query_key_norm_place": "before_rotary",
    },
)  # fmt: skip
MERGED = replace(
    FAMILY,
    name="llada2_moe_merged",
    model_type="llada2_moe_veomni",
    tensors=FAMILY.tensors
    | {
        "layers.{layer}.feed_forward.gate_up": (_MLP + "experts.gate_proj", _MLP + "experts.up_proj"),
        "layers.{layer}.feed_forward.down": _MLP + "experts.down_proj",
    },
)
