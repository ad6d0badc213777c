"""Fine-tunes the diffusion model on conversations: the prompt is never hidden, the answer is denoised block by block.

    python -m tasks.finetune_diffusion

`objective: block_diffusion` makes a block-causal model with an exact cache, `masked_diffusion` a bidirectional one.
"""

from tasks.stage import Stage, run_stage
from tasks.training import train_diffusion


def finetune_diffusion(stage: Stage) -> None:
    """data/models/pretrain_diffusion -> data/models/finetune_diffusion."""
    train_diffusion(stage, "pretrain_diffusion", "instructions")


if __name__ == "__main__":
    run_stage(finetune_diffusion, "finetune_diffusion")
