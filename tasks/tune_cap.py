"""CAP: tunes the fine-tuned model to be sure where it is right, so that more tokens can be revealed per forward.

    python -m tasks.tune_cap --instance tune_cap
    python -m tasks.tune_cap --instance tune_cap_control

The control trains the same number of extra steps on the same rows with lambda 0: what is left is the effect of CAP alone.
The rows are the corpus' (`answers: truth`) or the model's own right answers, data/own_answers (`answers: own`).
"""

from model.curricula import RECIPE_KEYS
from model.objectives.confidence import Confidence
from model.objectives.objective import Objective
from tasks.own_rows import hidden_as_asked, rows_for
from tasks.stage import Stage, run_stage
from tasks.training import (
    OBJECTIVE_OF,
    likelihood_objective,
    parent_checkpoint,
    row_tokens,
    train_stage,
    training_objective,
)
from tasks.training_answers import KEYS as ANSWERS_KEYS

METHOD_KEYS = ("strength", "temperature", *ANSWERS_KEYS, *RECIPE_KEYS)
INSTANCES = ("tune_cap", "tune_cap_control")


def tune_cap(stage: Stage) -> None:
    """data/models/finetune_diffusion -> data/models/<instance>."""
    if stage.instance not in INSTANCES:
        raise ValueError(f"tune_cap needs --instance, one of {', '.join(INSTANCES)}; got {stage.instance}")
    parent = parent_checkpoint(stage, "finetune_diffusion")
    rows = rows_for(stage, parent)
    name = OBJECTIVE_OF[parent.config.attention]
    strength = stage.section["strength"] if stage.instance == "tune_cap" else 0.0

    def cap(base: Objective) -> Confidence:
        return Confidence(hidden_as_asked(stage, rows, base), strength, stage.section["temperature"])

    objective = training_objective(name, parent.config, stage.section, row_tokens(stage), cap)
    validation = likelihood_objective(name, parent.config)
    train_stage(stage, parent.network, objective, validation, "instructions", METHOD_KEYS, parent.folder, own_rows=rows)


if __name__ == "__main__":
    run_stage(tune_cap, "tune_cap")
