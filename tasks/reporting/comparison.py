"""The figures that compare models: one row each, score against tokens per forward, and what CAP is worth."""

from typing import Any

import numpy

from model.benchmarks.scoring import paired_difference
from model.benchmarks.trade_off import EqualQuality, Point, area_under_parallelism, parallelism_at_equal_quality
from tasks.reporting.inputs import MODELS, REFERENCE, TUNED, Inputs, Model, Record

MARGIN = 1.0  # points of score that equal quality may cost
RESAMPLES, CHUNK = 4000, 200  # resamples drawn at once: bounds memory
Interval = dict[str, float]  # value, low, high (95 %)


def compare(inputs: Inputs) -> dict[str, Any]:
    """`models` (rows of the table), `trade_off` (points of the test split by model) and `cap` (the verdict)."""
    equal = {model.instance: equal_quality(inputs, model.instance) for model in MODELS}
    return {
        "models": [model_row(inputs, model, equal) for model in MODELS],
        "trade_off": trade_off(inputs),
        "cap": cap_verdict(inputs, equal),
    }


def model_row(inputs: Inputs, model: Model, equal: dict[str, EqualQuality | None]) -> dict[str, Any]:
    """One row of the comparison table. None where a measure does not exist for the model."""
    evaluation, trained = inputs.evaluations[model.instance], inputs.metrics[model.trained_by]
    main = evaluation["main_point"]
    row: dict[str, Any] = {
        "instance": model.instance,
        "title": model.title,
        "note": model.note,
        "attention": evaluation["attention"],
        "logit_scale": evaluation["logit_scale"],
        "parameters": trained["parameters"],
        "val_bits_per_byte": trained["val/bits_per_byte"] if model.has_own_weights else None,
        "one_token": point_figures(evaluation["test"][main], main),
        "truncated_prompts": evaluation["test"][main].get("truncated_prompts", 0),
        "difference_to_sft": None,
        "threshold": None,
        "many_tokens": None,
        "categories": evaluation["test"][main]["categories"],
        "benchmarks": evaluation["test"][main]["benchmarks"],
        "equal_quality": None,
    }
    if model.instance != REFERENCE:
        ours, theirs = inputs.records[model.instance][main], inputs.records[REFERENCE][main_point(inputs, REFERENCE)]
        row["difference_to_sft"] = score_difference(ours, theirs)
    if parallel := parallel_point(evaluation):
        row["threshold"] = point_figures(evaluation["test"][parallel], parallel)
    if many := many_tokens_point(evaluation):
        row["many_tokens"] = point_figures(evaluation["sweep"]["test"][many], many)
    chosen, reference = equal[model.instance], equal[REFERENCE]
    if chosen:
        row["equal_quality"] = {
            "chosen": chosen.chosen,
            "validation_score": chosen.validation.score,
            "score": chosen.test.score,
            "tokens_per_forward": chosen.test.tokens_per_forward,
            "ratio_to_sft": chosen.test.tokens_per_forward / reference.test.tokens_per_forward if reference else None,
        }
    return row


def point_figures(summary: dict[str, Any], name: str) -> dict[str, Any]:
    """Score, tokens per forward and confidence of one operating point; None for what only written answers have."""
    figures = {"point": name, "items": summary["items"], "score": summary["score"]}
    return figures | {key: summary.get(key) for key in ("tokens_per_forward", "mean_confidence")}


def main_point(inputs: Inputs, instance: str) -> str:
    """The operating point of one token per forward."""
    return inputs.evaluations[instance]["main_point"]


def parallel_point(evaluation: dict[str, Any]) -> str | None:
    """The other point that was measured on all test questions, if there is one: the main threshold."""
    return next((name for name in sorted(evaluation["test"]) if name != evaluation["main_point"]), None)


def many_tokens_point(evaluation: dict[str, Any]) -> str | None:
    """The point that reveals the most tokens per step regardless of confidence."""
    counts = {
        int(name.partition("=")[2]): name
        for name in evaluation["sweep"]["test"]
        if name.startswith("tokens_per_step=") and name != evaluation["main_point"]
    }
    return counts[max(counts)] if counts else None


def points(evaluation: dict[str, Any], split: str) -> list[Point]:
    """Operating points of a split for the trade-off measures: written answers alone, choices do not depend on the decoder."""
    return [
        Point(name, summary["written_score"]["value"], summary["tokens_per_forward"]["value"])
        for name, summary in evaluation["sweep"].get(split, {}).items()
        if "tokens_per_forward" in summary
    ]


