"""The operating point at equal quality is chosen on validation; AUP agrees with a sum done by hand."""

import math

import pytest

from model.benchmarks.trade_off import Point, area_under_parallelism, parallelism_at_equal_quality


def points(**values):
    return [Point(name, score, parallel) for name, (score, parallel) in values.items()]


def test_the_point_is_chosen_on_validation_and_only_read_on_test():
    validation = points(slow=(80, 1.0), middle=(79.0, 2.0), fast=(78.9, 4.0))
    test = points(slow=(70, 1.1), middle=(60, 2.2), fast=(90, 4.4))  # on test, `fast` would look best
    found = parallelism_at_equal_quality(validation, test, reference_score=80)
    assert (found.chosen, found.test.score, found.test.tokens_per_forward) == ("middle", 60, 2.2)


def test_the_margin_is_inclusive_and_no_point_is_none():
    curve = points(a=(79.0, 3.0))
    assert parallelism_at_equal_quality(curve, curve, 80.0).chosen == "a"
    assert parallelism_at_equal_quality(curve, curve, 80.01) is None
    assert parallelism_at_equal_quality(curve, curve, 80.01, margin=2).chosen == "a"


def test_nothing_is_equal_to_a_reference_that_cannot_do_anything():
    curve = points(slow=(3, 1.0), fast=(2.5, 8.0))
    assert parallelism_at_equal_quality(curve, curve, 3.0) is None
    assert parallelism_at_equal_quality(curve, curve, 3.0, floor=0.0).chosen == "fast"


def test_splits_with_different_points_are_refused():
    with pytest.raises(ValueError, match="every validation point"):
        parallelism_at_equal_quality(points(a=(1, 1)), points(b=(1, 1)), 1)


def test_aup_by_hand():
    # y_max = 80: W(80) = 1, W(78) = exp(-3 * 2 / 80); the point at 74 is more than 5 below the first one and is left out
    curve = points(c=(74, 5.0), b=(78, 3.0), a=(80, 1.0))
    weighted = 78 * math.exp(-3 * (1 - 78 / 80))
    assert area_under_parallelism(curve, highest_score=80) == pytest.approx(1.0 * 80 + 2.0 * (80 + weighted) / 2)


def test_aup_weighs_against_the_best_of_all_methods_and_never_above_one():
    curve = points(a=(60, 1.0), b=(60, 2.0))
    assert area_under_parallelism(curve, 80) == pytest.approx(60 + 60 * math.exp(-3 * (1 - 60 / 80)))
    assert area_under_parallelism(curve, 50) == pytest.approx(120)
    with pytest.raises(ValueError, match="at least one point"):
        area_under_parallelism([], 80)
