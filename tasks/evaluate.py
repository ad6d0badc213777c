"""Measures one model: score, tokens per forward and their trade-off, through lm-evaluation-harness.

    python -m tasks.evaluate --instance finetune_diffusion

An instance is a folder under data/models, or `finetune_diffusion_scaled`: finetune_diffusion with its logits multiplied so that
it is as confident as tune_cap on validation prompts (the control that tells tuning from mere sharpening). Writes
data/metrics/evaluate/<instance>.json and data/samples/<instance>.jsonl. Operating points are to be chosen on the validation
split; the test split is only read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from model.atomic import write_atomically
from model.benchmarks.settings import EvaluateConfig, main_points, operating_points
from tasks.stage import Stage, run_stage

if TYPE_CHECKING:
    from model.benchmarks.subject import Subject
    from model.benchmarks.suite import Suite

SCALED, SCALED_BASE, SCALED_GOAL = "finetune_diffusion_scaled", "finetune_diffusion", "tune_cap"
Records = list[dict[str, Any]]


def main(stage: Stage) -> None:
    """Evaluates `stage.instance` and publishes its figures and samples."""
    from model.benchmarks.judge import open_judge

    if not stage.instance:
        raise ValueError("say which model: --instance finetune_diffusion (a folder under data/models)")
    config = EvaluateConfig.from_section(stage.section)
    with open_judge() as judge:
        subject, control = open_subject(stage, config, judge)
        result = {
            "instance": stage.instance,
            "attention": subject.attention,
            "logit_scale": round(subject.logit_scale, 6),
            **control,
        }
        measured, samples = measure(stage, subject, config, judge)
    result |= measured
    instance = stage.instance
    write_atomically(
        stage.root / f"data/metrics/evaluate/{instance}.json", json.dumps(result, indent=1, sort_keys=True) + "\n"
    )
    lines = [json.dumps(sample, ensure_ascii=False, sort_keys=True) + "\n" for sample in samples]
    write_atomically(stage.root / f"data/samples/{instance}.jsonl", "".join(lines))
    track(stage, result)


def open_subject(stage: Stage, config: EvaluateConfig, judge: Callable) -> tuple[Subject, dict[str, float]]:
    """The instance's model, and for the scaled control the confidences between which its scale was found."""
    from model.benchmarks.subject import Subject, match_confidence

    given = config.start_from or {}

    def subject_of(name: str) -> Subject:
        default = stage.root / "data/models" / name
        source = given.get(name, default)
        return Subject(stage.root / source if (stage.root / source).exists() else source, config, stage.seed)

    if stage.instance != SCALED:
        return subject_of(stage.instance), {}
    base, goal_model = subject_of(SCALED_BASE), subject_of(SCALED_GOAL)
    split = splits(config)[-1]  # no answer is looked at, so the test prompts may serve where there are no others
    tasks = open_suite(stage, config, judge, split, config.scale_items).tasks
    questions = [task.doc_to_text(document) for task in tasks for document in task.eval_docs]
    goal = goal_model.mean_confidence(questions)

    @cache
    def confidence_at(scale: float) -> float:
        base.scale_logits(scale)
        return base.mean_confidence(questions)

    scale, before = match_confidence(confidence_at, goal), confidence_at(1.0)
    after = confidence_at(scale)
    base.scale_logits(scale)
    print(
        f"{stage.address}: logits x {scale:.4f}: confidence {before:.4f} -> {after:.4f}, {SCALED_GOAL} has {goal:.4f}",
        flush=True,
    )
    return base, {
        "confidence_split": split,
        "confidence_goal": round(goal, 6),
        "confidence_unscaled": round(before, 6),
        "confidence_scaled": round(after, 6),
    }


def open_suite(stage: Stage, config: EvaluateConfig, judge: Callable, split: str, items: int) -> Suite:
    """The benchmarks of a split with their first `items` questions each."""
    from model.benchmarks.suite import load_suite

    return load_suite(
        config.tasks,
        split,
        folder=stage.root / "data/raw/benchmarks",
        judge=judge,
        max_new_tokens=config.max_new_tokens,
        limit=items,
        local=config.local,
        num_fewshot=config.num_fewshot,
    )


def splits(config: EvaluateConfig) -> list[str]:
    """The splits that some benchmark has, "validation", on which operating points are chosen, last."""
    from model.benchmarks.suite import has_split

    return [
        split for split in ("test", "validation") if any(has_split(name, split, config.local) for name in config.tasks)
    ]


def decode_split(stage: Stage, subject: Subject, policy: dict | None, name: str, suite: Suite, items: int) -> Records:
    """Records of one pass over a split; an interrupted evaluation takes up the passes it has finished."""
    from model.benchmarks.harness import run_tasks
    from model.benchmarks.records import make_records

    kept = stage.work / f"{name}-{items}.json"
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8"))
    print(f"{stage.address}: {name}, {len(suite.tasks)} benchmarks, up to {items} items each", flush=True)
    model = subject.harness(policy)
    records = make_records(run_tasks(model, suite.tasks, limit=items, chat=subject.config.chat), suite.categories)
    if cut := sum(bool(record.get("is_truncated")) for record in records):
        print(f"{stage.address}: {cut} of {len(records)} prompts did not fit the context and lost their beginning")
    write_atomically(kept, json.dumps(records, ensure_ascii=False))
    return records


