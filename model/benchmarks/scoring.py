"""Scores of one model, differences between two, and tokens per forward, each with a bootstrap interval.

Correctness is a mapping benchmark -> 0/1 per item (or a matrix seeds x
items). Accuracies and scores are in percent. All draws come from a numpy generator made from the given seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy

Correct = Mapping[str, "numpy.ndarray | Sequence[float] | Sequence[Sequence[float]]"]
CHUNK = 256  # resamples drawn at once: bounds memory at 256 x seeds x items


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float

    def as_dict(self, digits: int = 4) -> dict[str, float]:
        return {"value": round(self.value, digits), "low": round(self.low, digits), "high": round(self.high, digits)}


def _matrix(values: object, name: str) -> numpy.ndarray:
    """[seeds, items] float64; one seed when a flat list is given."""
    matrix = numpy.atleast_2d(numpy.asarray(values, dtype=numpy.float64))
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"benchmark {name!r} has no items (or not [seeds, items]): shape {matrix.shape}")
    return matrix


def _resampled_means(matrix: numpy.ndarray, seed_picks: numpy.ndarray, rng: numpy.random.Generator) -> numpy.ndarray:
    """Mean of every resample [resamples]: `seed_picks` [resamples, seeds] are shared by all benchmarks, items are drawn here."""
    items = matrix.shape[1]
    means = numpy.empty(len(seed_picks))
    for start in range(0, len(seed_picks), CHUNK):
        picks = seed_picks[start : start + CHUNK]
        drawn = rng.integers(0, items, size=(len(picks), items))
        means[start : start + CHUNK] = matrix[picks[:, :, None], drawn[:, None, :]].mean(axis=(1, 2))
    return means


def _score_samples(correct: Correct, resamples: int, seed: int) -> tuple[dict[str, numpy.ndarray], dict[str, float]]:
    """Resampled accuracies and the observed one, in percent, per benchmark."""
    if not correct:
        raise ValueError("no benchmark to score; name at least one in evaluate.tasks")
    matrices = {name: _matrix(values, name) for name, values in correct.items()}
    seeds = {matrix.shape[0] for matrix in matrices.values()}
    if len(seeds) > 1:
        raise ValueError(f"every benchmark needs the same training seeds, found {sorted(seeds)} of them")
    rng = numpy.random.default_rng(seed)
    seed_picks = rng.integers(0, seeds.pop(), size=(resamples, next(iter(matrices.values())).shape[0]))
    samples = {name: 100 * _resampled_means(matrix, seed_picks, rng) for name, matrix in sorted(matrices.items())}
    return samples, {name: 100 * float(matrix.mean()) for name, matrix in matrices.items()}


def _interval(value: float, samples: numpy.ndarray, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = numpy.quantile(samples, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))


def accuracy_intervals(
    correct: Correct, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Percent right per benchmark, with percentile bootstrap intervals over items (and seeds, when there are several)."""
    samples, observed = _score_samples(correct, resamples, seed)
    return {name: _interval(observed[name], samples[name], confidence) for name in correct}


def score_interval(correct: Correct, resamples: int = 2000, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Score = unweighted mean of the benchmarks' accuracies, in percent. Items are redrawn inside each benchmark."""
    samples, observed = _score_samples(correct, resamples, seed)
    return _interval(
        numpy.mean(list(observed.values())), numpy.mean([samples[name] for name in correct], axis=0), confidence
    )


def category_intervals(
    correct: Correct, categories: Mapping[str, str], resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Score of every category: the mean over the benchmarks in it. `categories` maps benchmark -> category."""
    names = sorted({categories[name] for name in correct if name in categories})
    return {
        category: score_interval(
            {name: values for name, values in correct.items() if categories.get(name) == category},
            resamples,
            confidence,
            seed,
        )
        for category in names
    }


def paired_difference(
    first: Correct, second: Correct, resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Score(first) - Score(second) on the same items, in points; the same items and seeds are redrawn for both.

    Raises ValueError when the two were not measured on the same benchmarks, items and number of seeds.
    """
    if set(first) != set(second):
        raise ValueError(
            f"paired comparison needs the same benchmarks; only one side has {sorted(set(first) ^ set(second))}"
        )
    differences = {}
    for name in first:
        ours, theirs = _matrix(first[name], name), _matrix(second[name], name)
        if ours.shape != theirs.shape:
            raise ValueError(
                f"benchmark {name!r}: [seeds, items] is {ours.shape} on one side and {theirs.shape} on the other"
            )
        differences[name] = ours - theirs
    return score_interval(differences, resamples, confidence, seed)


def tokens_per_forward(
    tokens: Sequence[int], forwards: Sequence[int], resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Sum of generated tokens / sum of decoding forwards of the target, with a bootstrap interval over samples.

    `tokens` counts up to and including the first EOS; `forwards` counts the forwards whose logits a decode step used.
    """
    numerator, denominator = numpy.asarray(tokens, dtype=float), numpy.asarray(forwards, dtype=float)
    if numerator.shape != denominator.shape or numerator.size == 0 or denominator.sum() <= 0:
        raise ValueError(
            f"tokens per forward needs one count each per sample, got {numerator.size} and {denominator.size}"
        )
    rng, ratios = numpy.random.default_rng(seed), []
    for start in range(0, resamples, CHUNK):
        drawn = rng.integers(0, numerator.size, size=(min(CHUNK, resamples - start), numerator.size))
        ratios.append(numerator[drawn].sum(axis=1) / numpy.maximum(denominator[drawn].sum(axis=1), 1))
    return _interval(numerator.sum() / denominator.sum(), numpy.concatenate(ratios), confidence)


def distribution(values: Sequence[float]) -> dict[str, float]:
    """Mean and the 5, 25, 50, 75 and 95 % quantiles."""
    array = numpy.asarray(values, dtype=float)
    quantiles = {f"q{percent:02d}": float(numpy.percentile(array, percent)) for percent in (5, 25, 50, 75, 95)}
    return {key: round(value, 4) for key, value in {"mean": float(array.mean()), **quantiles}.items()}


def calibration(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> dict[str, object]:
    """Expected calibration error and, per bin of confidence, how many samples, their mean confidence and share right."""
    confidences, outcomes = numpy.asarray(confidence, dtype=float), numpy.asarray(right, dtype=float)
    index = numpy.minimum((confidences * bins).astype(int), bins - 1)
    rows, error = [], 0.0
    for number in range(bins):
        chosen = index == number
        if chosen.any():
            mean_confidence, share_right = float(confidences[chosen].mean()), float(outcomes[chosen].mean())
            error += chosen.mean() * abs(mean_confidence - share_right)
            rows.append(
                {"samples": int(chosen.sum()), "confidence": round(mean_confidence, 4), "right": round(share_right, 4)}
            )
    return {"expected_error": round(float(error), 4), "bins": rows}
