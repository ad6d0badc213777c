"""Trains an autoregressive model from scratch on packed documents.

python -m tasks.pretrain_ar
"""

import torch

from model.checkpoints.network_weights import empty_sharded_network
from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.objectives.next_token import NextToken
from model.text.tokenizer import load_tokenizer
from model.training.loop import seeded
from tasks.stage import Stage, run_stage
from tasks.training import shard_of, train_stage, training_device


def pretrain_ar(stage: Stage) -> None:
    """data/tokens -> data/models/pretrain_ar."""
    folder = stage.root / "data/tokens/tokenizer"
    tokenizer = load_tokenizer(str(folder))
    config = NetworkConfig.from_dict(
        {
            **stage.params["network"],
            "vocabulary_size": len(tokenizer),
            "attention": "causal",
            "block_tokens": stage.params["tokenize"]["block_tokens"],
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
    )
    shard = shard_of(stage)
    network = (
        Transformer(config) if shard is None else empty_sharded_network(config, training_device(), torch.float32, shard)
    )
    network.initialise(seeded(stage.seed, 1))
    train_stage(stage, network, NextToken(), NextToken(), "pretrain", (), folder)


if __name__ == "__main__":
    run_stage(pretrain_ar, "pretrain_ar")
