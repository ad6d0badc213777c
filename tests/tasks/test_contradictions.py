"""Switches that contradict each other across sections are refused by the first stage, before anything is made."""

import copy
from pathlib import Path

import pytest

from tasks.contradictions import check_recipe
from tasks.parameters import load_params

PARAMS = load_params(Path(__file__).parents[2] / "presets/tiny.yaml")

WRONG = {
    "sizes that do not divide the row": (
        "finetune_diffusion", {"block_curriculum": {"up": [1, 7, 96], "down": [96, 16]}},
        "finetune_diffusion: block_curriculum has the size.*7.*tokenize.row_tokens 96",
    ),
    "bandwidth reversed": (
        "tune_cap", {"hiding": {"minimum_fraction": 0.9, "maximum_fraction": 0.1}}, "tune_cap: .*hiding.minimum_fraction",
    ),
    "complementary masking with AR": ("finetune_ar", {"hiding": {"complementary": True}}, "finetune_ar.hiding belongs to"),
    "a network that is cut and compiled": (
        "pretrain_ar", {"compile": True, "distribution": "fsdp2"}, "pretrain_ar.compile is true and pretrain_ar.distribution",
    ),
    "answers longer than the row": ("evaluate", {"max_new_tokens": 200}, "evaluate.max_new_tokens 200 .*tokenize.row_tokens 96"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_contradiction_names_its_keys(case):
    section, change, message = WRONG[case]
    params = copy.deepcopy(PARAMS)
    params[section] |= change
    with pytest.raises(ValueError, match=message):
        check_recipe(params)


def test_the_first_stage_refuses_before_it_makes_anything(checkout):
    text = (checkout.root / "params.yaml").read_text().replace("minimum_fraction: 0.3", "minimum_fraction: 0.95")
    (checkout.root / "params.yaml").write_text(text)
    done = checkout.python("-m", "tasks.download")
    assert done.returncode == 2 and "hiding.minimum_fraction (0.95)" in done.stdout and "Traceback" not in done.stdout
    assert not (checkout.root / "data/raw").exists()
