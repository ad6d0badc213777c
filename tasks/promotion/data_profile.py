"""What training data are like, small enough to keep beside a model: lengths, words, scripts, repeats, origin, held-out rows.

Lengths, scripts and refused rows are those that the stage validate counted in every row; words are counted, and held-out rows
taken, in rows at even distances in the file, so that a corpus of any size costs the same.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.corpora.manifest import identity_of, read_manifest
from model.text.encoding import is_validation

FILE = "data_profile.json"
SAMPLED_ROWS, KEPT_WORDS, HELD_OUT_ROWS = 20_000, 4_000, 48
KINDS = ("pretrain", "instructions")
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+|\d+")
DIGITS = re.compile(r"\d+")


def profile_of(root: Path, validation_fraction: float) -> dict[str, Any]:
    """The profile of data/raw and data/validated; ValueError before validate has run."""
    summary_file = root / "data/validated/summary.json"
    if not summary_file.is_file():
        raise ValueError("data/validated/summary.json is missing: run the stage validate first")
    summary = json.loads(summary_file.read_text(encoding="utf-8"))
    origins = {f"{entry['kind']}/{entry['name']}": entry for entry in read_manifest(root / "data/raw")["corpora"]}
    corpora = {
        f"{counts['kind']}/{counts['name']}": _corpus(root, counts, origins, validation_fraction)
        for counts in summary["corpora"].values()
        if counts["kind"] in KINDS
    }
    return {"format": 1, "passed": bool(summary["passed"]), "corpora": corpora}


def _corpus(root: Path, counts: dict[str, Any], origins: dict[str, Any], validation_fraction: float) -> dict[str, Any]:
    kind, title = counts["kind"], f"{counts['kind']}/{counts['name']}"
    origin = origins.get(title, {})
    duplicates = counts["quarantined"].get("duplicate", 0)
    words, num_words, held_out = Counter(), 0, []
    for row in sampled_rows(root / "data/validated" / f"{title}.jsonl", SAMPLED_ROWS):
        found = words_of(text_of(row))
        words.update(found)
        num_words += len(found)
        if len(held_out) < HELD_OUT_ROWS and is_validation(row, validation_fraction):
            held_out.append(row)
    return {
        "kind": kind,
        "source": counts["source"],
        "license": (origin.get("options") or {}).get("license"),
        "identity": identity_of(origin.get("sources", [])),
        "rows": counts["rows"],
        "kept": counts["kept"],
        "refused_fraction": (sum(counts["quarantined"].values()) - duplicates) / max(counts["rows"], 1),
        "duplicate_fraction": duplicates / max(counts["rows"], 1),
        "lengths": counts["lengths"],
        "scripts": counts["scripts"],
        "words": dict(words.most_common(KEPT_WORDS)),
        "num_words": num_words,
        "held_out": held_out,
    }


def sampled_rows(file: Path, count: int) -> Iterator[dict[str, Any]]:
    """At most `count` rows of a jsonl file: the first that begins at or after each of `count` evenly spaced bytes."""
    if not file.is_file():
        return
    size, last = file.stat().st_size, -1
    with file.open("rb") as stream:
        for number in range(count):
            target = size * number // count
            if target <= last:
                continue
            stream.seek(max(target - 1, 0))
            if target:
                stream.readline()  # to the end of the line that holds the byte before
            begin = stream.tell()
            if begin <= last:
                continue
            if line := stream.readline():
                last = begin
                yield json.loads(line)


def text_of(row: dict[str, Any]) -> str:
    """All text of a validated row."""
    return row["text"] if "text" in row else "\n".join(turn["content"] for turn in row["conversations"])


def words_of(text: str) -> list[str]:
    """Lower-case words, every Han and kana character one of its own, every number `0`."""
    return [DIGITS.sub("0", word) for word in WORD.findall(text.lower())]
