"""New networks from old weights: AR -> diffusion, and a draft from a subset of a target's layers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from model.checkpoints.network_weights import empty_network, empty_sharded_network
from model.network.config import NetworkConfig
from model.network.transformer import Transformer


def to_diffusion(
    network: Transformer, attention: str, block_tokens: int, mask_token_id: int, is_new: bool = True
) -> Transformer:
    """The same weights reading with `attention`; a new mask token gets the mean row of the embedding, and of an untied head.

    methods section 1: copy every weight; one mask token is appended to the vocabulary if it has none (`is_new`). The mean row
    puts it where the network has seen inputs, and its norm is small because the rows point in all directions. A table higher
    than its tokenizer (Qwen) has a row for it already, which was never trained and is replaced too.
    """
    old = network.config
    config = replace(
        old,
        attention=attention,
        block_tokens=block_tokens,
        mask_token_id=mask_token_id,
        vocabulary_size=max(old.vocabulary_size, mask_token_id + 1),
        embedding_size=old.embedding_size and max(old.embedding_size, mask_token_id + 1),
    )
    converted = _like(network, config)
    source = network.state_dict()
    for name, target in converted.state_dict().items():
        rows = source[name].shape[0]
        target[:rows] = source[name]
        if name in ("embedding.weight", "unembedding.weight"):
            trained = source[name][: mask_token_id if is_new else rows].float().mean(0)
            target[rows:] = trained
            if is_new:
                target[mask_token_id] = trained
    return converted


def first_and_last_layers(num_layers: int, keep: int) -> list[int]:
    """Indices of the first and the last keep / 2 layers (the published layer-subset recipe)."""
    if keep % 2 or not 0 < keep <= num_layers:
        raise ValueError(f"a layer subset keeps an even number of at most {num_layers} layers, got {keep}")
    return [*range(keep // 2), *range(num_layers - keep // 2, num_layers)]


def even_layers(num_layers: int, keep: int) -> list[int]:
    """Indices of `keep` layers spread evenly, the first and the last among them."""
    if not 1 < keep <= num_layers:
        raise ValueError(f"evenly spaced layers are at least 2 and at most {num_layers}, got {keep}")
    return [round(index * (num_layers - 1) / (keep - 1)) for index in range(keep)]


def last_layers(num_layers: int, keep: int) -> list[int]:
    """Indices of the last `keep` layers."""
    if not 0 < keep <= num_layers:
        raise ValueError(f"a layer subset keeps at most {num_layers} layers, got {keep}")
    return list(range(num_layers - keep, num_layers))


Shard = Callable[[Transformer], Any]
LAYER_SUBSETS = {"first_and_last": first_and_last_layers, "even": even_layers, "last": last_layers}


def layer_subset(network: Transformer, layers: list[int], shard: Shard | None = None) -> Transformer:
    """A deep copy with only the given layers, plus embeddings, final norm and head; a dense layer stays dense.

    `shard` cuts the copy over processes as `network` is cut (see load_checkpoint).
    """
    dense = sum(index < network.config.num_dense_layers for index in layers)
    student = _like(network, replace(network.config, num_layers=len(layers), num_dense_layers=dense), shard)
    student.load_state_dict(
        {
            **{k: v for k, v in network.state_dict().items() if not k.startswith("layers.")},
            **_layers(network.layers, layers),
        }
    )
    return student


def narrowed(network: Transformer, shard: Shard | None = None) -> Transformer:
    """The network with bfloat16 parameters: itself, changed in place, or a copy where `shard` cuts it over processes.

    Buffers stay as they are.
    """
    if shard is None:
        for parameter in network.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        return network
    narrow = empty_sharded_network(network.config, network.embedding.weight.device, torch.bfloat16, shard)
    narrow.load_state_dict(network.state_dict())
    return narrow


def _like(network: Transformer, config: NetworkConfig, shard: Shard | None = None) -> Transformer:
    """An empty network where the given one is and in its dtype."""
    device, dtype = network.embedding.weight.device, network.embedding.weight.dtype
    return empty_sharded_network(config, device, dtype, shard) if shard else empty_network(config, device, dtype)


def _layers(source: nn.ModuleList, layers: list[int]) -> dict[str, torch.Tensor]:
    return {
        f"layers.{new}.{name}": value
        for new, old in enumerate(layers)
        for name, value in source[old].state_dict().items()
    }
