"""CAP: tunes the fine-tuned model to be sure where it is right, so that more tokens can be revealed per forward.

    python -m tasks.tune_cap --instance tune_cap
    python -m tasks.tune_cap --instance tune_cap_control

The control trains the same number of extra steps on the same rows with lambda 0: what is left is the effect of CAP alone.
The rows are the corpus' (`answers: truth`) or the model's own right answers to its questions (`answers: own`).
"""

from pathlib import Path
from typing import Any

from model.checkpoints.store import Checkpoint
from model.curricula import RECIPE_KEYS
from model.objectives.confidence import Confidence
from model.objectives.objective import Objective
from model.objectives.visited_states import VisitedStates
from tasks.launch import processes_of
from tasks.own_answers import OwnAnswers, own_answers, read_times
from tasks.stage import Stage, run_stage
from tasks.training import (
    OBJECTIVE_OF,
    likelihood_objective,
    parent_checkpoint,
    row_tokens,
    train_stage,
    training_objective,
    training_rows,
)

METHOD_KEYS = ("strength", "temperature", "answers", "own_answers", *RECIPE_KEYS)
INSTANCES = ("tune_cap", "tune_cap_control")
ANSWERS = ("truth", "own")
DRAWING = ("hiding", "block_curriculum", "ratio_curriculum", "mask_noise", "variable_length")


def tune_cap(stage: Stage) -> None:
    """data/models/finetune_diffusion -> data/models/<instance>."""
    if stage.instance not in INSTANCES:
        raise ValueError(f"tune_cap needs --instance, one of {', '.join(INSTANCES)}; got {stage.instance}")
    wanted = own_answers_of(stage.section)
    parent = parent_checkpoint(stage, "finetune_diffusion")
    name = OBJECTIVE_OF[parent.config.attention]
    strength = stage.section["strength"] if stage.instance == "tune_cap" else 0.0
    is_visited = wanted is not None and wanted.states == "visited"
    if is_visited:
        check_blocks(stage, parent)
    rows, facts = answered_by(parent, stage, wanted) if wanted else (None, {})

    def cap(base: Objective) -> Confidence:
        states = VisitedStates(base, read_times(rows)) if is_visited else base
        return Confidence(states, strength, stage.section["temperature"])

    objective = training_objective(name, parent.config, stage.section, row_tokens(stage), cap)
    validation = likelihood_objective(name, parent.config)
    train_stage(
        stage,
        parent.network,
        objective,
        validation,
        "instructions",
        METHOD_KEYS,
        parent.folder,
        own_rows=rows,
        facts=facts,
    )


def own_answers_of(section: dict[str, Any]) -> OwnAnswers | None:
    """What `answers` and `own_answers` ask for; None: the truth."""
    kind = section.get("answers", ANSWERS[0])
    if kind not in ANSWERS:
        raise ValueError(f"tune_cap.answers is {kind!r}; it must be one of {', '.join(ANSWERS)}")
    options = OwnAnswers.from_section(section.get("own_answers") or {})
    if kind == "own" and processes_of(section) > 1:
        raise ValueError(
            f"tune_cap.answers is own and tune_cap.processes {section['processes']}: one process answers the questions. Set "
            "processes: 1, or answers: truth"
        )
    drawing = [key for key in DRAWING if key in section]
    if kind == "own" and options.states == "visited" and drawing:
        raise ValueError(
            f"tune_cap.{drawing[0]} says what is hidden, and so does own_answers.states: visited. Leave one of them out"
        )
    return options if kind == "own" else None


def check_blocks(stage: Stage, parent: Checkpoint) -> None:
    """ValueError unless the model decodes in blocks on the grid of the rows: a state is one of a block."""
    rows = training_rows(stage, "instructions", 1).layout.block_tokens
    if parent.config.attention != "block_causal" or parent.config.block_tokens != rows:
        raise ValueError(
            f"own_answers.states: visited needs a block-causal model with the blocks of the rows ({rows} tokens); this one is "
            f"{parent.config.attention} with blocks of {parent.config.block_tokens}. Set own_answers.states: drawn"
        )


def answered_by(parent: Checkpoint, stage: Stage, options: OwnAnswers) -> tuple[Path, dict[str, Any]]:
    """The rows of own answers; what became of the questions is printed and recorded."""
    rows, facts = own_answers(stage, parent, options)
    print(
        f"{stage.address}: asked {facts['asked']}, right {facts['right']}, kept {facts['kept']} answers, {facts['tokens']} "
        f"tokens in {facts['rows']} rows, {facts['tokens_per_forward']} tokens per forward",
        flush=True,
    )
    facts = {f"own_answers/{key}": value for key, value in facts.items()}
    stage.tracker.log_metrics(facts, step=0)
    return rows, facts


if __name__ == "__main__":
    run_stage(tune_cap, "tune_cap")
