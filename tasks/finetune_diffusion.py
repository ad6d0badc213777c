"""Fine-tunes the diffusion model on conversations: the prompt is never hidden, the answer is denoised block by block.

    python -m tasks.finetune_diffusion

`objective: block_diffusion` makes a block-causal model with an exact cache, `masked_diffusion` a bidirectional one.
"""

from model.curricula import RECIPE_KEYS
from tasks.stage import Stage, run_stage
from tasks.training import (
    likelihood_objective,
    parent_checkpoint,
    reading_as,
    row_tokens,
    train_stage,
    training_objective,
)


def finetune_diffusion(stage: Stage) -> None:
    """data/models/pretrain_diffusion -> data/models/finetune_diffusion."""
    parent = parent_checkpoint(stage, "pretrain_diffusion")
    name = stage.section["objective"]
    objective = training_objective(name, parent.config, stage.section, row_tokens(stage))
    network = reading_as(parent.network, name)
    validation = likelihood_objective(name, parent.config)
    train_stage(stage, network, objective, validation, "instructions", ("objective", *RECIPE_KEYS), parent.folder)


if __name__ == "__main__":
    run_stage(finetune_diffusion, "finetune_diffusion")
