"""Goes on pretraining as a diffusion model: masked diffusion on whole documents, read both ways.

python -m tasks.pretrain_diffusion
"""

from tasks.stage import Stage, run_stage
from tasks.training import diffusion_objective, likelihood_objective, parent_checkpoint, reading_as, train_stage


def pretrain_diffusion(stage: Stage) -> None:
    """data/models/convert_to_diffusion -> data/models/pretrain_diffusion."""
    parent = parent_checkpoint(stage, "convert_to_diffusion")
    name = stage.section["objective"]
    objective = diffusion_objective(name, parent.config, stage.section.get("hiding"))
    network = reading_as(parent.network, name)
    validation = likelihood_objective(name, parent.config)
    train_stage(stage, network, objective, validation, "pretrain", ("objective", "hiding"), parent.folder)


if __name__ == "__main__":
    run_stage(pretrain_diffusion, "pretrain_diffusion")
