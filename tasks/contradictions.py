"""Switches of params.yaml that contradict each other across sections: the first stage refuses them before any work is done."""

from collections.abc import Mapping
from typing import Any

from model.curricula import RECIPE_KEYS, Recipe
from tasks.training_answers import check_answers

AUTOREGRESSIVE = ("pretrain_ar", "finetune_ar")
# A section trains with its own objective, or with that of the section it starts from.
DIFFUSION = {
    "pretrain_diffusion": "pretrain_diffusion",
    "finetune_diffusion": "finetune_diffusion",
    "distill_draft": "finetune_diffusion",
    "tune_cap": "finetune_diffusion",
    "prefer": "finetune_diffusion",
}


def check_recipe(params: Mapping[str, Any]) -> None:
    """ValueError that names the keys; sections that are absent are not looked at (their stages ask for them)."""
    for name in AUTOREGRESSIVE:
        if wrong := sorted(set(params.get(name) or {}) & set(RECIPE_KEYS)):
            raise ValueError(
                f"{name}.{wrong[0]} belongs to diffusion training: {name} predicts the next token and hides nothing "
                "(complementary masking, bandwidth and curricula stand in pretrain_diffusion, finetune_diffusion, tune_cap)"
            )
    rows = params.get("tokenize") or {}
    row_tokens = rows.get("row_tokens")
    block_tokens = (params.get("convert_to_diffusion") or {}).get("block_tokens")
    for name, source in DIFFUSION.items():
        section, objective = params.get(name), (params.get(source) or {}).get("objective")
        if not isinstance(section, Mapping):
            continue
        try:
            recipe = Recipe.from_section(section)
            if row_tokens and block_tokens and objective:
                recipe.check(objective, row_tokens, block_tokens)
            if section.get("teacher_cache") is not None:
                check_teacher_cache(recipe, section["teacher_cache"], rows.get("vocabulary_size"))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    check_answers(params)
    for name, section in params.items():
        if isinstance(section, Mapping) and section.get("compile") and section.get("distribution") == "fsdp2":
            raise ValueError(
                f"{name}.compile is true and {name}.distribution fsdp2: layers are cut over processes or compiled. Leave one out"
            )
    if (params.get("prefer") or {}).get("models") and not (params.get("download") or {}).get("preferences"):
        raise ValueError(
            "prefer.models is set, but download.preferences names no corpus of pairs: add one, or list no model"
        )
    answers = (params.get("evaluate") or {}).get("max_new_tokens")
    if row_tokens and answers and answers > row_tokens:
        raise ValueError(
            f"evaluate.max_new_tokens {answers} is longer than tokenize.row_tokens {row_tokens}: no answer of that length was "
            "trained on; lower the first or raise the second"
        )


def check_teacher_cache(recipe: Recipe, settings: Any, vocabulary_size: int | None) -> None:
    """ValueError where stored answers would be answers to something that training does not read."""
    for key in ("block_curriculum", "ratio_curriculum", "mask_noise", "variable_length"):
        if getattr(recipe, key):
            raise ValueError(
                f"teacher_cache and {key} exclude each other: a stored answer belongs to one mask of one row, and {key} changes "
                "what is read from step to step; leave one of them out"
            )
    top_k = settings.get("top_k", 0) if isinstance(settings, Mapping) else 0
    if vocabulary_size and isinstance(top_k, int) and top_k > vocabulary_size:
        raise ValueError(
            f"teacher_cache.top_k {top_k} is more than tokenize.vocabulary_size {vocabulary_size}: lower it"
        )
