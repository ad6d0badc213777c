"""The report's charts: score against tokens per forward, scores by category, loss curves, what speculation saves."""

from typing import Any

from tasks.reporting.inputs import TITLES, Inputs
from tasks.reporting.svg import Mark, Series, bar_chart, line_chart
from tasks.reporting.wording import category_names, interval, number, point_name

# instance or stage -> the colour class of the page's styles
COLOURS = {
    "finetune_ar": "c0",
    "finetune_diffusion": "c1",
    "tune_cap": "c2",
    "tune_cap_control": "c3",
    "finetune_diffusion_scaled": "c4",
    "distill_draft": "c5",
    "pretrain_ar": "c0",
    "pretrain_diffusion": "c1",
}
STAGES = {
    "Pretraining": ("pretrain_ar", "pretrain_diffusion"),
    "Fine-tuning": ("finetune_ar", "finetune_diffusion", "distill_draft", "tune_cap", "tune_cap_control"),
}
MEASURES = {"val/bits_per_byte": "validation, bits per byte", "train/loss": "training loss"}
STEEP = 0.15  # of a run: the fall from chance at its beginning would flatten all the rest


def trade_off_chart(figures: dict[str, Any]) -> tuple[str, list[Series]]:
    """Score against tokens per forward, one line per diffusion model through its thresholds."""
    series = []
    for name, curve in figures["trade_off"].items():
        marks = [
            Mark(
                one["tokens_per_forward"]["value"],
                one["score"]["value"],
                f"{point_name(one['point'])}: score {interval(one['score'])}, {interval(one['tokens_per_forward'], 2)} tokens "
                "per forward",
                one["score"]["low"],
                one["score"]["high"],
            )
            for one in curve["points"]
        ]
        series.append(Series(f"{TITLES[name]}, AUP {number(curve['aup'], 0)}", COLOURS[name], marks))
    return line_chart(series, "tokens per forward", "score, % of test questions", (880, 400)), series


def category_chart(figures: dict[str, Any]) -> tuple[str, list[Series]]:
    """Scores by category at one token per forward, one colour per model."""
    groups = category_names(figures)
    series = []
    for row in figures["models"]:
        ones = [row["categories"].get(name) for name in groups]
        marks = [Mark(0, one["value"], interval(one), one["low"], one["high"]) if one else None for one in ones]
        series.append(Series(row["title"], COLOURS[row["instance"]], marks))
    return bar_chart(groups, series, "score, %", (880, 320)), series


def loss_charts(inputs: Inputs) -> list[tuple[str, str, list[Series]]]:
    """(title, chart, series) of both measures, pretraining apart from fine-tuning: their texts differ."""
    charts = []
    for group, stages in STAGES.items():
        for measure, words in MEASURES.items():
            series, highest = [], 0.0
            for stage in stages:
                curve = inputs.curves[stage].get(measure, [])
                name = TITLES.get(stage, stage.removeprefix("pretrain_").replace("ar", "AR"))
                marks = [Mark(step, value, f"step {step}: {value:.3f}") for step, value in curve]
                series.append(Series(name, COLOURS[stage], marks, dots=measure.startswith("val")))
                last = curve[-1][0] if curve else 0
                highest = max([highest, *(value for step, value in curve if step >= STEEP * last)])
            chart = line_chart(series, "step", words, (520, 300), highest)
            charts.append((f"{group}: {words}", chart, series))
    return charts


def speculation_charts(figures: dict[str, Any]) -> list[tuple[str, str, list[Series]]]:
    """(title, chart, series) by policy: target forwards saved by depth, and how often a guess at a depth was right. A line per
    target and guess source."""
    rows = figures["speculation"]["rows"]
    charts = []
    for policy in dict.fromkeys(row["policy"] for row in rows):
        saved, right = [], []
        by_line: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in rows:
            if row["policy"] == policy:
                source = row["source"] + ", adaptive depth" * row.get("adaptive", False)
                by_line.setdefault((row["target"], source), []).append(row)
        for number_of, ((target, source), own) in enumerate(by_line.items()):
            title, colour = f"{TITLES.get(target, target)}, {source}", f"c{number_of % 6}"
            depths = [row["mean_depth"] if row.get("adaptive") else row["depth"] for row in own]
            marks = [
                Mark(depth, row["forwards_ratio"], f"depth {depth}: {row['forwards_ratio']:.2f}x")
                for depth, row in zip(depths, own, strict=True)
            ]
            saved.append(Series(title, colour, [Mark(0, 1.0, "without guesses"), *marks]))
            deepest = max(own, key=lambda row: row["depth"])["acceptance"]
            accepted = sorted((int(depth), share) for depth, share in deepest.items())
            marks = [Mark(depth, 100 * share, f"depth {depth}: {share:.0%}") for depth, share in accepted]
            right.append(Series(title, colour, marks))
        words = policy.replace("_", " ")
        size = (520, 300)
        charts.append(
            (f"{words}: target forwards", line_chart(saved, "depth", "plain / speculative forwards", size), saved)
        )
        charts.append(
            (f"{words}: acceptance", line_chart(right, "depth of the guess", "guesses right, %", size), right)
        )
    return charts