def equal_quality(inputs: Inputs, instance: str) -> EqualQuality | None:
    """The most parallel point whose validation score is at least SFT's at one token per forward, minus MARGIN.

    Only written answers count. None for a causal network, without a validation split, when no point is good enough, and where
    SFT itself scores near zero: then equal quality means nothing.
    """
    evaluation = inputs.evaluations[instance]
    validation = points(evaluation, "validation")
    if evaluation["attention"] == "causal" or not validation:
        return None
    reference = inputs.evaluations[REFERENCE]["sweep"]["validation"][main_point(inputs, REFERENCE)].get("written_score")
    if reference is None:
        return None
    return parallelism_at_equal_quality(validation, points(evaluation, "test"), reference["value"], MARGIN)


def trade_off(inputs: Inputs) -> dict[str, Any]:
    """instance -> the test points of its thresholds, least parallel first, and their AUP (y_max over all models)."""
    curves = {
        model.instance: [
            p for p in points(inputs.evaluations[model.instance], "test") if p.name.startswith("threshold=")
        ]
        for model in MODELS
        if inputs.evaluations[model.instance]["attention"] != "causal"
    }
    highest = max((point.score for curve in curves.values() for point in curve), default=0.0)
    found = {}
    for name, curve in curves.items():
        summaries = inputs.evaluations[name]["sweep"]["test"]
        ordered = sorted(curve, key=lambda point: (point.tokens_per_forward, point.name))
        found[name] = {
            "aup": area_under_parallelism(curve, highest) if curve and highest > 0 else None,
            "points": [point_figures(summaries[point.name], point.name) for point in ordered],
        }
    return found


def cap_verdict(inputs: Inputs, equal: dict[str, EqualQuality | None]) -> dict[str, Any]:
    """Parallelism of CAP at equal quality against SFT and both controls, each with an interval, and whether quality was held.

    A comparison is `resolved` when its 95 % interval lies on one side of 1 (ratios) or of -MARGIN (score). A rival without a
    point of equal quality has no ratio; `unreached` says what it reached instead.
    """
    ours = equal[TUNED]
    verdict: dict[str, Any] = {"margin": MARGIN, "chosen": ours.chosen if ours else None, "ratios": {}, "score": None}
    verdict["unreached"] = {}
    if not ours:
        return verdict | {"claim": "not resolved"}
    for rival in (REFERENCE, "tune_cap_control", "finetune_diffusion_scaled"):
        theirs = equal[rival]
        if theirs:
            verdict["ratios"][rival] = forwards_ratio(inputs, (TUNED, ours.chosen), (rival, theirs.chosen))
        else:
            verdict["unreached"][rival] = unreached(inputs, rival, ours.chosen)
    verdict["score"] = quality_held(inputs, ours.chosen)
    words = [one["verdict"] for kind in ("ratios", "unreached") for one in verdict[kind].values()]
    if all(word == "more parallel" for word in words) and verdict["score"]["verdict"] == "held":
        claim = "holds"
    elif "less parallel" in words or verdict["score"]["verdict"] == "lost":
        claim = "does not hold"
    else:
        claim = "not resolved"
    return verdict | {"claim": claim}


def forwards_ratio(inputs: Inputs, first: tuple[str, str], second: tuple[str, str]) -> dict[str, Any]:
    """TPF of `first` / TPF of `second` (instance, point) on test questions, with its interval and where that comes from."""
    records = [inputs.records[instance].get(point, []) for instance, point in (first, second)]
    if all(records):
        ours, theirs = common(*records)
        interval = paired_ratio(ours, theirs)
        method = f"paired bootstrap over {sum('tokens' in one for one in ours)} questions"
    else:  # no record per question at this point: the widest ratio that both intervals allow
        one, other = (
            inputs.evaluations[instance]["sweep"]["test"][point]["tokens_per_forward"]
            for instance, point in (first, second)
        )
        interval = {
            "value": one["value"] / other["value"],
            "low": one["low"] / other["high"],
            "high": one["high"] / other["low"],
        }
        method = "from the two models' own intervals"
    verdict = "more parallel" if interval["low"] > 1 else "less parallel" if interval["high"] < 1 else "not resolved"
    return {**interval, "first": first[1], "second": second[1], "method": method, "verdict": verdict}


