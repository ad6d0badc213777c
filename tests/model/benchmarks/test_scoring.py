"""Intervals that cover what they say, pairing that removes shared noise, and the ratio of sums."""

import numpy
import pytest

from model.benchmarks.scoring import (
    accuracy_intervals,
    calibration,
    category_intervals,
    paired_difference,
    score_interval,
    tokens_per_forward,
)


def test_the_score_is_the_mean_of_the_benchmarks_not_of_the_items():
    correct = {"small": [1, 1], "large": [0] * 98}
    assert score_interval(correct, resamples=50).value == 50.0
    assert {name: one.value for name, one in accuracy_intervals(correct, resamples=50).items()} == {
        "small": 100.0,
        "large": 0.0,
    }
    found = category_intervals(correct, {"small": "knowledge", "large": "coding"}, resamples=50)
    assert {name: one.value for name, one in found.items()} == {"coding": 0.0, "knowledge": 100.0}


def test_95_percent_intervals_cover_the_truth_about_95_times_in_100():
    rng = numpy.random.default_rng(0)
    truth = {"a": 0.3, "b": 0.6, "c": 0.8}
    hits = 0
    for trial in range(300):
        correct = {name: rng.random(60) < share for name, share in truth.items()}
        interval = score_interval(correct, resamples=300, seed=trial)
        hits += interval.low <= 100 * numpy.mean(list(truth.values())) <= interval.high
    assert 0.90 <= hits / 300 <= 0.985


def test_the_width_agrees_with_the_binomial_formula():
    correct = {"a": [1] * 30 + [0] * 70}
    interval = score_interval(correct, resamples=4000)
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * 100 * (0.3 * 0.7 / 100) ** 0.5, rel=0.1)


def test_pairing_finds_a_difference_that_unpaired_intervals_hide():
    rng = numpy.random.default_rng(1)
    base = rng.random(1000) < 0.5
    better = base | (rng.random(1000) < 0.05)
    paired = paired_difference({"a": better}, {"a": base}, resamples=1000)
    assert paired.low > 0 and paired.high - paired.low < 4
    alone = score_interval({"a": better}, resamples=1000), score_interval({"a": base}, resamples=1000)
    assert alone[0].low < alone[1].high
    assert paired.value == pytest.approx(alone[0].value - alone[1].value)


def test_differences_between_training_seeds_widen_the_interval():
    rng = numpy.random.default_rng(2)
    same = {"a": [rng.random(200) < 0.5 for _ in range(3)]}
    apart = {"a": [rng.random(200) < share for share in (0.2, 0.5, 0.8)]}
    narrow, wide = (score_interval(one, resamples=1000) for one in (same, apart))
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_the_same_seed_gives_the_same_interval_whatever_the_order_of_benchmarks():
    correct = {"b": [1, 0, 1, 1, 0] * 9, "a": [0, 0, 1, 0] * 11}
    again = dict(reversed(correct.items()))
    assert score_interval(correct, seed=3) == score_interval(again, seed=3) != score_interval(correct, seed=4)
    assert accuracy_intervals(correct, seed=3) == accuracy_intervals(again, seed=3)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="only one side has"):
        paired_difference({"a": [1]}, {"b": [1]})
    with pytest.raises(ValueError, match="on the other"):
        paired_difference({"a": [1, 0]}, {"a": [1]})
    with pytest.raises(ValueError, match="no items"):
        score_interval({"a": []})
    with pytest.raises(ValueError, match="no benchmark"):
        score_interval({})


def test_tokens_per_forward_is_a_ratio_of_sums():
    interval = tokens_per_forward([10, 90], [10, 10], resamples=500)
    assert interval.value == 5.0 and interval.low == 1.0 and interval.high == 9.0
    with pytest.raises(ValueError, match="one count each"):
        tokens_per_forward([1], [])


def test_calibration_measures_the_gap_between_confidence_and_accuracy():
    found = calibration([0.95] * 10 + [0.15] * 10, [1] * 9 + [0] + [0] * 10)
    assert found["expected_error"] == pytest.approx((0.05 + 0.15) / 2, abs=1e-4)
    assert [row["samples"] for row in found["bins"]] == [10, 10]
    assert calibration([1.0], [1])["bins"][0]["confidence"] == 1.0
