"""Distils a draft model from a subset of the fine-tuned model's layers, for speculative decoding.

python -m tasks.distill_draft
"""

from model.checkpoints.derive import first_and_last_layers, layer_subset, narrowed
from model.curricula import RECIPE_KEYS
from model.objectives.match_teacher import MatchTeacher
from tasks.stage import Stage, run_stage
from tasks.training import (
    OBJECTIVE_OF,
    likelihood_objective,
    parent_checkpoint,
    row_tokens,
    shard_of,
    train_stage,
    training_objective,
)

METHOD_KEYS = ("layers", "teacher_share", "direction", *RECIPE_KEYS)


def distill_draft(stage: Stage) -> None:
    """data/models/finetune_diffusion -> data/models/distill_draft: first and last `layers` / 2 layers, then training."""
    teacher = parent_checkpoint(stage, "finetune_diffusion")
    kept = first_and_last_layers(teacher.config.num_layers, stage.section["layers"])
    student = layer_subset(teacher.network, kept, shard_of(stage))
    teaching = teacher.network
    if stage.section.get("precision") == "bfloat16":  # the student keeps float32 weights, a frozen teacher needs none
        teaching = narrowed(teaching, shard_of(stage))
    base_name = OBJECTIVE_OF[teacher.config.attention]
    share, direction = stage.section["teacher_share"], stage.section["direction"]
    objective = training_objective(
        base_name,
        teacher.config,
        stage.section,
        row_tokens(stage),
        lambda base: MatchTeacher(base, teaching, share, direction),
    )
    validation = likelihood_objective(base_name, teacher.config)
    folder = teacher.folder
    del teacher  # the float32 weights go where a narrow copy teaches
    train_stage(stage, student, objective, validation, "instructions", METHOD_KEYS, folder)


if __name__ == "__main__":
    run_stage(distill_draft, "distill_draft")
