"""One of several processes that train together: processes_example.py WORK DATA OBJECTIVE PARTS, in torchrun's environment."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from training_example import MASK, trainer

from model.hiding import HidingConfig
from model.objectives.block_diffusion import BlockDiffusion
from model.objectives.confidence import Confidence

BASE = BlockDiffusion(MASK, 4, HidingConfig("iid_t", 0.2, 0.9))
OBJECTIVES = {"block_diffusion": BASE, "confidence": Confidence(BASE, 0.5, 1.0)}

if __name__ == "__main__":
    torch.set_num_threads(1)
    work, data, name, parts = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    changes = {"steps": 6, "accumulation_steps": parts, "learning_rate": 1e-2, "checkpoint_every_steps": 100}
    run = trainer(work, data, OBJECTIVES[name], judge=BASE, **changes)
    run.run()
    if run.accelerator.is_main_process:
        save_file({k: v.contiguous() for k, v in run.raw_network.named_parameters()}, str(work / "weights.safetensors"))
        (work / "losses").write_text(repr([p["train/loss"] for p in run.progress.curve if "train/loss" in p]))
