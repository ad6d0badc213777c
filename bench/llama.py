"""transformers' Llama with the sizes and the weights of a network of ours: what the benches compare with."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from model.checkpoints.families.llama import FAMILY
from model.checkpoints.network_weights import owned
from model.checkpoints.tensor_map import places
from model.network.config import NetworkConfig
from model.network.transformer import Transformer


def llama(config: NetworkConfig) -> LlamaForCausalLM:
    """The public network of these sizes, with torch's fused attention (sdpa), as transformers starts it."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocabulary_size, hidden_size=config.hidden_size, num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads, num_key_value_heads=config.key_value_heads,
            intermediate_size=config.feed_forward_size, max_position_embeddings=config.maximum_positions,
            rms_norm_eps=config.norm_epsilon, tie_word_embeddings=config.tie_embeddings, attn_implementation="sdpa",
            use_cache=False,
        )
    )  # fmt: skip


@torch.no_grad()
def copy_weights(ours: Transformer, theirs: LlamaForCausalLM) -> None:
    """`theirs` computes what `ours` computes."""
    tensors, targets = owned(ours, ours.config), dict(theirs.named_parameters())
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    for place in places(FAMILY, ours.config, shapes):
        targets.pop(place.theirs).copy_(place.part(tensors[place.ours]))
    assert not targets, sorted(targets)
