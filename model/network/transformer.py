"""The one network: token ids and an attention pattern in, hidden states out; the head is separate.

The head is a method of its own because every objective and every sampler needs logits at a few positions only.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from model.network.attention import attend
from model.network.cache import Placement
from model.network.config import NetworkConfig
from model.network.documents import DocumentMasks, FlatDocuments
from model.network.experts import MixtureOfExperts
from model.network.feed_forward import FeedForward, StackedLinear
from model.network.masks import AttentionPattern, asked_columns
from model.network.norms import RMSNorm
from model.network.repeated_shapes import spare_rows
from model.network.rotary import Rotary, rotate


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions and, when asked, normalised queries and keys."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width, heads, shared = config.width_per_head, config.num_heads, config.key_value_heads
        self.heads, self.shared, self.width = heads, shared, width
        self.norm_after_turn = config.query_key_norm and config.query_key_norm_place == "after_rotary"
        self.query_key_value = StackedLinear(
            config.hidden_size, (heads * width, shared * width, shared * width), bias=config.attention_bias != "none"
        )
        self.output = nn.Linear(heads * width, config.hidden_size, bias=config.attention_bias == "all")
        self.query_norm = RMSNorm(width, config.norm_epsilon, config.norm) if config.query_key_norm else nn.Identity()
        self.key_norm = RMSNorm(width, config.norm_epsilon, config.norm) if config.query_key_norm else nn.Identity()

    def read(
        self,
        x: Float[Tensor, "batch rows hidden"],
        turn: tuple[Tensor, Tensor],
        columns: Int[Tensor, "batch asked"] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the asked columns (None: of all), keys and values of every row; queries and keys normalised and turned."""
        return self._all_heads(x, turn) if columns is None else self._asked_heads(x, turn, columns)

    def mix(
        self,
        heads: tuple[Tensor, Tensor, Tensor],
        allowed: Bool[Tensor, "batch 1 rows keys"] | Placement | DocumentMasks,
        layer: int,
        columns: Int[Tensor, "batch asked"] | None,
    ) -> Float[Tensor, "batch asked wide"]:
        """What every query takes from the values, heads side by side.

        `allowed` says who attends to whom, where in a cache the rows stand, or which documents they are. Keys are cached rotated:
        positions never change.
        """
        if not isinstance(allowed, Tensor):
            mixed = allowed.attend(layer, *heads, columns)
        else:
            mixed = attend(*heads, allowed if columns is None else _take(allowed[:, 0], columns)[:, None])
        return mixed.transpose(1, 2).flatten(2)

    def _all_heads(self, x: Float[Tensor, "batch rows hidden"], turn: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """Queries, keys and values of every row from one product; without norms queries and keys are turned as one."""
        together = _heads(self.query_key_value(x), self.width)
        if isinstance(self.query_norm, RMSNorm):
            query, key, value = together.split((self.heads, self.shared, self.shared), 1)
            return self._turned(query, self.query_norm, turn), self._turned(key, self.key_norm, turn), value
        query_key, value = together.split((self.heads + self.shared, self.shared), 1)
        return *rotate(query_key, *turn).split((self.heads, self.shared), 1), value

    def _asked_heads(
        self, x: Float[Tensor, "batch rows hidden"], turn: tuple[Tensor, Tensor], columns: Int[Tensor, "batch asked"]
    ) -> tuple[Tensor, ...]:
        """Queries of the asked columns alone, keys and values of every row."""
        sizes = (self.heads * self.width, 2 * self.shared * self.width)
        stacked = self.query_key_value
        of_query, of_rest = stacked.weight.split(sizes)
        query_bias, rest_bias = (None, None) if stacked.bias is None else stacked.bias.split(sizes)
        key, value = _heads(functional.linear(x, of_rest, rest_bias), self.width).split(self.shared, dim=1)
        query = _heads(functional.linear(_take(x, columns), of_query, query_bias), self.width)
        asked_turn = tuple(_take(part[:, 0], columns)[:, None] for part in turn)
        return self._turned(query, self.query_norm, asked_turn), self._turned(key, self.key_norm, turn), value

    def _turned(self, x: Tensor, norm: nn.Module, turn: tuple[Tensor, Tensor]) -> Tensor:
        return norm(rotate(x, *turn)) if self.norm_after_turn else rotate(norm(x), *turn)


def _heads(x: Float[Tensor, "batch rows wide"], width: int) -> Float[Tensor, "batch heads rows width"]:
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def _take(
    x: Float[Tensor, "batch rows width"], columns: Int[Tensor, "batch asked"]
) -> Float[Tensor, "batch asked width"]:
    return x.gather(1, columns[:, :, None].expand(-1, -1, x.shape[2]))


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: NetworkConfig, index: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_epsilon, config.norm)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.hidden_size, config.norm_epsilon, config.norm)
        self.feed_forward = MixtureOfExperts(config) if config.is_mixture(index) else _dense(config)

    def forward(
        self,
        x: Tensor,
        turn: tuple[Tensor, Tensor],
        allowed: Tensor | Placement | DocumentMasks,
        index: int,
        asked: Bool[Tensor, "batch rows"] | Int[Tensor, " asked"] | None = None,
    ) -> Tensor:
        """The new residual stream of layer `index`; with `asked` only those rows, flat [num_asked, hidden]."""
        flat = asked is not None and asked.dtype != torch.bool
        if asked is None:
            columns = None
        elif flat:  # indices into a flat line of tokens, known to the caller: no device has to be asked how many
            columns = asked[None]
        else:
            columns, real = asked_columns(asked)
        mixed = self.attention.mix(self.read(x, turn, columns), allowed, index, columns)
        if flat:
            x, mixed = x.squeeze(0)[asked], mixed.squeeze(0)
        elif asked is not None:
            x, mixed = x[asked], mixed[real]
        return self.write(x, mixed)

    def read(self, x: Tensor, turn: tuple[Tensor, Tensor], columns: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values: what happens to every token by itself before the tokens meet."""
        return self.attention.read(self.attention_norm(x), turn, columns)

    def write(
        self, x: Float[Tensor, "*batch hidden"], mixed: Float[Tensor, "*batch wide"]
    ) -> Float[Tensor, "*batch hidden"]:
        """The new residual stream: what happens to every token by itself after they have met."""
        x = x + self.attention.output(mixed)
        return x + self.feed_forward(self.feed_forward_norm(x))


def _dense(config: NetworkConfig) -> nn.Module:
    return FeedForward(config.hidden_size, config.feed_forward_size, config.feed_forward_bias)


class Transformer(nn.Module):
    """A decoder stack whose attention pattern is an argument: the same weights read causally, both ways, or in blocks."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.embedding_rows, config.hidden_size)
        self.embedding_norm = (
            RMSNorm(config.hidden_size, config.norm_epsilon, "rms_unweighted")
            if config.embedding_norm
            else nn.Identity()
        )
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_layers))
        self.has_experts = any(config.is_mixture(index) for index in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_epsilon, config.norm)
        self.rotary = Rotary(config.rotary_width, config.rotary_base, config.maximum_positions, config.rotary_scaling)
        self.unembedding = nn.Linear(config.hidden_size, config.embedding_rows, bias=False)
        self.tie()

    def tie(self) -> None:
        """Makes the head the embedding where the configuration says so; needed again after tensors were replaced."""
        if self.config.tie_embeddings:
            self.unembedding.weight = self.embedding.weight

    def forward(
        self,
        tokens: Int[Tensor, "batch rows"],
        positions: Int[Tensor, "batch rows"],
        pattern: AttentionPattern | FlatDocuments | Bool[Tensor, "batch 1 rows keys"],
        embedding_noise: Float[Tensor, "batch rows hidden"] | None = None,
        asked: Bool[Tensor, "batch rows"] | None = None,
    ) -> Float[Tensor, "..."]:
        """Normalised hidden states [batch, rows, hidden]; a pattern, or the dense matrix, says who attends to whom.

        With `asked` the result is [num_asked, hidden] in row-major order, and the last layer computes no other row: an objective
        that grades a quarter of the rows saves most of a layer.
        """
        allowed = pattern if isinstance(pattern, Tensor) else pattern.allowed()
        if isinstance(allowed, DocumentMasks):
            return self._run_flat(tokens, positions, allowed, embedding_noise, asked)
        return self._run(tokens, positions, allowed, embedding_noise, asked)

    def _run_flat(self, tokens, positions, allowed: DocumentMasks, embedding_noise, asked) -> Tensor:
        """A flat line of documents, rounded up where that is faster; the last spare row stands for those asked too many.

        Not of a mixture: its experts would count rows that are nobody's.
        """
        rows = tokens.shape[1]
        spare = 0 if self.has_experts else spare_rows(rows, self.embedding.weight)
        if spare:
            tokens, positions = (functional.pad(each, (0, spare)) for each in (tokens, positions))
            embedding_noise = None if embedding_noise is None else functional.pad(embedding_noise, (0, 0, 0, spare))
        if asked is None:
            return self._run(tokens, positions, allowed, embedding_noise, None)[:, :rows]
        asked = asked[0].nonzero()[:, 0]
        count = len(asked)
        if spare:
            asked = functional.pad(asked, (0, spare_rows(count, self.embedding.weight)), value=rows + spare - 1)
        return self._run(tokens, positions, allowed, embedding_noise, asked)[:count]

    def forward_cached(
        self,
        tokens: Int[Tensor, " tokens"],
        positions: Int[Tensor, " tokens"],
        placement: Placement,
        asked: Int[Tensor, " asked"] | None,
    ) -> Float[Tensor, "asked hidden"]:
        """Normalised hidden states of the asked tokens (None: of all) of a flat line that reads, and writes, a cache."""
        hidden = self._run(tokens[None], positions[None], placement, None, asked)
        return hidden[0] if asked is None else hidden

    def _run(self, tokens, positions, allowed: Tensor | Placement | DocumentMasks, embedding_noise, asked) -> Tensor:
        x = self.embedding(tokens)
        if embedding_noise is not None:
            x = x + embedding_noise
        x = self.embedding_norm(x)
        turn = self.rotary(positions, torch.float32 if self.config.rotary_full_precision else x.dtype)
        for index, layer in enumerate(self.layers):
            x = layer(x, turn, allowed, index, asked if index == len(self.layers) - 1 else None)
        return self.norm(x)

    def head(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch vocabulary"]:
        """Logits of hidden states."""
        return self.unembedding(hidden)

    @torch.no_grad()
    def initialise(self, rng: torch.Generator) -> None:
        """Fresh weights from one generator: normal 0.02, residual outputs / sqrt(2 num_layers) (GPT-2); norms 1, biases 0.

        Of a network cut over processes each keeps its part of the same draws, made one parameter at a time.
        """
        residual = 0.02 / (2 * self.config.num_layers) ** 0.5
        for name, parameter in sorted(self.named_parameters()):
            if parameter.dim() < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            is_residual = name.removesuffix(".weight").endswith((".attention.output", ".down"))
            is_shared = hasattr(parameter, "device_mesh")
            whole = torch.empty(parameter.shape, dtype=parameter.dtype) if is_shared else parameter
            whole.normal_(0.0, residual if is_residual else 0.02, generator=rng)
            if is_shared:
                parameter.copy_(_own_part(whole, parameter))


def _own_part(whole: Tensor, like: Tensor) -> Tensor:
    """This process' part of a tensor that every process has whole, cut as `like` (a DTensor) is."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def num_parameters(network: nn.Module) -> int:
    """Trainable numbers in a network, tied matrices counted once."""
    return sum(parameter.numel() for parameter in network.parameters())
