"""Whether a challenger may take the champion's place: a pure function of what was measured. Each rule alone can refuse."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model.benchmarks.scoring import paired_difference
from model.benchmarks.settings import ONE_TOKEN
from tasks.promotion.settings import RetrainOptions


@dataclass(frozen=True)
class Point:
    """One operating point of one model: benchmark -> right (0 to 1) per question, and which questions they were."""

    right: Mapping[str, Sequence[float]]
    questions: tuple[str, ...]
    tokens_per_forward: float | None = None  # None where answers are chosen, not written


@dataclass(frozen=True)
class Facts:
    """What else is known of a challenger. Fractions by corpus; a license that nobody named is None."""

    refused: Mapping[str, float] = field(default_factory=dict)
    licenses: Mapping[str, str | None] = field(default_factory=dict)
    validation_passed: bool = True
    speculation: Sequence[str] = ()  # where speculative output differs from plain output
    not_finite: Sequence[str] = ()  # weights and measurements that are NaN or infinite
    unknown: Sequence[str] = ()  # what should be on record and is not


@dataclass(frozen=True)
class Decision:
    """`reasons` is empty exactly when the challenger may be promoted; each begins with the name of its rule."""

    reasons: tuple[str, ...]
    numbers: dict[str, Any]

    @property
    def is_promoted(self) -> bool:
        return not self.reasons


def decide(
    champion: Mapping[str, Point],
    challenger: Mapping[str, Point],
    facts: Facts,
    options: RetrainOptions,
    seed: int = 0,
    resamples: int = 10_000,
) -> Decision:
    """Judges measurements of both at the same operating points; numbers are percent, points and tokens per forward."""
    reasons: list[str] = []
    numbers: dict[str, Any] = {}
    if facts.not_finite:
        champion = challenger = {}  # nothing can be measured, and what was is worth nothing
    elif unpaired := _unpaired(champion, challenger):
        reasons.append(f"samples: {unpaired}; the two cannot be compared")
    else:
        for name in champion:
            numbers[name] = _compare(champion[name], challenger[name], options, seed, resamples)
            reasons += _worse(name, numbers[name], options)
    reasons += [f"speculation: {problem}" for problem in facts.speculation]
    if not facts.validation_passed:
        reasons.append("validation: the data it was trained on did not pass")
    reasons += [f"finite: {what} is not a finite number" for what in facts.not_finite]
    limit = options.maximum_refused_fraction
    reasons += [
        f"refused_rows: {value:.2%} of {corpus} were refused, more than retrain.maximum_refused_fraction {limit:.2%}"
        for corpus, value in facts.refused.items()
        if not value <= limit
    ]
    if options.require_license:
        reasons += [
            f"license: nobody said under which license {corpus} is; name it as `license` of that corpus in `download`"
            for corpus, license_name in facts.licenses.items()
            if not license_name
        ]
    reasons += [f"record: {what}" for what in facts.unknown]
    return Decision(tuple(reasons), numbers)


def _unpaired(champion: Mapping[str, Point], challenger: Mapping[str, Point]) -> str:
    """Why the two were not asked the same; empty when they were."""
    if not champion or list(champion) != list(challenger):
        return f"operating points {list(champion)} against {list(challenger)}"
    for name, point in champion.items():
        other = challenger[name]
        shapes = [{key: len(values) for key, values in one.right.items()} for one in (point, other)]
        if point.questions != other.questions or shapes[0] != shapes[1]:
            return f"different questions at {name}"
    return ""


def _compare(
    champion: Point, challenger: Point, options: RetrainOptions, seed: int, resamples: int
) -> dict[str, float | None]:
    two_sided = 2 * options.confidence - 1
    difference = paired_difference(challenger.right, champion.right, resamples, two_sided, seed)
    return {
        "champion_score": score(champion),
        "challenger_score": score(challenger),
        "difference": difference.value,
        "at_least": difference.low,
        "champion_tpf": champion.tokens_per_forward,
        "challenger_tpf": challenger.tokens_per_forward,
    }


def score(point: Point) -> float:
    """Mean over benchmarks of the percentage right."""
    return sum(100 * sum(values) / len(values) for values in point.right.values()) / len(point.right)


def _worse(name: str, row: Mapping[str, Any], options: RetrainOptions) -> list[str]:
    reasons = []
    if not row["at_least"] >= -options.score_margin:  # so that NaN refuses, too
        reasons.append(
            f"score: at {name} {row['challenger_score']:.2f} against {row['champion_score']:.2f}; with "
            f"{options.confidence:.0%} confidence it is only known to be no more than {-row['at_least']:.2f} points worse, "
            f"and retrain.score_margin is {options.score_margin:g}"
        )
    before, after = row["champion_tpf"], row["challenger_tpf"]
    if name != ONE_TOKEN and before is not None:  # one token per forward only counts where answers happen to end
        least = before * (1 - options.tpf_tolerance)
        if after is None or not (math.isfinite(after) and after >= least):
            reasons.append(
                f"tpf: at {name} {after if after is None else round(after, 3)} tokens per forward against {before:.3f}; "
                f"with retrain.tpf_tolerance {options.tpf_tolerance:g} it needs {least:.3f}"
            )
    return reasons
