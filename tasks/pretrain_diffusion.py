"""Goes on pretraining as a diffusion model: masked diffusion on whole documents, read both ways.

python -m tasks.pretrain_diffusion
"""

from tasks.stage import Stage, run_stage
from tasks.training import train_diffusion


def pretrain_diffusion(stage: Stage) -> None:
    """data/models/convert_to_diffusion -> data/models/pretrain_diffusion."""
    train_diffusion(stage, "convert_to_diffusion", "pretrain")


if __name__ == "__main__":
    run_stage(pretrain_diffusion, "pretrain_diffusion")
