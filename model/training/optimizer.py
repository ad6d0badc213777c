"""AdamW with decay on matrices only, and the learning-rate schedules by name."""

import math
from collections.abc import Callable

import torch
from torch import nn

SCHEDULES = ("cosine", "wsd", "constant")


def make_optimizer(
    network: nn.Module, learning_rate: float, weight_decay: float, beta2: float = 0.98
) -> torch.optim.AdamW:
    """Fused AdamW; norm weights and biases (fewer than two dimensions) are not decayed."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, beta2), fused=True)


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
