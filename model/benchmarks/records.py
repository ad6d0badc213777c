"""One record per question and operating point: plain data from which every figure of an evaluation follows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from model.benchmarks import scoring
from model.benchmarks.settings import ONE_TOKEN
from model.benchmarks.trade_off import Point

if TYPE_CHECKING:
    from model.benchmarks.harness import Sample

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


def parallelism_curve(points: Mapping[str, Sequence[Record]]) -> list[tuple[float, dict[str, list[float]]]]:
    """(tokens per forward, correctness) of one token per forward and of every threshold, least parallel first.

    Of written answers, and of the questions that every point was asked. One token per forward is the threshold 1.
    """
    kept: list[dict[str, list[Record]]] = []  # point -> benchmark -> records
    for name, records in points.items():
        if name == ONE_TOKEN or name.startswith("threshold="):
            kept.append({})
            for record in records:
                if "tokens" in record:
                    kept[-1].setdefault(record["benchmark"], []).append(record)
    curve = []
    for point in kept:
        asked = [one for name, own in point.items() for one in own[: min(len(each[name]) for each in kept)]]
        if asked:
            parallelism = sum(len(one["tokens"]) for one in asked) / sum(one["forwards"] for one in asked)
            curve.append((parallelism, correctness(asked)))
    return sorted(curve, key=lambda pair: pair[0])


def correctness_at(
    curve: Sequence[tuple[float, dict[str, list[float]]]], tokens_per_forward: float
) -> dict[str, list[float]] | None:
    """Where a curve, its points joined by straight lines, is that parallel; None outside of it.

    Question by question the share of right of the two points around, so that the score lies on the line and two models can be
    compared on the same questions.
    """
    for (left, before), (right, after) in pairwise(curve):
        if left <= tokens_per_forward <= right:
            share = (tokens_per_forward - left) / (right - left) if right > left else 0.0
            return {
                name: [(1 - share) * one + share * other for one, other in zip(before[name], after[name], strict=True)]
                for name in before
            }
    return None


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
