"""The sizes and choices of one network, as saved in config.json beside its weights."""

from dataclasses import asdict, dataclass, fields
from typing import Any

ATTENTION_KINDS = ("causal", "bidirectional", "block_causal")


@dataclass(frozen=True)
class NetworkConfig:
    """Everything needed to build a network; a folder's config.json holds exactly these fields.

    `attention` is how the network reads when it decodes: `causal` (autoregressive, position i predicts token i+1),
    `bidirectional` (LLaDA 1.0) or `block_causal` (LLaDA 2.0; blocks of `block_tokens`), both predicting token i at position i.
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
    norm_epsilon: float = 1e-5
    query_key_norm: bool = True
    tie_embeddings: bool = True
    mask_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.attention not in ATTENTION_KINDS:
            raise ValueError(f"network.attention '{self.attention}' must be one of {', '.join(ATTENTION_KINDS)}")
        if self.head_size is None and self.hidden_size % self.num_heads:
            raise ValueError(
                f"network.hidden_size {self.hidden_size} must be a multiple of network.num_heads {self.num_heads}, "
                "or network.head_size must be given"
            )
        if self.num_heads % self.key_value_heads:
            raise ValueError(
                f"network.num_heads {self.num_heads} must be a multiple of network.num_key_value_heads {self.key_value_heads}"
            )
        if self.width_per_head % 2:
            raise ValueError(
                f"the head size {self.width_per_head} must be even: rotary embedding turns pairs of dimensions"
            )

    @property
    def width_per_head(self) -> int:
        """Dimensions of one attention head."""
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def key_value_heads(self) -> int:
        """Number of key/value heads (grouped-query attention when fewer than query heads)."""
        return self.num_key_value_heads or self.num_heads

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
