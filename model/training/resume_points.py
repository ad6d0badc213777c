"""What a killed run goes on from: weights, optimizer state and progress in one folder, published by one rename."""

import errno
import json
import math
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from torch import nn

from model.training.sharding import load_shards, save_shards


@dataclass
class Progress:
    """Everything a resumed run must know besides weights and optimizer state."""

    step: int = 0
    best: float = math.inf
    evaluations_without_improvement: int = 0
    stopped_early: bool = False
    kept: list[tuple[float, int]] = field(default_factory=list)  # bits per byte and step of what is in work/best
    curve: list[dict[str, float]] = field(default_factory=list)
    shared: bool = False  # whether the resume point is one of processes that share the network


@dataclass(frozen=True)
class ResumePoints:
    """The resume points under `work` of one run, named `name` to people; all processes call every method together."""

    work: Path
    name: str
    accelerator: Accelerator
    network: nn.Module
    optimizers: list[torch.optim.Optimizer]
    shares_network: bool

    def save(self, progress: Progress) -> None:
        """A new resume point; OSError that says what is left where it could not be written."""
        try:
            self._write(progress)
        except (OSError, RuntimeError, SafetensorError) as error:  # each writer has its own word for a full disk
            shutil.rmtree(self.work / "writing", ignore_errors=True)
            before = [point.name for point in self._complete()]
            free = shutil.disk_usage(self.work).free / 2**20
            raise OSError(
                errno.ENOSPC,
                f"{self.name}: the checkpoint of step {progress.step} could not be written ({error}); {free:.0f} MB are "
                f"free. Make room and start again: it goes on from {before[-1] if before else 'the beginning'} in {self.work}",
            ) from error

    def _write(self, progress: Progress) -> None:
        """One atomic rename publishes it; the one before it is removed afterwards."""
        target = self.work / f"step-{progress.step:08d}"
        temporary = self.work / "writing"
        if self.accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.shares_network:
            save_shards(temporary, self.network, self.optimizers)
        else:
            self.accelerator.save_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (temporary / "progress.json").write_text(json.dumps(progress.__dict__))
            os.replace(temporary, target)
            for older in self._complete()[:-1]:
                shutil.rmtree(older)

    def load(self, beginning: Progress) -> Progress:
        """Weights and optimizers of the last point and its progress; `beginning` where there is none.

        ValueError where the point was written by processes that share the network and this run has it whole, or the other way
        round. How many processes they were does not matter.
        """
        points = self._complete()
        if not points:
            return beginning
        progress = Progress(**json.loads((points[-1] / "progress.json").read_text()))
        if progress.shared != self.shares_network:
            shapes = {True: "cut over processes (FSDP2)", False: "whole"}
            raise ValueError(
                f"{self.name}: the resume point {points[-1]} holds a network {shapes[progress.shared]}, this run has it "
                f"{shapes[self.shares_network]}: start it as it was started before, or delete the folder to begin again"
            )
        if self.shares_network:
            load_shards(points[-1], self.network, self.optimizers)
        else:
            self.accelerator.load_state(str(points[-1]))
        return progress

    def _complete(self) -> list[Path]:
        return sorted(path for path in self.work.glob("step-*") if (path / "progress.json").exists())
