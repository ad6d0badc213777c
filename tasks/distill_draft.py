"""Distils a draft model from a subset of the fine-tuned model's layers, for speculative decoding.

    python -m tasks.distill_draft

The rows are the corpus' (`answers: truth`) or the teacher's own right answers, data/own_answers (`answers: own`): with
`states: visited` the draft is taught in the very states in which it will have to guess.
"""

from pathlib import Path

from model.checkpoints.derive import LAYER_SUBSETS, layer_subset, narrowed
from model.checkpoints.store import Checkpoint, load_checkpoint
from model.curricula import RECIPE_KEYS
from model.network.transformer import Transformer
from model.objectives.match_teacher import MatchStoredTeacher, MatchTeacher
from model.objectives.objective import Objective
from model.training.compiling import compile_layers
from model.training.teacher_cache import TeacherCache, stored_answers
from tasks.own_rows import hidden_as_asked, rows_for
from tasks.stage import Stage, run_stage
from tasks.training import (
    OBJECTIVE_OF,
    likelihood_objective,
    parent_checkpoint,
    row_tokens,
    shard_of,
    source_of,
    train_stage,
    training_config,
    training_device,
    training_objective,
    training_rows,
)
from tasks.training_answers import KEYS as ANSWERS_KEYS

METHOD_KEYS = (
    "layers", "which_layers", "student", "teacher_share", "direction", "teacher_cache", *ANSWERS_KEYS, *RECIPE_KEYS,
)  # fmt: skip


def distill_draft(stage: Stage) -> None:
    """data/models/finetune_diffusion -> data/models/distill_draft: `layers` of its layers, or `student`, then training."""
    teacher = parent_checkpoint(stage, "finetune_diffusion")
    rows = rows_for(stage, teacher)
    student = first_student(stage, teacher)
    teaching = teacher.network
    if stage.section.get("precision") == "bfloat16":  # the student keeps float32 weights, a frozen teacher needs none
        teaching = narrowed(teaching, shard_of(stage))
    base_name = OBJECTIVE_OF[teacher.config.attention]
    objective = training_objective(
        base_name,
        teacher.config,
        stage.section,
        row_tokens(stage),
        lambda base: taught(stage, hidden_as_asked(stage, rows, base), teaching, rows),
    )
    validation = likelihood_objective(base_name, teacher.config)
    folder = teacher.folder
    del teacher  # the float32 weights go where a narrow copy teaches
    train_stage(stage, student, objective, validation, "instructions", METHOD_KEYS, folder, own_rows=rows)


def taught(stage: Stage, base: Objective, teacher: Transformer, rows: Path | None) -> Objective:
    """The base with the teacher beside it, or with what it said before training began."""
    section = stage.section
    mix = (section["teacher_share"], section["direction"])
    if section.get("teacher_cache") is None:
        if section.get("compile"):
            compile_layers(teacher)
        return MatchTeacher(base, teacher, *mix)
    settings, config = TeacherCache.from_section(section["teacher_cache"]), training_config(stage, METHOD_KEYS)
    loader = training_rows(stage, "instructions", config.batch_rows, rows)
    answers = stored_answers(stage.root, settings, teacher, base, loader, config.steps, config.precision)
    return MatchStoredTeacher(base, answers, *mix)


def first_student(stage: Stage, teacher: Checkpoint) -> Transformer:
    """What training starts from: layers of the teacher, or the checkpoint that `student` names.

    ValueError where teacher and student do not speak of the same tokens and blocks.
    """
    section, other = stage.section, stage.section.get("student")
    if other is None:
        which = section.get("which_layers", "first_and_last")
        if which not in LAYER_SUBSETS:
            raise ValueError(f"which_layers '{which}' must be one of {', '.join(LAYER_SUBSETS)}")
        kept = LAYER_SUBSETS[which](teacher.config.num_layers, section["layers"])
        return layer_subset(teacher.network, kept, shard_of(stage))
    student = load_checkpoint(source_of(stage, other, ""), device=training_device(), shard=shard_of(stage))
    for name in ("vocabulary_size", "mask_token_id", "eos_token_id", "block_tokens", "attention"):
        ours, theirs = getattr(student.config, name), getattr(teacher.config, name)
        if ours != theirs:
            source = section.get("start_from") or "finetune_diffusion"
            raise ValueError(
                f"distill_draft.student {other} has {name} {ours}, its teacher ({source}, distill_draft.start_from) {theirs}: a "
                "draft answers for its target token by token and block by block"
            )
    return student.network


if __name__ == "__main__":
    run_stage(distill_draft, "distill_draft")
