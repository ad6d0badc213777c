"""Made-up but plausible outputs of every stage that the report reads: no training, the same bytes every time."""

import json
import math
import random
from pathlib import Path

from model.benchmarks import scoring
from model.text.tokenizer import train_tokenizer
from tasks.reporting.inputs import MODELS, TRAINED

BENCHMARKS = {"people": "knowledge", "maps": "reasoning", "programs": "coding", "sums": "mathematics"}
# instance -> how often right at one token per forward, how many tokens threshold 0.9 reveals, what a token more costs
SKILL = {
    "finetune_ar": (0.78, 1.0, 0.0),
    "finetune_diffusion": (0.72, 2.6, 0.05),
    "tune_cap": (0.72, 4.2, 0.05),
    "tune_cap_control": (0.73, 2.7, 0.05),
    "finetune_diffusion_scaled": (0.71, 3.1, 0.09),
    "distill_draft": (0.41, 1.7, 0.03),
}
STEPS = ["tokens_per_step=1", "tokens_per_step=8"]
POINTS = [*STEPS, *(f"threshold={value:.2f}" for value in (0.5, 0.7, 0.8, 0.9, 0.95))]
QUESTION = "Mira has 3 boxes with 14 pens each and gives 9 pens to Dan. How many pens has she left?"
ANSWER = "First, 3 times 14 is 42.\nThen Mira gives 9 away: 42 - 9 = 33.\nSo she has 33 pens left. The answer is 33."


def write_everything(root: Path, items: int = 12) -> None:
    """data/ as a finished pipeline would leave it."""
    tokenizer = train_tokenizer(iter([QUESTION, ANSWER, "丽娜有三个苹果。"] * 40), 300, root / "data/tokens/tokenizer")
    ids = [*tokenizer.encode(ANSWER, add_special_tokens=False), tokenizer.eos_token_id]
    for model in MODELS:
        write_evaluation(root, model.instance, ids, items)
    for number, stage in enumerate(TRAINED):
        write_training(root, stage, number)
    corpus = {"rows": 20000, "kept": 19988, "characters": 4_000_000, "words": 700_000, "quarantined": 12}
    corpus["failed_expectations"] = 0
    names = ("instructions/world", "pretrain/world")
    write_json(
        root, "metrics/validate.json", {**dict.fromkeys(names, corpus), "benchmarks": {**corpus, "quarantined": 0}}
    )
    split = {"rows": 900, "documents": 1900, "tokens": 110_000, "graded_tokens": 60_000, "bytes": 2, "fill_fraction": 0.9,
             "too_long": 3, "longest_too_long_tokens": 140, "without_answer": 0, "bytes_per_token": 3.1}  # fmt: skip
    splits = {"train": split, "validation": split}
    write_json(root, "metrics/tokenize.json", {"vocabulary_size": 512, **dict.fromkeys(names, splits)})
    agreement = [
        {"target": target, "policy": policy, "value": value, "low": value - 0.02, "high": value + 0.02, "tokens": 4000}
        for target in ("finetune_diffusion", "tune_cap")
        for policy, value in (("one_token", 0.93), ("threshold_0.9", 0.91))
    ]
    figures = {"num_prompts": 96, "max_new_tokens": 96, "rows": speculation_rows(), "agreement": agreement}
    write_json(root, "metrics/speculate.json", figures)


def write_evaluation(root: Path, instance: str, ids: list[int], items: int) -> None:
    """data/metrics/evaluate/<instance>.json and data/samples/<instance>.jsonl."""
    causal = instance == "finetune_ar"
    main = ["left_to_right"] if causal else ["tokens_per_step=1", "threshold=0.90"]
    points = main if causal else POINTS
    by_point = {point: make_records(instance, point, ids, items) for point in points}
    sweep = {point: summary(records) for point, records in by_point.items()}
    result = {
        "instance": instance,
        "attention": "causal" if causal else "block_causal",
        "logit_scale": 1.37 if instance.endswith("scaled") else 1.0,
        "main_point": main[0],
        "test": {point: summary(by_point[point]) for point in main},
        "sweep": {"test": sweep, "validation": sweep},
    }
    write_json(root, f"metrics/evaluate/{instance}.json", result)
    lines = [json.dumps({"point": point, **record}, sort_keys=True) for point in main for record in by_point[point]]
    write(root, f"samples/{instance}.jsonl", "\n".join(lines) + "\n")