def unreached(inputs: Inputs, rival: str, chosen: str) -> dict[str, Any]:
    """What a rival that is nowhere as good as SFT minus MARGIN reaches, on validation questions: its `best` score, the best among
    the points as parallel as CAP at `chosen` (`as_parallel`, None without one), and whether CAP is above it.

    It is where each of those points, taken at the upper end of its 95 % interval, scores less than SFT's lower end minus MARGIN;
    a point counts as parallel unless its interval of tokens per forward lies below CAP's.
    """
    sweep = inputs.evaluations[rival]["sweep"]["validation"]
    figures = [point_figures(one, name) | {"score": one["written_score"]} for name, one in sweep.items()]
    reference = inputs.evaluations[REFERENCE]["sweep"]["validation"][main_point(inputs, REFERENCE)]["written_score"]
    least = inputs.evaluations[TUNED]["sweep"]["validation"][chosen]["tokens_per_forward"]["low"]
    parallel = [one for one in figures if one["tokens_per_forward"]["high"] >= least]
    is_below = all(one["score"]["high"] < reference["low"] - MARGIN for one in parallel)
    return {
        "required": reference["value"] - MARGIN,
        "best": max(figures, key=lambda one: one["score"]["value"]),
        "as_parallel": max(parallel, key=lambda one: one["score"]["value"], default=None),
        "verdict": "more parallel" if is_below else "not resolved",
    }


def quality_held(inputs: Inputs, chosen: str) -> dict[str, Any]:
    """Test score of CAP's written answers at its chosen point minus SFT's at one token per forward, in points."""
    main = main_point(inputs, REFERENCE)
    ours, theirs = (
        [record for record in inputs.records[instance].get(point, []) if "tokens" in record]
        for instance, point in ((TUNED, chosen), (REFERENCE, main))
    )
    if ours and theirs:
        interval = score_difference(ours, theirs)
        method = f"paired bootstrap over {len(common(ours, theirs)[0])} questions"
    else:
        one = inputs.evaluations[TUNED]["sweep"]["test"][chosen]["written_score"]
        other = inputs.evaluations[REFERENCE]["sweep"]["test"][main]["written_score"]
        interval = {
            "value": one["value"] - other["value"],
            "low": one["low"] - other["high"],
            "high": one["high"] - other["low"],
        }
        method = "from the two models' own intervals"
    verdict = "held" if interval["low"] >= -MARGIN else "lost" if interval["high"] < -MARGIN else "not resolved"
    return {**interval, "method": method, "verdict": verdict}


def common(first: list[Record], second: list[Record]) -> tuple[list[Record], list[Record]]:
    """The records of questions that both sides answered, in the same order."""
    ours, theirs = ({(one["benchmark"], one["id"]): one for one in side} for side in (first, second))
    keys = [key for key in ours if key in theirs]
    return [ours[key] for key in keys], [theirs[key] for key in keys]


def score_difference(first: list[Record], second: list[Record]) -> Interval | None:
    """Score(first) - Score(second) on the questions they share, in points; None when they share none."""
    sides: list[dict[str, list[float]]] = []
    for records in common(first, second):
        correct: dict[str, list[float]] = {}
        for record in records:
            correct.setdefault(record["benchmark"], []).append(float(record["right"]))
        sides.append(correct)
    return paired_difference(*sides, resamples=RESAMPLES).as_dict() if sides[0] else None


def paired_ratio(first: list[Record], second: list[Record]) -> Interval:
    """Ratio of tokens per forward over written answers, the same questions redrawn for both sides; generator seed 0."""
    counts = numpy.array(
        [
            [len(one["tokens"]), one["forwards"], len(other["tokens"]), other["forwards"]]
            for one, other in zip(first, second, strict=True)
            if "tokens" in one  # choices are scored by likelihood: nothing was written
        ],
        dtype=float,
    )

    def ratio(sums: numpy.ndarray) -> numpy.ndarray:
        return sums[..., 0] / sums[..., 1] / (sums[..., 2] / sums[..., 3])

    rng, drawn = numpy.random.default_rng(0), []
    for _ in range(RESAMPLES // CHUNK):
        drawn.append(ratio(counts[rng.integers(0, len(counts), (CHUNK, len(counts)))].sum(axis=1)))
    low, high = numpy.quantile(numpy.concatenate(drawn), [0.025, 0.975])
    return {"value": float(ratio(counts.sum(axis=0))), "low": float(low), "high": float(high)}
