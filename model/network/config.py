"""The sizes and choices of one network, as saved in config.json beside its weights."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from model.network.rotary import RotaryScaling

ATTENTION_KINDS = ("causal", "bidirectional", "block_causal")
ATTENTION_BIASES = ("none", "query_key_value", "all")
NORMS = ("rms", "rms_cast_first", "rms_unweighted")
QUERY_KEY_NORM_PLACES = ("before_rotary", "after_rotary")
_CHOICES = {
    "attention": ATTENTION_KINDS,
    "attention_bias": ATTENTION_BIASES,
    "norm": NORMS,
    "query_key_norm_place": QUERY_KEY_NORM_PLACES,
}
_POSITIVE = (
    "vocabulary_size", "hidden_size", "num_layers", "num_heads", "feed_forward_size", "block_tokens", "maximum_positions",
)  # fmt: skip


@dataclass(frozen=True)
class NetworkConfig:
    """Everything needed to build a network; a folder's config.json holds exactly these fields.

    `attention` is how the network reads when it decodes: `causal` (autoregressive, position i predicts token i+1),
    `bidirectional` (LLaDA 1.0) or `block_causal` (LLaDA 2.0; blocks of `block_tokens`), both predicting token i at position i.

    `norm`: `rms` multiplies by the weight in float32 and then casts (MiniMind), `rms_cast_first` casts to the hidden dtype and
    then multiplies (Llama, Qwen, LLaDA; the same in float32), `rms_unweighted` has no weight (Nano-LLaDA). Query and key norms
    are of the same kind. `rotary_full_precision` turns queries and keys in float32 (LLaDA 1.0) instead of in the hidden dtype.

    With `num_experts` > 0 every layer from `num_dense_layers` on is a mixture of experts (LLaDA 2.0: sigmoid scores, choice by
    biased score among the `groups_per_token` best of `num_expert_groups` groups, shared experts added unweighted).
    """

    vocabulary_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    feed_forward_size: int
    num_key_value_heads: int | None = None  # None: as many as query heads
    head_size: int | None = None  # None: hidden_size / num_heads
    attention: str = "causal"
    block_tokens: int = 16
    maximum_positions: int = 1024
    rotary_base: float = 10_000.0
    rotary_fraction: float = 1.0  # of a head's dimensions, the first ones; the others are not turned
    rotary_full_precision: bool = False
    rotary_scaling: RotaryScaling | None = None
    norm: str = "rms"
    norm_epsilon: float = 1e-5
    embedding_norm: bool = False  # an unweighted RMS norm right after the embedding (Nano-LLaDA)
    query_key_norm: bool = True
    query_key_norm_place: str = "before_rotary"
    attention_bias: str = "none"
    feed_forward_bias: bool = False
    tie_embeddings: bool = True
    embedding_size: int | None = None  # rows of the embedding and of the head; None: vocabulary_size
    num_experts: int = 0  # 0: every layer is dense
    experts_per_token: int = 0
    num_expert_groups: int = 1
    groups_per_token: int = 1
    expert_feed_forward_size: int = 0
    num_shared_experts: int = 0
    num_dense_layers: int = 0
    routed_scaling_factor: float = 1.0
    mask_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.rotary_scaling, dict):
            object.__setattr__(self, "rotary_scaling", RotaryScaling.from_dict(self.rotary_scaling))
        self._check_choices_and_sizes()
        self._check_heads()
        self._check_tokens()
        if self.num_experts:
            self._check_mixture()
        elif unused := [name for name in _MIXTURE_FIELDS if getattr(self, name) != _DEFAULTS[name]]:
            raise ValueError(f"network.{unused[0]} {getattr(self, unused[0])} needs network.num_experts, which is 0")

    def _check_choices_and_sizes(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"network.{name} '{getattr(self, name)}' must be one of {', '.join(choices)}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"network.{name} {value!r} must be a whole number of at least 1")

    def _check_heads(self) -> None:
        if self.head_size is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"network.hidden_size {self.hidden_size} must be a multiple of network.num_heads {self.num_heads}, "
                "or network.head_size must be given"
            )
        if self.num_heads % self.key_value_heads:
            raise ValueError(
                f"network.num_heads {self.num_heads} must be a multiple of network.num_key_value_heads {self.key_value_heads}"
            )
        if self.rotary_width % 2 or not 0 < self.rotary_width <= self.width_per_head:
            raise ValueError(
                f"the rotary embedding turns pairs of dimensions: head size {self.width_per_head} times "
                f"network.rotary_fraction {self.rotary_fraction} must be even and above 0, and is {self.rotary_width}"
            )

    def _check_tokens(self) -> None:
        if self.embedding_rows < self.vocabulary_size:
            raise ValueError(
                f"network.embedding_size {self.embedding_size} must be at least network.vocabulary_size {self.vocabulary_size}"
            )
        for name in ("mask_token_id", "bos_token_id", "eos_token_id", "pad_token_id"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < self.embedding_rows:
                raise ValueError(f"network.{name} {token} is not among the {self.embedding_rows} rows of the embedding")

    def _check_mixture(self) -> None:
        for name in ("experts_per_token", "expert_feed_forward_size", "num_expert_groups", "groups_per_token"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"network.{name} {getattr(self, name)} must be at least 1 with network.num_experts > 0"
                )
        if self.num_experts % self.num_expert_groups or not self.groups_per_token <= self.num_expert_groups:
            raise ValueError(
                f"network.num_experts {self.num_experts} must be a multiple of network.num_expert_groups "
                f"{self.num_expert_groups}, and network.groups_per_token {self.groups_per_token} not above that number"
            )
        group = self.num_experts // self.num_expert_groups
        if self.num_expert_groups > 1 and group < 2:
            raise ValueError(f"a group of experts is scored by its best two: {self.num_experts} experts in "
                             f"{self.num_expert_groups} groups (network.num_expert_groups) are fewer")  # fmt: skip
        if self.experts_per_token > group * self.groups_per_token:
            raise ValueError(
                f"network.experts_per_token {self.experts_per_token} is more than the {group * self.groups_per_token} experts "
                f"of {self.groups_per_token} group(s) (network.groups_per_token)"
            )
        if not 0 <= self.num_dense_layers < self.num_layers:
            raise ValueError(f"network.num_dense_layers {self.num_dense_layers} must be below {self.num_layers} layers")

    @property
    def width_per_head(self) -> int:
        """Dimensions of one attention head."""
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def rotary_width(self) -> int:
        """Dimensions of a head that the rotary embedding turns: the first ones."""
        return int(self.width_per_head * self.rotary_fraction)

    @property
    def key_value_heads(self) -> int:
        """Number of key/value heads (grouped-query attention when fewer than query heads)."""
        return self.num_key_value_heads or self.num_heads

    @property
    def embedding_rows(self) -> int:
        """Rows of the embedding and columns of the logits."""
        return self.embedding_size or self.vocabulary_size

    def is_mixture(self, layer: int) -> bool:
        """Whether this layer's feed-forward is a mixture of experts."""
        return self.num_experts > 0 and layer >= self.num_dense_layers

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, for config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "NetworkConfig":
        """The configuration of a saved dictionary; ValueError that names any unknown or missing key."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"unknown key(s) in the network configuration: {', '.join(unknown)}; known: {', '.join(sorted(known))}"
            )
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"incomplete network configuration: {error}") from error


_DEFAULTS = {field.name: field.default for field in fields(NetworkConfig)}
_MIXTURE_FIELDS = (
    "experts_per_token", "num_expert_groups", "groups_per_token", "expert_feed_forward_size", "num_shared_experts",
    "num_dense_layers", "routed_scaling_factor",
)  # fmt: skip
