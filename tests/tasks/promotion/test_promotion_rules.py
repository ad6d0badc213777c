"""The gate: what passes, that each rule alone refuses, and where exactly the margins lie."""

import math
import random
from dataclasses import replace

import pytest

from model.benchmarks.settings import ONE_TOKEN
from tasks.promotion.rules import Decision, Facts, Point, decide
from tasks.promotion.settings import RetrainOptions

OPTIONS = RetrainOptions(score_margin=5.0, tpf_tolerance=0.1)
PARALLEL = "threshold=0.90"
SOUND = Facts(refused={"pretrain/world": 0.01}, licenses={"pretrain/world": "Apache-2.0"})


def model(right: list[float], tpf: float = 2.0) -> dict[str, Point]:
    """The same answers at both points; the two benchmarks share them out."""
    asked = tuple(map(str, range(len(right))))
    halves = {"people": right[::2], "sums": right[1::2]}
    return {ONE_TOKEN: Point(halves, asked, 0.9), PARALLEL: Point(halves, asked, tpf)}


def answers(seed: int, num_right: int, num_items: int = 200) -> list[float]:
    right = [1.0] * num_right + [0.0] * (num_items - num_right)
    random.Random(seed).shuffle(right)
    return right


def judged(champion: dict, challenger: dict, facts: Facts = SOUND, options: RetrainOptions = OPTIONS) -> Decision:
    return decide(champion, challenger, facts, options, seed=0, resamples=2000)


def rules_of(decision: Decision) -> set[str]:
    return {reason.partition(":")[0] for reason in decision.reasons}


def test_an_equal_model_and_a_better_one_are_promoted():
    champion = model(answers(1, 80))
    assert judged(champion, champion).is_promoted
    better = [max(a, b) for a, b in zip(answers(1, 80), answers(2, 80), strict=True)]
    decision = judged(champion, model(better, tpf=3.0))
    assert decision.is_promoted
    assert decision.numbers[PARALLEL]["difference"] > 5
    assert decision.numbers[PARALLEL]["champion_score"] == pytest.approx(40)


def with_point(points: dict[str, Point], name: str, **changes: object) -> dict[str, Point]:
    return points | {name: replace(points[name], **changes)}


BASE = model(answers(1, 80))
WORSE = model([0.0 if index < 40 else value for index, value in enumerate(answers(1, 80))])
ALONE = {
    "score": (WORSE, SOUND),
    "score at one point only": (BASE | {ONE_TOKEN: WORSE[ONE_TOKEN]}, SOUND),
    "score NaN": (with_point(BASE, PARALLEL, right={n: [math.nan] * 100 for n in ("people", "sums")}), SOUND),
    "tpf": (model(answers(1, 80), tpf=1.7), SOUND),
    "tpf NaN": (model(answers(1, 80), tpf=math.nan), SOUND),
    "tpf gone": (with_point(BASE, PARALLEL, tokens_per_forward=None), SOUND),
    "samples": (with_point(BASE, ONE_TOKEN, questions=("other",) * 200), SOUND),
    "samples fewer": (model(answers(1, 80)[:100]), SOUND),
    "samples points": ({ONE_TOKEN: BASE[ONE_TOKEN]}, SOUND),
    "speculation": (BASE, replace(SOUND, speculation=["2 of 24 answers changed"])),
    "validation": (BASE, replace(SOUND, validation_passed=False)),
    "finite": (BASE, replace(SOUND, not_finite=["head.weight"])),
    "refused_rows": (BASE, replace(SOUND, refused={"a": 0.0, "b": 0.0101})),
    "refused_rows NaN": (BASE, replace(SOUND, refused={"a": math.nan})),
    "license": (BASE, replace(SOUND, licenses={"a": "MIT", "b": None})),
    "license empty": (BASE, replace(SOUND, licenses={"a": ""})),
    "record": (BASE, replace(SOUND, unknown=["no data profile"])),
}


@pytest.mark.parametrize("case", ALONE)
def test_each_rule_alone_refuses_and_says_which_it_is(case):
    challenger, facts = ALONE[case]
    decision = judged(BASE, challenger, facts)
    assert not decision.is_promoted
    assert rules_of(decision) == {case.split(" ")[0]}


def test_margins_are_closed_on_the_side_of_the_challenger():
    champion = model([1.0] * 200)
    for wrong, margin, promoted in [(0, 0.0, True), (1, 0.0, False)]:  # without margin one lost answer is too much
        challenger = model([0.0] * wrong + [1.0] * (200 - wrong))
        assert judged(champion, challenger, options=replace(OPTIONS, score_margin=margin)).is_promoted == promoted
    lost = judged(champion, model([0.0] * 20 + [1.0] * 180)).numbers[PARALLEL]["at_least"]
    for margin, promoted in [(-lost, True), (-lost - 1e-9, False)]:
        challenger = model([0.0] * 20 + [1.0] * 180)
        assert judged(champion, challenger, options=replace(OPTIONS, score_margin=margin)).is_promoted == promoted
    for tpf, promoted in [(1.8, True), (math.nextafter(1.8, 0), False)]:
        assert judged(BASE, model(answers(1, 80), tpf=tpf)).is_promoted == promoted
    for refused, promoted in [(0.01, True), (math.nextafter(0.01, 1), False)]:
        assert judged(BASE, BASE, replace(SOUND, refused={"a": refused})).is_promoted == promoted


def test_more_wrong_answers_never_help_and_a_wider_margin_never_hurts():
    rng = random.Random(3)
    for _ in range(40):
        champion = answers(rng.randrange(99), rng.randrange(20, 180))
        challenger = answers(rng.randrange(99), rng.randrange(20, 180))
        worse = [value if rng.random() < 0.8 else 0.0 for value in challenger]
        margin = replace(OPTIONS, score_margin=rng.uniform(0, 20))
        wider = replace(margin, score_margin=margin.score_margin + rng.uniform(0, 20))
        pair = model(champion), model(challenger)
        promoted = judged(*pair, options=margin).is_promoted
        assert promoted <= judged(*pair, options=wider).is_promoted
        assert judged(pair[0], model(worse), options=margin).is_promoted <= promoted


def test_pairing_makes_the_same_answers_count_for_more_than_the_same_score():
    """Equal scores on different questions leave doubt; equal answers leave none."""
    options = replace(OPTIONS, score_margin=1.0)
    champion = answers(1, 100)
    assert judged(model(champion), model(champion), options=options).is_promoted
    assert rules_of(judged(model(champion), model(answers(2, 100)), options=options)) == {"score"}


def test_a_license_is_asked_for_only_where_the_settings_say_so():
    nobody = replace(SOUND, licenses={"a": None})
    assert judged(BASE, BASE, nobody, replace(OPTIONS, require_license=False)).is_promoted


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"models": ["unmask-draft"]}, "unmask-draft"),
        ({"models": []}, "models is empty"),
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"score_margin": -1.0}, "score_margin is -1.0"),
        ({"tpf_tolerance": 1.5}, "tpf_tolerance is 1.5"),
        ({"score_margins": 1.0}, "Did you mean 'score_margin'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(section, said):
    with pytest.raises(ValueError, match=said):
        RetrainOptions.from_section(section)
