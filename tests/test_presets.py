"""Every preset is complete: each section is accepted by the code that will read it."""

from pathlib import Path

import pytest
import yaml

from model.benchmarks.settings import EvaluateConfig
from model.curricula import RECIPE_KEYS
from model.network.config import NetworkConfig
from model.samplers.decode import make_policy
from model.training.config import TrainingConfig
from model.training.optimizer import learning_rate_factor
from tasks import distill_draft, tune_cap
from tasks.contradictions import check_recipe
from tasks.launch import KEYS as LAUNCH_KEYS
from tasks.own_answers import OwnAnswers
from tasks.parameters import check_sections, load_params
from tasks.promotion.settings import RetrainOptions
from tasks.serving.settings import ServeConfig

PRESETS = sorted((Path(__file__).parents[1] / "presets").glob("*.yaml"))
METHOD_KEYS = {
    "pretrain_ar": (),
    "pretrain_diffusion": ("objective", *RECIPE_KEYS),
    "finetune_ar": (),
    "finetune_diffusion": ("objective", *RECIPE_KEYS),
    "distill_draft": distill_draft.METHOD_KEYS,
    "prefer": ("models", "beta", "hiding"),
    "tune_cap": tune_cap.METHOD_KEYS,
}


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_accepted_by_every_stage_that_reads_it(preset):
    params = load_params(preset)
    assert params["preset"] == preset.stem
    check_sections(params, preset.parents[1] / "dvc.yaml")
    block = params["tokenize"]["block_tokens"]
    assert params["convert_to_diffusion"]["block_tokens"] == block, "training and decoding use one grid"
    NetworkConfig.from_dict({"vocabulary_size": params["tokenize"]["vocabulary_size"], **params["network"]})
    for stage, keys in METHOD_KEYS.items():
        config = TrainingConfig.from_section(params[stage], (*keys, *LAUNCH_KEYS, "threads", "start_from"))
        learning_rate_factor(config.schedule, config.steps, config.warmup_steps, config.minimum_learning_rate_fraction)
    check_recipe(params)
    OwnAnswers.from_section(params["own_answers"])
    EvaluateConfig.from_section(params["evaluate"])
    for policy in [*params["speculate"]["policies"].values(), ServeConfig.from_section(params["serve"]).policy]:
        make_policy(policy, block)
    RetrainOptions.from_section(params["retrain"])
    longest = params["network"]["maximum_positions"]
    assert params["tokenize"]["row_tokens"] <= longest


def test_every_preset_has_a_deployment_that_runs_it():
    declared = yaml.safe_load((PRESETS[0].parents[1] / "prefect.yaml").read_text())["deployments"]
    runs = {each["name"]: each["parameters"] for each in declared if each["entrypoint"] == "flows/pipeline.py:pipeline"}
    assert runs == {preset.stem: {"preset": preset.stem} for preset in PRESETS}
