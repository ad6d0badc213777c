"""The optimizers and the learning-rate schedules by name."""

import math
from collections.abc import Callable

import torch
from torch import nn

from model.network.experts import MixtureOfExperts
from model.training.muon import Muon

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "wsd", "constant")


def make_optimizers(
    network: nn.Module, name: str, learning_rate: float, weight_decay: float, beta2: float = 0.98
) -> list[torch.optim.Optimizer]:
    """`adamw`, or `muon` for the matrices inside the layers beside AdamW for embeddings, head and everything else.

    One learning rate serves both. Norm weights and biases (fewer than two dimensions) are not decayed.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer '{name}' must be one of {', '.join(OPTIMIZERS)}")
    groups = _muon_groups(network) if name == "muon" else []
    taken = {id(parameter) for group in groups for parameter in group["params"]}
    rest = [p for p in network.parameters() if p.requires_grad and id(p) not in taken]
    adamw = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    made: list[torch.optim.Optimizer] = [Muon(groups, learning_rate, weight_decay)] if groups else []
    return [*made, torch.optim.AdamW(adamw, lr=learning_rate, betas=(0.9, beta2), fused=True)]


def _muon_groups(network: nn.Module) -> list[dict]:
    """The layers' linear maps, experts included, grouped by how many matrices are stacked in each; a router is none of them."""
    groups: dict[tuple[int, ...] | None, list[nn.Parameter]] = {}
    for module in network.layers.modules():
        if isinstance(module, nn.Linear | MixtureOfExperts):
            parts = getattr(module, "parts", {})
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dim() >= 2 and parameter.requires_grad:
                    groups.setdefault(parts.get(name), []).append(parameter)
    return [{"params": parameters, "parts": parts} for parts, parameters in groups.items()]


def learning_rate_factor(
    schedule: str, steps: int, warmup_steps: int, minimum_fraction: float, decay_fraction: float = 0.3
) -> Callable[[int], float]:
    """Step (0-based) -> factor of the peak rate: linear warm-up, then cosine, warm-up/stable/decay (`wsd`), or constant."""
    if schedule not in SCHEDULES:
        raise ValueError(f"learning-rate schedule '{schedule}' must be one of {', '.join(SCHEDULES)}")
    if warmup_steps >= steps:
        raise ValueError(f"warmup_steps {warmup_steps} must be smaller than steps {steps}")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if schedule == "constant":
            return 1.0
        progress = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
        if schedule == "cosine":
            shape = 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
        else:
            shape = min(1.0, max(0.0, 1.0 - progress) / decay_fraction)
        return minimum_fraction + (1.0 - minimum_fraction) * shape

    return factor
