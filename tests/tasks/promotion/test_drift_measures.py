"""What data are like, and how far they drifted: distances that can be checked by hand, and alarms exactly beyond their limits."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from model.corpora.manifest import write_manifest
from tasks.promotion.data_profile import profile_of, sampled_rows, words_of
from tasks.promotion.drift_measures import alarms, divergence, measure_drift
from tasks.promotion.settings import RetrainOptions


def counts_of(rng: random.Random) -> dict[str, int]:
    return {name: rng.randrange(50) for name in "abcdef" if rng.random() < 0.7} | {"a": 1}


def test_divergence_is_nought_for_equal_shares_one_for_strangers_and_symmetric():
    assert divergence({"a": 2, "b": 6}, {"a": 1, "b": 3}) == 0
    assert divergence({"a": 5}, {"b": 1}) == pytest.approx(1)
    by_hand = 0.5 * math.log2(1 / 0.75) + 0.5 * (0.5 * math.log2(0.5 / 0.75) + 0.5 * math.log2(0.5 / 0.25))
    assert divergence({"a": 1}, {"a": 1, "b": 1}) == pytest.approx(by_hand)
    rng = random.Random(0)
    for _ in range(100):
        one, two = counts_of(rng), counts_of(rng)
        assert divergence(one, two) == pytest.approx(divergence(two, one))
        assert 0 <= divergence(one, two) <= 1
    assert divergence({}, {"a": 1}) == 0


def test_words_are_lower_case_numbers_are_one_word_and_every_han_character_is_its_own():
    assert words_of("The 12 boats, 3 BOATS!") == ["the", "0", "boats", "0", "boats"]
    assert words_of("她有3条船") == ["她", "有", "0", "条", "船"]


@pytest.mark.parametrize("num_rows", [1, 7, 500])
def test_sampled_rows_are_whole_in_order_and_never_twice(tmp_path: Path, num_rows: int):
    rng = random.Random(num_rows)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": "ü" * rng.randrange(200), "n": n}) + "\n" for n in range(num_rows)))
    for count in (1, 5, 50, 10_000_000 // num_rows):
        numbers = [row["n"] for row in sampled_rows(file, min(count, 50_000))]
        assert numbers == sorted(set(numbers))
        assert len(numbers) <= count
        assert numbers[0] == 0
    assert len(numbers) == num_rows or num_rows == 500
    assert list(sampled_rows(tmp_path / "absent.jsonl", 5)) == []


def write_data(root: Path, corpora: dict[str, list[str]], license_name: str | None = "MIT", **counts: Any) -> None:
    summary = {}
    for name, texts in corpora.items():
        file = root / f"data/validated/pretrain/{name}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        lengths: dict[str, int] = {}
        for text in texts:
            key = str(len(text).bit_length() - 1)
            lengths[key] = lengths.get(key, 0) + 1
        facts = {"rows": len(texts), "kept": len(texts), "quarantined": {}, "scripts": {"latin": len(texts)}} | counts
        summary[f"pretrain/{name}"] = {
            "kind": "pretrain", "name": name, "source": "files", "lengths": lengths, **facts
        }  # fmt: skip
    (root / "data/validated/summary.json").write_text(json.dumps({"passed": True, "corpora": summary}))
    options = {"license": license_name} if license_name else {}
    write_manifest(
        root / "data/raw",
        [{"kind": "pretrain", "name": name, "options": options, "sources": [{"name": name}]} for name in corpora],
    )


def texts_about(words: str, seed: int, count: int = 400) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choice(words.split()) for _ in range(12)) for _ in range(count)]


BOATS, BREAD = "red boat river lamp harbour sail mast", "rye loaf flour oven kneaded salt bake"


def test_a_profile_says_where_text_comes_from_and_what_was_refused(tmp_path: Path):
    write_data(tmp_path, {"books": texts_about(BOATS, 0)}, rows=500, quarantined={"duplicate": 50, "too_long": 5})
    corpus = profile_of(tmp_path, 0.1)["corpora"]["pretrain/books"]
    assert (corpus["license"], corpus["refused_fraction"], corpus["duplicate_fraction"]) == ("MIT", 0.01, 0.1)
    assert set(corpus["words"]) == set(BOATS.split())
    assert 0 < len(corpus["held_out"]) <= 48
    write_data(tmp_path, {"books": ["x"]}, license_name=None)
    assert profile_of(tmp_path, 0.1)["corpora"]["pretrain/books"]["license"] is None


def drift_between(tmp_path: Path, old: dict[str, list[str]], new: dict[str, list[str]], **counts: Any) -> list[dict]:
    write_data(tmp_path / "old", old)
    write_data(tmp_path / "new", new, **counts)
    return measure_drift(profile_of(tmp_path / "old", 0.1), profile_of(tmp_path / "new", 0.1))


def test_more_of_the_same_raises_no_alarm_and_each_change_raises_its_own(tmp_path: Path):
    options = RetrainOptions()
    old = {"books": texts_about(BOATS, 0)}
    same = drift_between(tmp_path, old, {"books": old["books"] + texts_about(BOATS, 1)})
    assert alarms(same, options) == []

    def alarmed(new: list[str], **counts: Any) -> set[str]:
        found = alarms(drift_between(tmp_path, old, {"books": new}, **counts), options)
        return {sentence.partition(": ")[2].split(" ")[0] for sentence in found}

    assert alarmed(texts_about(BREAD, 1)) == {"vocabulary"}
    assert alarmed([text * 4 for text in texts_about(BOATS, 1)]) == {"length"}
    assert alarmed(texts_about(BOATS, 1), scripts={"cyrillic": 400}) == {"script"}
    assert alarmed(texts_about(BOATS, 1), rows=500, quarantined={"duplicate": 100}) == {"duplicates"}


def test_a_new_corpus_is_compared_with_all_old_ones_of_its_kind(tmp_path: Path):
    old = {"boats": texts_about(BOATS, 0), "bread": texts_about(BREAD, 0)}
    rows = drift_between(tmp_path, old, {"both": texts_about(f"{BOATS} {BREAD}", 1, 800)})
    assert rows[0]["is_new"] and rows[0]["rows_before"] == 800
    assert alarms(rows, RetrainOptions()) == []


def test_a_limit_is_reached_before_it_is_passed():
    row = {"corpus": "a", "bits_per_byte": 0.1}
    assert alarms([row], RetrainOptions()) == []
    assert alarms([row | {"bits_per_byte": math.nextafter(0.1, 1)}], RetrainOptions()) != []
    assert alarms([row | {"bits_per_byte": math.nan}], RetrainOptions()) != []
