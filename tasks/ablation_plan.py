"""The plan of the ablations (flows/ablations.yaml) and where its jobs leave what they made."""

import re
from pathlib import Path
from typing import Any

import yaml

from tasks.parameters import load_params

ARMS = "flows/ablations.yaml"
FOLDER = ".work/ablations"


def read_plan(root: Path, file: Path) -> dict[str, Any]:
    """The plan; ValueError that names what is missing or unknown before any job runs."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist: {ARMS} is the one that comes with the repository")
    plan = yaml.safe_load(file.read_text(encoding="utf-8"))
    for key in ("preset", "seeds", "base", "questions"):
        if key not in plan:
            raise ValueError(f"{file}: {key} is missing (preset, seeds, base, questions)")
    for name in (None, *plan["questions"]):
        if len(set(seeds := seeds_of(plan, name))) < 3:
            raise ValueError(f"{file}: seeds {seeds} are fewer than three: no claim can rest on them")
    preset = load_params(root / f"presets/{plan['preset']}.yaml")
    for name, question in plan["questions"].items():
        if missing := {"asks", "stages", "measures", "control", "arms"} - set(question):
            raise ValueError(f"{file}: question {name} has no {', '.join(sorted(missing))}")
        if ({"items", "references"} & set(question)) and "instance" not in question:
            raise ValueError(f"{file}: question {name} compares answers and does not say whose: instance is missing")
        if question["control"] not in question["arms"]:
            raise ValueError(f"{file}: the control of {name}, '{question['control']}', is none of its arms")
        for arm, changes in [("common", question.get("common", {})), *question["arms"].items()]:
            if unknown := sorted(set(changes) - set(preset)):
                raise ValueError(f"{file}: arm '{arm}' of {name} changes {unknown[0]}, which the preset does not have")
    return plan


def seeds_of(plan: dict[str, Any], name: str | None) -> list[int]:
    """The seeds of a question: its own, or the plan's."""
    return plan["questions"].get(name, {}).get("seeds", plan["seeds"])


def slug(arm: str) -> str:
    """An arm's name as a folder."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", arm).strip("-")


def finished(root: Path, question: str, arm: str, seeds: list[int]) -> dict[int, Path]:
    """The folders of an arm's finished jobs by seed."""
    folders = {seed: root / FOLDER / question / slug(arm) / str(seed) for seed in seeds}
    return {seed: folder for seed, folder in folders.items() if (folder / "result.json").is_file()}
