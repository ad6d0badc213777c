"""How far new data lie from the data a model was trained on, per corpus, and which distances pass their limits.

Distances between distributions are Jensen-Shannon divergences in bits: 0 for equal ones, 1 for ones with nothing in common. A
corpus that the old data did not have is compared with all old corpora of its kind together.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tasks.promotion.settings import ALARMS, RetrainOptions

REST = "\0rest"


def measure_drift(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per corpus of the new profile: rows then and now, and the distances."""
    rows = []
    for title, corpus in new["corpora"].items():
        before = old["corpora"].get(title) or together(
            [each for each in old["corpora"].values() if each["kind"] == corpus["kind"]]
        )
        if before is None:
            rows.append({"corpus": title, "is_new": True, "rows": corpus["kept"], "rows_before": 0})
            continue
        rows.append(
            {
                "corpus": title,
                "is_new": title not in old["corpora"],
                "rows": corpus["kept"],
                "rows_before": before["kept"],
                "length": divergence(before["lengths"], corpus["lengths"]),
                "vocabulary": divergence(*same_words(before, corpus)),
                "script": divergence(before["scripts"], corpus["scripts"]),
                "duplicates": corpus["duplicate_fraction"] - before["duplicate_fraction"],
            }
        )
    return rows


def together(corpora: list[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Several corpora's counts as those of one; None for none."""
    if not corpora:
        return None
    summed = {
        name: dict(sum((Counter(each[name]) for each in corpora), Counter()))
        for name in ("lengths", "scripts", "words")
    }
    rows = max(sum(each["rows"] for each in corpora), 1)
    return summed | {
        "kept": sum(each["kept"] for each in corpora),
        "num_words": sum(each["num_words"] for each in corpora),
        "duplicate_fraction": sum(each["duplicate_fraction"] * each["rows"] for each in corpora) / rows,
    }


def same_words(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Both word counts over the words that were common in the old data; every other word is one and the same."""
    known = old["words"]

    def counts(one: Mapping[str, Any]) -> dict[str, float]:
        found = {word: one["words"].get(word, 0) for word in known}
        return found | {REST: one["num_words"] - sum(found.values())}

    return counts(old), counts(new)


def divergence(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Jensen-Shannon divergence of two tables of counts, in bits; 0 when either is empty."""
    totals = sum(first.values()), sum(second.values())
    if not all(totals):
        return 0.0
    bits = 0.0
    for key in first.keys() | second.keys():
        shares = first.get(key, 0) / totals[0], second.get(key, 0) / totals[1]
        middle = sum(shares) / 2
        bits += sum(share * math.log2(share / middle) / 2 for share in shares if share > 0)
    return min(max(bits, 0.0), 1.0)


def alarms(rows: list[dict[str, Any]], options: RetrainOptions) -> list[str]:
    """A sentence for every distance beyond its limit."""
    found = []
    for row in rows:
        for measure, knob in ALARMS.items():
            value, limit = row.get(measure), getattr(options, knob)
            if value is not None and not value <= limit:
                found.append(f"{row['corpus']}: {measure} {value:.4f} is above retrain.{knob} {limit:g}")
    return found
