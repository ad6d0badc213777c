"""What one measure of an ablation is, seed by seed, and its paired difference to the control."""

import csv
import json
import math
import statistics
from pathlib import Path
from typing import Any

from model.benchmarks.records import correctness, correctness_at, parallelism_curve
from model.benchmarks.scoring import Interval, paired_difference

Answers = dict[str, list[float]]  # benchmark -> right or wrong per test question
# Student's t at 97.5 %, by seeds.
STUDENT = dict(enumerate((12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262), start=2))


def measured(place: list[str] | dict[str, Any], folders: dict[int, Path], control: dict[int, Path]) -> dict[int, float]:
    """The measure of every seed: a number of data/metrics, or the steps of a curve until it is where the control's ended."""
    name = file_of(place)
    if isinstance(place, list):
        return {seed: value_at(folder / name, place[1:]) for seed, folder in folders.items()}
    series = place["series"]
    ends = {seed: curve_of(folder / name, series)[-1][1] for seed, folder in control.items()}
    return {
        seed: steps_until(curve_of(folder / name, series), ends[seed])
        for seed, folder in folders.items()
        if seed in ends
    }


def file_of(place: list[str] | dict[str, Any]) -> str:
    """The file of a job's folder that a measure reads."""
    if isinstance(place, list):
        return f"data/metrics/{place[0]}"
    return f"data/curves/{place['curve']}.csv"


def place_of(place: list[str] | dict[str, Any], instance: str) -> list[str] | dict[str, Any]:
    """The place for one model: `{instance}` is its name."""
    if isinstance(place, list):
        return [key.replace("{instance}", instance) for key in place]
    return {
        key: value.replace("{instance}", instance) if isinstance(value, str) else value for key, value in place.items()
    }


def curve_of(file: Path, series: str) -> list[tuple[float, float]]:
    """(step, value) of one series of a stage's curve."""
    with file.open(encoding="utf-8") as lines:
        points = [(float(point["step"]), point.get(series)) for point in csv.DictReader(lines)]
    return [(step, float(value)) for step, value in points if value]


def steps_until(curve: list[tuple[float, float]], level: float) -> float:
    """The step at which the curve is first at or below `level`, straight between its points; infinite where it never is.

    A curve whose first point is low enough counts from that point: how much earlier it was there is not known.
    """
    for (before, high), (step, value) in zip([curve[0], *curve], curve, strict=False):
        if value <= level:
            return step if high <= level else before + (step - before) * (high - level) / (high - value)
    return math.inf


def value_at(file: Path, keys: list[str]) -> float:
    """The number under nested keys of a JSON file; of `a or b` the first that is there."""
    found: Any = json.loads(file.read_text(encoding="utf-8"))
    for key in keys:
        name = next((name for name in key.split(" or ") if name in found), None)
        if name is None:
            raise ValueError(f"{file} has no '{key}' (of {' > '.join(keys)}); it has {', '.join(map(str, found))}")
        found = found[name]
    return float(found)


def by_seed(values: dict[int, float], reference: dict[int, float]) -> Interval | None:
    """Mean difference over the seeds of both, with Student's 95 % interval; None with fewer than two."""
    differences = [values[seed] - reference[seed] for seed in values if seed in reference]
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return None
    mean = statistics.fmean(differences)
    spread = STUDENT[len(differences)] * statistics.stdev(differences) / len(differences) ** 0.5
    return Interval(mean, mean - spread, mean + spread)


def score(right: dict[int, Answers | None], control: dict[int, Answers | None] | None) -> dict[str, Any]:
    """Scores by seed, their mean, and the difference to the control (None: there is none), item by item and seed by seed.

    Infinite where a seed has none (`right_at`). Where one side was asked fewer questions of a benchmark, both count their first
    ones alone.
    """
    if not all(right.values()):
        return {"values": dict.fromkeys(right, math.inf), "mean": math.inf, "difference": None}
    shared = sorted(set(right) & set(control or {}))
    difference = None
    if control and len(shared) > 1 and all(control.values()):
        ours, theirs = stacked(right, shared), stacked(control, shared)
        asked = {name: min(len(ours[name][0]), len(theirs[name][0])) for name in ours}
        difference = paired_difference(*({n: [s[: asked[n]] for s in one[n]] for n in asked} for one in (ours, theirs)))
    values = {
        seed: 100 * statistics.fmean(statistics.fmean(items) for items in one.values()) for seed, one in right.items()
    }
    return {"values": values, "mean": statistics.fmean(values.values()), "difference": difference}


def right_at(folder: Path, instance: str, point: str | dict[str, float]) -> Answers | None:
    """Benchmark -> right or wrong per test question at one operating point.

    Or at {tokens_per_forward}: where the model's curve is that parallel (`correctness_at`), None where it nowhere is.
    """
    lines = (folder / f"data/samples/{instance}.jsonl").read_text(encoding="utf-8").splitlines()
    points: dict[str, list[dict[str, Any]]] = {}
    for record in map(json.loads, lines):
        points.setdefault(record["point"], []).append(record)
    if isinstance(point, dict):
        return correctness_at(parallelism_curve(points), point["tokens_per_forward"])
    if point not in points:
        raise ValueError(f"{folder}: {instance} was not evaluated at {point}; set it in the plan's `items`")
    return correctness(points[point])


def stacked(right: dict[int, Answers], seeds: list[int]) -> dict[str, list[list[float]]]:
    """Benchmark -> [seeds, items]."""
    return {name: [right[seed][name] for seed in seeds] for name in right[seeds[0]]}
