"""Effects that others published, as they came out here: value with interval, goal, and what that says about the goal."""

from collections.abc import Mapping, Sequence
from typing import Any

from model.benchmarks.records import Record, correctness_at, parallelism_curve
from model.benchmarks.scoring import paired_difference
from tasks.reporting.inputs import BASELINE, REFERENCE, TUNED, Inputs

RATIO_GOAL = 1.46  # LLaDA2.0-flash-CAP's tokens per forward / LLaDA2.0-flash's
AGREEMENT_GOAL = 0.90
DISTANCE_GOAL = -3.0  # points
Interval = dict[str, float]
Points = Mapping[str, Sequence[Record]]  # operating point -> records in order


def goals(compared: dict[str, Any], inputs: Inputs) -> list[dict[str, Any]]:
    """Rows of the table; a goal is `met` or `missed` when the whole 95 % interval lies on its side, else `not resolved`."""
    rows = {row["instance"]: row for row in compared["models"]}
    gap, place = curve_gap(inputs.records[TUNED], inputs.records[REFERENCE])
    ratio, difference = compared["cap"]["ratios"].get(REFERENCE), rows[BASELINE]["difference_to_sft"]
    found = [
        goal(
            "CAP's tokens per forward / SFT's, at equal quality",
            ratio,
            RATIO_GOAL,
            "x",
            "1.46x, losing 1.72 points (LLaDA2.0-flash, 12 benchmarks)",
        ),
        goal("CAP's score minus SFT's at as many tokens per forward, at its lowest", gap, 0.0, "points", None)
        | {"remark": f"at {place:.2f} tokens per forward" if gap else ""},
        goal(
            "diffusion SFT's score minus AR's, one token per forward",
            negated(difference),
            DISTANCE_GOAL,
            "points",
            None,
        ),
    ]
    for one in inputs.metrics["speculate"].get("agreement", []):
        if one["target"] == REFERENCE:
            what = f"the draft's first guess is what SFT reveals, {one['policy'].replace('_', ' ')}"
            depths = matches(inputs.metrics["speculate"]["rows"], one["policy"])
            found.append(goal(what, one, AGREEMENT_GOAL, "", None) | {"remark": depths})
    return found


def goal(what: str, measured: Interval | None, least: float, unit: str, published: str | None) -> dict[str, Any]:
    """One row; without a measurement the goal is not resolved."""
    verdict = "not resolved"
    if measured:
        verdict = "met" if measured["low"] >= least else "missed" if measured["high"] < least else "not resolved"
    interval = {key: measured[key] for key in ("value", "low", "high")} if measured else None
    return {
        "what": what, "measured": interval, "least": least, "unit": unit, "published": published, "verdict": verdict,
        "remark": "",
    }  # fmt: skip


def negated(one: Interval | None) -> Interval | None:
    """The interval of the difference taken the other way round."""
    return one and {"value": 0.0 - one["value"], "low": 0.0 - one["high"], "high": 0.0 - one["low"]}  # no -0.0


def curve_gap(tuned: Points, reference: Points) -> tuple[Interval | None, float]:
    """One model's score minus another's at as many tokens per forward, where that is lowest, and how many those are.

    Both curves begin at one token per forward; they are compared at every point of either as far as both reach (paired
    bootstrap over the questions). None where there is no such point.
    """
    curves = [parallelism_curve(points) for points in (tuned, reference)]
    gaps = []
    for place in sorted({parallelism for curve in curves for parallelism, _ in curve}):
        first, second = (correctness_at(curve, place) for curve in curves)
        if first and second:
            gaps.append((paired_difference(first, second, resamples=2000).as_dict(), place))
    return min(gaps, key=lambda each: each[0]["value"], default=(None, 0.0))


def matches(rows: list[dict[str, Any]], policy: str) -> str:
    """Whole states that the draft foresaw, by depth, of the deepest fixed setting."""
    found = [
        row
        for row in rows
        if (row["target"], row["policy"], row["source"]) == (REFERENCE, policy, "draft") and not row.get("adaptive")
    ]
    if not found:
        return ""
    acceptance = max(found, key=lambda row: row["depth"])["acceptance"]
    shares = [f"{100 * acceptance[depth]:.0f} %" for depth in sorted(acceptance, key=int)]
    return f"whole states matched at depth 1, 2, ...: {', '.join(shares)}" if shares else ""
