"""Facts about rows: a small table that says what a shard of rows is like without holding their text, and running totals."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MEASURES: dict[str, tuple[str, ...]] = {
    "pretrain": (
        "characters",
        "words",
        "lines",
        "ascii_fraction",
        "replacement_characters",
        "distinct_line_fraction",
        "script",
    ),
    "instructions": (
        "characters",
        "words",
        "turns",
        "question_characters",
        "answer_characters",
        "ascii_fraction",
        "replacement_characters",
        "answer_repeats_question",
        "script",
    ),
    "preferences": (
        "characters",
        "words",
        "turns",
        "chosen_characters",
        "rejected_characters",
        "ascii_fraction",
        "replacement_characters",
        "script",
    ),
    "benchmarks": ("characters", "words", "fields", "ascii_fraction", "replacement_characters", "script"),
}
SCRIPT_SAMPLE_CHARACTERS = 500
_RANGES = (  # first and last code point, script; in order and without overlap
    (0x41, 0x5A, "latin"),
    (0x61, 0x7A, "latin"),
    (0xC0, 0x24F, "latin"),
    (0x370, 0x3FF, "greek"),
    (0x400, 0x52F, "cyrillic"),
    (0x590, 0x5FF, "hebrew"),
    (0x600, 0x6FF, "arabic"),
    (0x900, 0x97F, "devanagari"),
    (0xE00, 0xE7F, "thai"),
    (0x3040, 0x30FF, "kana"),
    (0x3400, 0x9FFF, "han"),
    (0xAC00, 0xD7AF, "hangul"),
    (0x20000, 0x3FFFF, "han"),
)
_EDGES = np.array([edge for first, last, _ in _RANGES for edge in (first, last + 1)], dtype=np.uint32)
SCRIPT_NAMES = (*dict.fromkeys(script for _, _, script in _RANGES), "other", "none")


def script_of(text: str) -> str:
    """The script most letters of the first 500 characters belong to; `none` without letters, `other` beyond our list."""
    sample = text[:SCRIPT_SAMPLE_CHARACTERS]
    if sample.isascii():
        return "latin" if re.search("[A-Za-z]", sample) else "none"
    counts = letters_by_script(sample)
    if counts:
        return max(sorted(counts), key=lambda name: counts[name])
    return "other" if any(character.isalpha() for character in sample) else "none"


def letters_by_script(text: str) -> Counter[str]:
    """How many characters fall into the ranges of each script."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    inside = np.bincount(np.searchsorted(_EDGES, points, side="right"), minlength=len(_EDGES) + 1)[1::2]
    counts: Counter[str] = Counter()
    for number, (_, _, script) in zip(inside.tolist(), _RANGES, strict=True):
        if number:
            counts[script] += number
    return counts


def words_in(text: str) -> int:
    """Runs of non-space characters, every Han character counted as one more: a tokenizer-free guess at length."""
    words = len(text.split())
    return words if text.isascii() else words + letters_by_script(text)["han"]


def measure(kind: str, row: dict[str, Any]) -> dict[str, Any]:
    """The measures of MEASURES[kind] of one canonical row."""
    if kind == "pretrain":
        text = row["text"]
        lines = [line for line in text.split("\n") if line.strip()]
        own = {"lines": len(lines), "distinct_line_fraction": len(set(lines)) / len(lines)}
    elif kind == "instructions":
        turns = [turn for turn in row["conversations"] if turn["role"] != "system"]
        text = "\n".join(turn["content"] for turn in row["conversations"])
        questions, answers = turns[::2], turns[1::2]
        own = {
            "turns": len(turns),
            "question_characters": max(len(turn["content"]) for turn in questions),
            "answer_characters": min(len(turn["content"]) for turn in answers),
            "answer_repeats_question": sum(
                q["content"] == a["content"] for q, a in zip(questions, answers, strict=True)
            ),
        }
    elif kind == "preferences":
        answers = {side: row[side][-1]["content"] for side in ("chosen", "rejected")}
        text = "\n".join([turn["content"] for turn in row["chosen"]] + [answers["rejected"]])
        own = {"turns": len(row["chosen"]), **{f"{side}_characters": len(answer) for side, answer in answers.items()}}
    else:
        text = "\n".join(value for value in row.values() if isinstance(value, str))
        own = {"fields": len(row)}
    length = max(len(text), 1)
    ascii_characters = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
    common = {
        "characters": len(text),
        "words": words_in(text),
        "ascii_fraction": ascii_characters / length,
        "replacement_characters": text.count("\ufffd"),
        "script": script_of(text),
    }
    return common | own


class FactTable:
    """Columns of facts about rows: `kept`, `duplicate` (0 or 1) and, for kept rows only, the measures."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.columns: dict[str, list[Any]] = {name: [] for name in ("kept", "duplicate", *MEASURES[kind])}

    def __len__(self) -> int:
        return len(self.columns["kept"])

    def add_kept(self, measures: dict[str, Any]) -> None:
        """One more row that goes on to training."""
        for name, column in self.columns.items():
            column.append(measures.get(name, 0))
        self.columns["kept"][-1] = 1

    def add_quarantined(self, reason: str) -> None:
        """One more row that does not; its measures are null."""
        for column in self.columns.values():
            column.append(None)
        self.columns["kept"][-1] = 0
        self.columns["duplicate"][-1] = int(reason == "duplicate")

    def take(self, num_rows: int) -> dict[str, list[Any]]:
        """The columns of the first `num_rows` rows, which leave the table."""
        taken = {name: column[:num_rows] for name, column in self.columns.items()}
        self.columns = {name: column[num_rows:] for name, column in self.columns.items()}
        return taken


@dataclass
class Totals:
    """Running counts of one corpus, in constant memory."""

    rows: int = 0
    kept: int = 0
    blank_lines: int = 0
    characters: int = 0
    words: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # reason -> "file:line (detail)" of the first such row
    scripts: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)  # b -> rows with 2^b <= characters < 2^(b+1)
    unreadable: dict[str, str] = field(default_factory=dict)  # file -> what is wrong with it

    def add_kept(self, measures: dict[str, Any]) -> None:
        """Count one kept row."""
        self.rows += 1
        self.kept += 1
        self.characters += measures["characters"]
        self.words += measures["words"]
        self.scripts[measures["script"]] += 1
        self.lengths[max(measures["characters"], 1).bit_length() - 1] += 1

    def add_quarantined(self, reason: str, place: str, detail: str) -> None:
        """Count one refused row, and remember where the first of its reason stood."""
        self.rows += 1
        self.quarantined[reason] += 1
        self.examples.setdefault(reason, f"{place} ({detail})" if detail else place)

    @property
    def duplicate_fraction(self) -> float:
        """Duplicates per row read."""
        return self.quarantined["duplicate"] / max(self.rows, 1)

    @property
    def bad_fraction(self) -> float:
        """Rows refused for any reason but being a duplicate, per row read."""
        return (self.quarantined.total() - self.quarantined["duplicate"]) / max(self.rows, 1)

    def described(self) -> dict[str, Any]:
        """The counts as summary.json holds them."""
        return {
            "rows": self.rows,
            "kept": self.kept,
            "blank_lines": self.blank_lines,
            "characters": self.characters,
            "words": self.words,
            "quarantined": dict(sorted(self.quarantined.items())),
            "examples": dict(sorted(self.examples.items())),
            "scripts": dict(sorted(self.scripts.items())),
            "lengths": {str(power): self.lengths[power] for power in sorted(self.lengths)},
            "unreadable": dict(sorted(self.unreadable.items())),
        }
