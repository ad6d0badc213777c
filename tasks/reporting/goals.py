"""Effects that others published, as they came out here: value with interval, goal, and what that says about the goal."""

from itertools import pairwise
from typing import Any

from tasks.reporting.inputs import BASELINE, REFERENCE, TUNED, Inputs

RATIO_GOAL = 1.46  # LLaDA2.0-flash-CAP's tokens per forward / LLaDA2.0-flash's
AGREEMENT_GOAL = 0.90
DISTANCE_GOAL = -3.0  # points
Interval = dict[str, float]


def goals(compared: dict[str, Any], inputs: Inputs) -> list[dict[str, Any]]:
    """Rows of the table; a goal is `met` or `missed` when the whole 95 % interval lies on its side, else `not resolved`."""
    rows = {row["instance"]: row for row in compared["models"]}
    ratio, difference = compared["cap"]["ratios"].get(REFERENCE), rows[BASELINE]["difference_to_sft"]
    found = [
        goal(
            "CAP's tokens per forward / SFT's, at equal quality",
            ratio,
            RATIO_GOAL,
            "x",
            "1.46x, losing 1.72 points (LLaDA2.0-flash, 12 benchmarks)",
        ),
        goal("CAP's score minus SFT's curve, at its lowest", curve_gap(compared["trade_off"]), 0.0, "points", None)
        | {"remark": curves_apart(compared["trade_off"])},
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


def curve_gap(trade_off: dict[str, Any]) -> Interval | None:
    """CAP's score minus SFT's at as many tokens per forward, where it is worst; SFT's curve is straight between its thresholds.

    The interval is the sum of both sides' own, hence wide. None where the curves share no tokens per forward.
    """
    cap, sft = cap_and_sft(trade_off)
    gaps = []
    for parallelism, score in cap:
        below = at(sft, parallelism)
        if below:
            low, high = score["low"] - below["high"], score["high"] - below["low"]
            gaps.append({"value": score["value"] - below["value"], "low": low, "high": high})
    return min(gaps, key=lambda gap: gap["value"], default=None)


def curves_apart(trade_off: dict[str, Any]) -> str:
    """Where one curve begins after the other has ended; empty where they share tokens per forward."""
    cap, sft = cap_and_sft(trade_off)
    if not cap or not sft or cap[0][0] <= sft[-1][0]:
        return ""
    (first, begun), (last, ended) = cap[0], sft[-1]
    return (
        f"CAP begins at {first:.2f} tokens per forward with {begun['value']:.1f} points, SFT has ended at {last:.2f} with "
        f"{ended['value']:.1f}"
    )


def cap_and_sft(trade_off: dict[str, Any]) -> list[list[tuple[float, Interval]]]:
    """(tokens per forward, score) of the thresholds of either, least parallel first."""
    return [
        sorted((one["tokens_per_forward"]["value"], one["score"]) for one in trade_off[name]["points"])
        if name in trade_off
        else []
        for name in (TUNED, REFERENCE)
    ]


def at(curve: list[tuple[float, Interval]], place: float) -> Interval | None:
    """The score between the two neighbours of a place; None outside the curve."""
    for (left, before), (right, after) in pairwise(curve):
        if left <= place <= right:
            share = (place - left) / (right - left) if right > left else 0.0
            return {key: before[key] + share * (after[key] - before[key]) for key in ("value", "low", "high")}
    return None


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
