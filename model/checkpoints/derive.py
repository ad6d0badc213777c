"""New networks from old weights: AR -> diffusion, and a draft from a subset of a target's layers."""

from dataclasses import replace

import torch
from torch import nn

from model.network.config import NetworkConfig
from model.network.transformer import Transformer


def to_diffusion(network: Transformer, attention: str, block_tokens: int, mask_token_id: int) -> Transformer:
    """The same weights reading with `attention`; a mask token beyond the vocabulary gets a new row (the mean of all rows).

    methods section 1: copy every weight; one mask token is appended to the vocabulary if it has none. The mean row puts the
    new token where the network has seen inputs, and its norm is small because the rows point in all directions.
    """
    config = replace(
        network.config,
        attention=attention,
        block_tokens=block_tokens,
        mask_token_id=mask_token_id,
        vocabulary_size=max(network.config.vocabulary_size, mask_token_id + 1),
    )
    converted = Transformer(config)
    with torch.no_grad():
        for name, parameter in converted.named_parameters():
            source = network.get_parameter(name)
            parameter[: source.shape[0]] = source
            if parameter.shape[0] > source.shape[0]:
                parameter[source.shape[0] :] = source.mean(0)
    return converted


def first_and_last_layers(num_layers: int, keep: int) -> list[int]:
    """Indices of the first and the last keep / 2 layers (the published layer-subset recipe)."""
    if keep % 2 or not 0 < keep <= num_layers:
        raise ValueError(f"a layer subset keeps an even number of at most {num_layers} layers, got {keep}")
    return [*range(keep // 2), *range(num_layers - keep // 2, num_layers)]


def layer_subset(network: Transformer, layers: list[int]) -> Transformer:
    """A deep copy with only the given layers, plus embeddings, final norm and head."""
    config: NetworkConfig = replace(network.config, num_layers=len(layers))
    student = Transformer(config)
    student.load_state_dict(
        {
            **{k: v for k, v in network.state_dict().items() if not k.startswith("layers.")},
            **_layers(network.layers, layers),
        }
    )
    return student


def _layers(source: nn.ModuleList, layers: list[int]) -> dict[str, torch.Tensor]:
    return {
        f"layers.{new}.{name}": value
        for new, old in enumerate(layers)
        for name, value in source[old].state_dict().items()
    }
