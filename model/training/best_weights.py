"""The weights of a run's best evaluations, kept beside its resume points, and their mean (LLaDA 2.0's checkpoint merge)."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from model.checkpoints.network_weights import is_sharded
from model.training.sharding import load_shards, processes, save_shards


@dataclass(frozen=True)
class BestWeights:
    """One safetensors file per kept step in `folder`; a folder of them where processes share the network."""

    folder: Path

    def write(self, network: nn.Module, step: int) -> None:
        """The network's weights as those of `step`, in one rename. All processes that share it call this, else one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        unfinished, target = self.folder / "writing", self._place(step)
        if not is_sharded(network):
            save_model(network, str(unfinished))
            os.replace(unfinished, target)
            return
        together = processes()
        if together.is_main_process:
            for left in (unfinished, target):
                shutil.rmtree(left, ignore_errors=True)
        together.wait_for_everyone()
        save_shards(unfinished, network, [])
        together.wait_for_everyone()
        if together.is_main_process:
            os.replace(unfinished, target)

    def remove(self, steps: Iterable[int]) -> None:
        """Forgets steps; one that is gone already (a resumed run removes it again) is no error."""
        for step in steps:
            place = self._place(step)
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)

    @torch.no_grad()
    def load_mean(self, network: nn.Module, steps: list[int]) -> None:
        """The mean over the steps, parameter by parameter, summed in float64; buffers are those of the last step given."""
        sums: dict[str, torch.Tensor] = {}
        for step in steps:
            if is_sharded(network):
                load_shards(self._place(step), network, [])
            else:
                load_model(network, str(self._place(step)))
            for name, value in network.named_parameters():
                sums[name] = sums.get(name, 0.0) + value.double()
        for name, value in network.named_parameters():
            value.copy_(sums[name] / len(steps))

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.safetensors"
