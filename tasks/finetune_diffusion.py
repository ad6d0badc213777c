"""Fine-tunes the diffusion model on conversations: the prompt is never hidden, the answer is denoised block by block.

    python -m tasks.finetune_diffusion

`objective: block_diffusion` makes a block-causal model with an exact cache, `masked_diffusion` a bidirectional one.
"""

from tasks.stage import Stage, run_stage
from tasks.training import diffusion_objective, likelihood_objective, parent_checkpoint, reading_as, train_stage


def finetune_diffusion(stage: Stage) -> None:
    """data/models/pretrain_diffusion -> data/models/finetune_diffusion."""
    parent = parent_checkpoint(stage, "pretrain_diffusion")
    name = stage.section["objective"]
    objective = diffusion_objective(name, parent.config, stage.section.get("hiding"))
    network = reading_as(parent.network, name)
    validation = likelihood_objective(name, parent.config)
    train_stage(stage, network, objective, validation, "instructions", ("objective", "hiding"), parent.folder)


if __name__ == "__main__":
    run_stage(finetune_diffusion, "finetune_diffusion")
