"""Optional: tunes a fine-tuned model on pairs of a chosen and a rejected answer (DPO with the diffusion bound).

    python -m tasks.prefer --instance finetune_diffusion

`prefer.models` in params.yaml lists the models to tune; none is listed by default, and the stage then does not exist. It needs a
corpus under download.preferences. What it makes, data/models/prefer_<model>, is taken by another stage as its `start_from`.
"""

from model.curricula import Recipe
from model.objectives.preference import Preference
from tasks.stage import Stage, run_stage
from tasks.training import OBJECTIVE_OF, diffusion_objective, likelihood_objective, parent_checkpoint, train_stage

METHOD_KEYS = ("models", "beta", "hiding")


def prefer(stage: Stage) -> None:
    """data/models/<instance> -> data/models/prefer_<instance>; validation is the bound on the conversations of before."""
    listed = stage.section.get("models") or []
    if stage.instance not in listed:
        raise ValueError(f"prefer needs --instance, one of prefer.models {listed}; got {stage.instance}")
    if not (stage.root / "data/tokens/preferences").is_dir():
        raise ValueError(
            "prefer.models is set but data/tokens holds no pairs: name a corpus under download.preferences"
        )
    parent, reference = (parent_checkpoint(stage, stage.instance) for _ in range(2))
    if parent.config.attention not in OBJECTIVE_OF:
        raise ValueError(f"prefer.models names {stage.instance}, which is autoregressive: name a diffusion model")
    name = OBJECTIVE_OF[parent.config.attention]
    base = diffusion_objective(name, parent.config, Recipe.from_section(stage.section).hiding)
    objective = Preference(base, reference.network, stage.section["beta"])
    validation = likelihood_objective(name, parent.config)
    train_stage(
        stage,
        parent.network,
        objective,
        validation,
        "preferences",
        METHOD_KEYS,
        parent.folder,
        validated_on="instructions",
        name=f"prefer_{stage.instance}",
    )


if __name__ == "__main__":
    run_stage(prefer, "prefer")
