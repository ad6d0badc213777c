"""The weights of a run's best evaluations, kept beside its resume points, and their mean (LLaDA 2.0's checkpoint merge)."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn


@dataclass(frozen=True)
class BestWeights:
    """One safetensors file per kept step in `folder`."""

    folder: Path

    def write(self, network: nn.Module, step: int) -> None:
        """The network's weights as those of `step`, in one rename."""
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished = self.folder / "writing"
        save_model(network, str(unfinished))
        os.replace(unfinished, self._file(step))

    def remove(self, steps: Iterable[int]) -> None:
        """Forgets steps; one that is gone already (a resumed run removes it again) is no error."""
        for step in steps:
            self._file(step).unlink(missing_ok=True)

    @torch.no_grad()
    def load_mean(self, network: nn.Module, steps: list[int]) -> None:
        """The mean over the steps, parameter by parameter, summed in float64; buffers are those of the last step given."""
        sums: dict[str, torch.Tensor] = {}
        for step in steps:
            load_model(network, str(self._file(step)))
            for name, value in network.named_parameters():
                sums[name] = sums.get(name, 0.0) + value.double()
        for name, value in network.named_parameters():
            value.copy_(sums[name] / len(steps))

    def _file(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.safetensors"
