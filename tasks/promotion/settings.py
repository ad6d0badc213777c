"""Section `retrain` of params.yaml: what a challenger must fulfil, and how far data may drift before somebody is told."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.corpora.options import read_options

SECTION = "retrain"
TARGETS = ("unmask-target", "unmask-target-cap")  # registered names that have a champion of their own


@dataclass(frozen=True)
class RetrainOptions:
    """Fractions lie between 0 and 1; `alarm_*` are distances, 0 for equal data (tasks/promotion/drift_measures.py)."""

    models: tuple[str, ...] = TARGETS  # judged one by one
    score_margin: float = 5.0  # points that the challenger's score may lie below the champion's
    confidence: float = 0.95  # with which it does not lie further below (one-sided)
    tpf_tolerance: float = 0.02  # fraction of the champion's tokens per forward that may be lost
    maximum_refused_fraction: float = 0.01  # of the rows of any corpus it was trained on, duplicates aside
    require_license: bool = True  # of every corpus it was trained on
    alarm_length: float = 0.1
    alarm_vocabulary: float = 0.1
    alarm_script: float = 0.05
    alarm_duplicates: float = 0.05
    alarm_bits_per_byte: float = 0.1

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> "RetrainOptions":
        """The options of a params section; ValueError that names the key, its value and the rule."""
        options = read_options(cls, {k: v for k, v in section.items() if k != "threads"}, SECTION)
        if unknown := sorted(set(options.models) - set(TARGETS)):
            raise ValueError(f"{SECTION}.models names {unknown[0]!r}; it may name {', '.join(TARGETS)}")
        if not options.models:
            raise ValueError(f"{SECTION}.models is empty; name at least one of {', '.join(TARGETS)}")
        if not 0.5 <= options.confidence < 1:
            raise ValueError(f"{SECTION}.confidence is {options.confidence}; it must be at least 0.5 and below 1")
        for name in ("score_margin", "tpf_tolerance", "maximum_refused_fraction", *ALARMS.values()):
            value = getattr(options, name)
            if not value >= 0 or (value > 1 and name in ("tpf_tolerance", "maximum_refused_fraction")):
                raise ValueError(f"{SECTION}.{name} is {value}; it must not be negative, and a fraction is at most 1")
        return options


ALARMS = {  # measured distance -> its limit
    measure: f"alarm_{measure}" for measure in ("length", "vocabulary", "script", "duplicates", "bits_per_byte")
}


def check_choice(model: str | None, version: str | None, force: str | None) -> None:
    """ValueError where a version, or a reason not to judge, comes without the model that it is about."""
    if (version or force) and not model:
        raise ValueError("--version and --force are about one model: name it with --model (make promote MODEL=...)")
