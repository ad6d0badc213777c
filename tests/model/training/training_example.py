"""A training run small enough for tests, and a program that a test can kill: python training_example.py WORK DATA STEPS."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.noise import HidingConfig
from model.objectives.block_diffusion import BlockDiffusion
from model.text.packing import Layout, RowWriter, TokenRows
from model.training.config import TrainingConfig
from model.training.loader import RowLoader
from model.training.loop import Trainer, seeded

MASK = 19


class Silent:
    """A tracker that remembers."""

    location = "memory"

    def __init__(self) -> None:
        self.points: list[tuple[int, dict]] = []

    def log_metrics(self, metrics, step=0) -> None:
        self.points.append((step, metrics))


def write_rows(folder: Path, rows: int = 40, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    writer = RowWriter(folder, Layout(16, 4, 20, 1, 0))
    tokens = (np.arange(16)[None] * 3 + rng.integers(2, 19, (rows, 1))) % 17 + 2
    real = np.ones((rows, 16), bool)
    writer.append(tokens, np.zeros((rows, 4)), real, real)
    writer.counts.bytes = rows * 16
    writer.close()
    return folder


CONFIG = NetworkConfig(
    vocabulary_size=20,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    feed_forward_size=24,
    attention="block_causal",
    block_tokens=4,
    mask_token_id=MASK,
    eos_token_id=1,
    pad_token_id=0,
)


def fresh_network(config: NetworkConfig = CONFIG) -> Transformer:
    network = Transformer(config)
    network.initialise(seeded(0, 1))
    return network


def trainer(
    work: Path, data: Path, objective=None, network: Transformer | None = None, judge=None, **changes
) -> Trainer:
    network = network or fresh_network()
    values = {
        "steps": 30,
        "batch_rows": 8,
        "learning_rate": 1e-2,
        "warmup_steps": 2,
        "validate_every_steps": 10,
        "checkpoint_every_steps": 5,
        "log_every_steps": 5,
        "validation_rows": 16,
    } | changes
    hidden = objective or BlockDiffusion(MASK, 4)
    work.mkdir(parents=True, exist_ok=True)
    judge = judge or objective or BlockDiffusion(MASK, 4, HidingConfig("exact_count"))
    loader = RowLoader([(data, 1.0)], values["batch_rows"], 0)
    return Trainer(
        network, hidden, judge, loader, TokenRows(data), TrainingConfig(**values), work, Silent(), 0, "example"
    )


def fingerprint(run: Trainer) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(run.raw_network.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest() + json.dumps(run.progress.curve, sort_keys=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run = trainer(Path(sys.argv[1]), Path(sys.argv[2]), steps=int(sys.argv[3]))
    run.run()
    Path(sys.argv[1], "fingerprint").write_text(fingerprint(run))
