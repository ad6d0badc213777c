"""Score against parallelism: the operating point at equal quality, and the area under the curve (AUP)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

FLOOR = 10.0  # percent: below it a margin of a point says nothing, and the most parallel nonsense would win


@dataclass(frozen=True)
class Point:
    """One operating point of one model on one split; `score` counts written answers alone: choices have no tokens."""

    name: str  # what tells the points of a model apart, e.g. "threshold=0.90"
    score: float  # percent
    tokens_per_forward: float


@dataclass(frozen=True)
class EqualQuality:
    """The chosen operating point: chosen on the validation split, to be quoted from the test split."""

    chosen: str
    validation: Point
    test: Point


def parallelism_at_equal_quality(
    validation: Sequence[Point],
    test: Sequence[Point],
    reference_score: float,
    margin: float = 1.0,
    floor: float = FLOOR,
) -> EqualQuality | None:
    """The point with the highest validation TPF whose validation score is at least the reference's minus `margin` points.

    `reference_score` is measured on the validation split too: the test split decides nothing, it is only read at the chosen
    point. None when no point is good enough or the reference itself is below `floor`. Ties in TPF go to the higher score,
    then to the earlier point.
    """
    names = [point.name for point in validation]
    on_test = {point.name: point for point in test}
    if len(set(names)) < len(names) or not set(names) <= set(on_test):
        raise ValueError(f"the test split needs every validation point exactly once: {names} against {sorted(on_test)}")
    good_enough = [point for point in validation if point.score >= reference_score - margin]
    if not good_enough or reference_score < floor:
        return None
    best = max(good_enough, key=lambda point: (point.tokens_per_forward, point.score))
    return EqualQuality(best.name, best, on_test[best.name])


def area_under_parallelism(
    points: Sequence[Point], highest_score: float, steepness: float = 3.0, largest_drop: float = 5.0
) -> float:
    """AUP: rho_1 y_1 plus the trapezoids of y W(y) over TPF, points sorted by TPF.

    W(y) = min(exp(-steepness (1 - y / y_max)), 1) with y_max = `highest_score` over all methods compared; points more than
    `largest_drop` below the first (the least parallel one) are left out. Scores in percent.
    """
    if not points or highest_score <= 0:
        raise ValueError(
            f"AUP needs at least one point and a highest score above 0, got {len(points)} and {highest_score}"
        )
    ordered = sorted(points, key=lambda point: (point.tokens_per_forward, -point.score))
    kept = [point for point in ordered if point.score >= ordered[0].score - largest_drop]

    def weighted(score: float) -> float:
        return score * min(math.exp(-steepness * (1 - score / highest_score)), 1.0)

    area = kept[0].tokens_per_forward * kept[0].score
    for left, right in pairwise(kept):
        width = right.tokens_per_forward - left.tokens_per_forward
        area += width * (weighted(left.score) + weighted(right.score)) / 2
    return area
