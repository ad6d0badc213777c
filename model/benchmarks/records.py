"""One record per question and operating point: plain data from which every figure of an evaluation follows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from model.benchmarks import scoring
from model.benchmarks.harness import Sample
from model.benchmarks.trade_off import Point

Record = dict[str, Any]


def make_records(samples: Sequence[Sample], categories: Mapping[str, str]) -> list[Record]:
    """Samples as JSON-ready dictionaries, in order; generation fields are absent for likelihood tasks.

    The id of a row without one is its place in its benchmark, so that it is the same however many items were asked for.
    """
    records: list[Record] = []
    places: dict[str, int] = {}
    for sample in samples:
        row = json.loads(sample.document["row"]) if set(sample.document) == {"row"} else sample.document
        place = places.get(sample.benchmark, 0)
        places[sample.benchmark] = place + 1
        record: Record = {
            "id": str(row.get("id", place)),
            "benchmark": sample.benchmark,
            "category": categories[sample.benchmark],
            "question": sample.question,
            "answer": sample.answer,
            "right": sample.right,
        }
        if sample.is_truncated:
            record["is_truncated"] = True
        if sample.decoded is not None:
            decoded = sample.decoded
            record |= {
                "tokens": list(decoded.tokens),
                "revealed_at": list(decoded.revealed_at),
                "confidence": [round(float(value), 6) for value in decoded.confidence],
                "forwards": int(decoded.target_forwards),
                "counters": dict(decoded.counters),
            }
        records.append(record)
    return records


def through_first_eos(tokens: Sequence[int], eos: int | None) -> int:
    """How many tokens count: up to and including the first EOS in position order."""
    return tokens.index(eos) + 1 if eos in tokens else len(tokens)


def correctness(records: Sequence[Record]) -> dict[str, list[float]]:
    """Benchmark -> right or wrong per item, benchmarks in order of appearance."""
    correct: dict[str, list[float]] = {}
    for record in records:
        correct.setdefault(record["benchmark"], []).append(record["right"])
    return correct


def first_items(records: Sequence[Record], items: int | None) -> list[Record]:
    """The first `items` records of every benchmark."""
    seen: dict[str, int] = {}
    kept = []
    for record in records:
        seen[record["benchmark"]] = seen.get(record["benchmark"], 0) + 1
        if items is None or seen[record["benchmark"]] <= items:
            kept.append(record)
    return kept


def summarise(records: Sequence[Record], eos: int | None, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """All figures of one operating point: score, benchmarks, categories, tokens per forward, length, calibration, counters.

    Percent for scores. `written_score` (of the benchmarks whose answers are generated) and what follows it are absent when
    nothing was.
    """
    correct = correctness(records)
    categories = {record["benchmark"]: record["category"] for record in records}
    options = {"resamples": resamples, "seed": seed}
    summary: dict[str, Any] = {
        "items": len(records),
        "truncated_prompts": sum(bool(record.get("is_truncated")) for record in records),
        "score": scoring.score_interval(correct, **options).as_dict(),
        "benchmarks": {name: one.as_dict() for name, one in scoring.accuracy_intervals(correct, **options).items()},
        "categories": {
            name: one.as_dict() for name, one in scoring.category_intervals(correct, categories, **options).items()
        },
    }
    generated = [record for record in records if "tokens" in record]
    if generated:
        tokens = [through_first_eos(record["tokens"], eos) for record in generated]
        forwards = [record["forwards"] for record in generated]
        kept = [record["confidence"][:count] for record, count in zip(generated, tokens, strict=True)]
        confidences = [sum(values) / max(len(values), 1) for values in kept]
        counters: dict[str, float] = {}
        for record in generated:
            for name, value in record["counters"].items():
                counters[name] = counters.get(name, 0) + value
        summary |= {
            "written_score": scoring.score_interval(correctness(generated), **options).as_dict(),
            "tokens_per_forward": scoring.tokens_per_forward(tokens, forwards, **options).as_dict(),
            "tokens_per_forward_of_samples": scoring.distribution(
                [count / max(forward, 1) for count, forward in zip(tokens, forwards, strict=True)]
            ),
            "answer_tokens": scoring.distribution(tokens),
            "unfinished_fraction": round(sum(eos not in record["tokens"] for record in generated) / len(generated), 4),
            "mean_confidence": round(sum(map(sum, kept)) / max(sum(map(len, kept)), 1), 6),
            "calibration": scoring.calibration(confidences, [record["right"] for record in generated]),
            "counters": dict(sorted(counters.items())),
        }
    return summary


def point_of(name: str, summary: Mapping[str, Any]) -> Point:
    """The operating point `name` for the trade-off measures."""
    return Point(name, summary["written_score"]["value"], summary["tokens_per_forward"]["value"])