def make_records(instance: str, point: str, ids: list[int], items: int) -> list[dict]:
    """One record per question; the more parallel the point, the more often wrong."""
    skill, speed, cost = SKILL[instance]
    kind, _, value = point.partition("=")
    at_threshold = 1 + (speed - 1) * (1.9 - float(value or 1)) ** 2
    parallel = {"left_to_right": 1.0, "tokens_per_step": float(value or 1)}.get(kind, at_threshold)
    rng = random.Random(f"{instance} {point}")
    records = []
    for benchmark, category in BENCHMARKS.items():
        for number in range(items):
            luck = random.Random(f"{benchmark} {number}").random()
            right = luck < skill - cost * max(parallel - 0.98 * speed, 0.0)
            order = sorted(range(len(ids)), key=lambda place: place + rng.gauss(0, 0 if kind == "left_to_right" else 6))
            revealed = [0] * len(ids)
            for rank, place in enumerate(order):
                revealed[place] = 1 + int(rank / max(parallel * (0.85 + 0.3 * luck), 1))
            records.append(
                {"id": f"{benchmark}-test-{number}", "benchmark": benchmark, "category": category, "question": QUESTION,
                 "answer": ANSWER, "right": float(right), "tokens": ids, "revealed_at": revealed,
                 "confidence": [round(0.8 + 0.2 * rng.random(), 6) for _ in ids], "forwards": max(revealed), "counters": {}}
            )  # fmt: skip
    return records


def summary(records: list[dict]) -> dict:
    """The part of an evaluation's figures that the report reads."""
    correct: dict[str, list[float]] = {}
    for record in records:
        correct.setdefault(record["benchmark"], []).append(record["right"])
    options = {"resamples": 200, "seed": 0}
    categories = scoring.category_intervals(correct, BENCHMARKS, **options)
    benchmarks = scoring.accuracy_intervals(correct, **options)
    return {
        "items": len(records),
        "score": scoring.score_interval(correct, **options).as_dict(),
        "benchmarks": {name: one.as_dict() for name, one in benchmarks.items()},
        "categories": {name: one.as_dict() for name, one in categories.items()},
        "written_score": scoring.score_interval(correct, **options).as_dict(),
        "tokens_per_forward": scoring.tokens_per_forward(
            [len(record["tokens"]) for record in records], [record["forwards"] for record in records], **options
        ).as_dict(),
        "mean_confidence": 0.93,
    }


def write_training(root: Path, stage: str, number: int) -> None:
    """data/curves/<stage>.csv and data/metrics/<stage>.json."""
    rng, steps = random.Random(stage), 200 + 300 * (number % 3)
    lines = ["step,train/gradient_norm,train/loss,val/bits_per_byte,val/loss"]
    for step in range(20, steps + 1, 20):
        loss = 1.1 + 0.2 * number + 4.5 * math.exp(-step / 60) + 0.06 * rng.gauss(0, 1)
        lines.append(f"{step},0.7,{loss:.6f},,")
        if step % 100 == 0:
            bits = 0.6 + 0.05 * number + 0.9 * math.exp(-step / 150)
            lines.append(f"{step},,,{bits:.6f},{loss:.6f}")
    write(root, f"curves/{stage}.csv", "\n".join(lines) + "\n")
    parameters = 493_000 if stage == "distill_draft" else 870_000
    metrics = {
        "steps": steps,
        "stopped_early": False,
        "parameters": parameters,
        "train/loss": loss,
        "val/bits_per_byte": bits,
    }
    write_json(root, f"metrics/{stage}.json", metrics)


def speculation_rows() -> list[dict]:
    """Two targets x two policies x two sources x two depths."""
    rows = []
    for target in ("finetune_diffusion", "tune_cap"):
        for policy, plain in (("one_token", 4800), ("threshold_0.9", 1850)):
            for source in ("draft", "stale"):
                for depth in (2, 4):
                    ratio = 1 + (0.5 if source == "draft" else 0.25) * depth**0.5 * (
                        1 if policy == "one_token" else 0.3
                    )
                    rows.append(
                        {"target": target, "policy": policy, "source": source, "depth": depth, "identical_fraction": 1.0,
                         "plain_target_forwards": plain, "target_forwards": round(plain / ratio), "forwards_ratio": ratio,
                         "draft_forwards": 0 if source == "stale" else 4000, "rows_verified": 9000 + depth,
                         "acceptance": {str(d): 0.83**d for d in range(1, depth + 1)}, "plain_tpf": 4800 / plain,
                         "tpf": 4800 / plain * ratio, "smallest_gap": 0.00021, "smallest_margin": 0.0001,
                         "match_probability": 0.7, "flop_speed_up": 0.4}
                    )  # fmt: skip
    return rows


def write_json(root: Path, name: str, value: object) -> None:
    write(root, name, json.dumps(value, indent=1, sort_keys=True))


def write(root: Path, name: str, text: str) -> None:
    path = root / "data" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