def measure(stage: Stage, subject: Subject, config: EvaluateConfig, judge: Callable) -> tuple[dict[str, Any], Records]:
    """All figures of a model, and the test samples of all its operating points."""
    from model.benchmarks.records import first_items, summarise

    points, main_names = operating_points(config, subject.attention), main_points(config, subject.attention)
    most = {"test": config.test_items, "validation": config.validation_items}
    suites = {split: open_suite(stage, config, judge, split, most[split]) for split in splits(config)}
    test: dict[str, Any] = {}
    sweep: dict[str, dict[str, Any]] = {split: {} for split in suites}
    samples: Records = []
    for name, policy in points.items():
        for split, suite in suites.items():
            items = {"validation": config.validation_items, "test": config.sweep_items}[split]
            is_main = split == "test" and name in main_names
            measured_items = config.test_items if is_main else items
            records = decode_split(stage, subject, policy, f"{split}-{name}", suite, measured_items)
            options = {"eos": subject.eos, "resamples": config.resamples, "seed": stage.seed}
            if is_main:
                test[name] = summarise(records, **options)
            if split == "test":  # every point, so that the report can compare models question by question
                samples += [{"point": name, **record} for record in records]
            sweep[split][name] = brief(summarise(first_items(records, items), **options))
    return {"main_point": main_names[0], "test": test, "sweep": sweep, **trade_off(sweep, main_names[0])}, samples


def brief(summary: dict[str, Any]) -> dict[str, Any]:
    """What the trade-off needs of a point's figures."""
    return {
        key: summary[key]
        for key in ("items", "score", "categories", "written_score", "tokens_per_forward", "mean_confidence")
        if key in summary
    }


def trade_off(sweep: dict[str, dict[str, Any]], main_name: str) -> dict[str, Any]:
    """AUP of each split against the model's own best score, and the most parallel point within 1 of its own main score
    (None where that is near zero)."""
    from model.benchmarks.records import point_of
    from model.benchmarks.trade_off import area_under_parallelism, parallelism_at_equal_quality

    curves = {
        split: [point_of(name, summary) for name, summary in points.items() if "tokens_per_forward" in summary]
        for split, points in sweep.items()
    }
    found: dict[str, Any] = {"aup": {}}
    for split, curve in curves.items():
        best = max((point.score for point in curve), default=0.0)
        found["aup"][split] = round(area_under_parallelism(curve, best), 4) if best > 0 else None
    if curves.get("validation"):
        reference = sweep["validation"][main_name]["written_score"]["value"]
        chosen = parallelism_at_equal_quality(curves["validation"], curves["test"], reference)
        found["equal_quality_to_itself"] = chosen and {
            "chosen": chosen.chosen,
            "score": chosen.test.score,
            "tokens_per_forward": chosen.test.tokens_per_forward,
        }
    return found


def track(stage: Stage, result: dict[str, Any]) -> None:
    """Logs the main row, the trade-off (step = number of the operating point) and its figure."""
    main_row = result["test"][result["main_point"]]
    metrics = {"eval/score": main_row["score"]["value"]}
    metrics |= {f"eval/{name}/accuracy": value["value"] for name, value in main_row["benchmarks"].items()}
    metrics |= {f"eval/{name}/score": value["value"] for name, value in main_row["categories"].items()}
    if "tokens_per_forward" in main_row:
        metrics["eval/tpf"] = main_row["tokens_per_forward"]["value"]
    stage.tracker.log_metrics(metrics, step=0)
    curve = [summary for summary in result["sweep"]["test"].values() if "tokens_per_forward" in summary]
    for step, summary in enumerate(curve):
        row = {"eval/sweep/score": summary["score"]["value"], "eval/sweep/tpf": summary["tokens_per_forward"]["value"]}
        stage.tracker.log_metrics(row, step=step)
    if curve:
        stage.tracker.log_figure(draw(result), "plots/score_against_tpf.png")
    stage.tracker.log_artifact(stage.root / f"data/metrics/evaluate/{stage.instance}.json")


def draw(result: dict[str, Any]):
    """Score against tokens per forward, both splits, with the score's 95 % interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for split, points in result["sweep"].items():
        rows = sorted((one["tokens_per_forward"]["value"], one["score"], name) for name, one in points.items())
        x, y = [row[0] for row in rows], [row[1]["value"] for row in rows]
        spread = [[row[1]["value"] - row[1]["low"] for row in rows], [row[1]["high"] - row[1]["value"] for row in rows]]
        axes.errorbar(x, y, yerr=spread, marker="o", capsize=2, label=split)
    axes.set(xlabel="tokens per forward", ylabel="score", title=result["instance"])
    axes.legend()
    return figure


if __name__ == "__main__":
    run_stage(main, "evaluate")
