"""Goes on pretraining as a diffusion model: masked diffusion on whole documents, read both ways.

python -m tasks.pretrain_diffusion
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


def pretrain_diffusion(stage: Stage) -> None:
    """data/models/convert_to_diffusion -> data/models/pretrain_diffusion."""
    parent = parent_checkpoint(stage, "convert_to_diffusion")
    name = stage.section["objective"]
    objective = training_objective(name, parent.config, stage.section, row_tokens(stage))
    network = reading_as(parent.network, name)
    validation = likelihood_objective(name, parent.config)
    train_stage(stage, network, objective, validation, "pretrain", ("objective", *RECIPE_KEYS), parent.folder)


if __name__ == "__main__":
    run_stage(pretrain_diffusion, "pretrain_diffusion")
