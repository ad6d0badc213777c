"""Sample answers: the same questions answered by several models, each piece of text with the forward that revealed it."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tasks.reporting.comparison import main_point, parallel_point
from tasks.reporting.inputs import BASELINE, REFERENCE, TITLES, TUNED, Inputs, Record

# Which of (AR, SFT, CAP) are right: what a reader wants to see of each, in this order.
PATTERNS = ((1, 1, 1), (1, 1, 0), (1, 0, 0), (0, 1, 1), (1, 0, 1), (0, 0, 0))
NUM_QUESTIONS = 6
END = "■"


@dataclass(frozen=True)
class Piece:
    """Text that one token, or several that make one character, stands for."""

    text: str
    revealed_at: int
    confidence: float
    is_end: bool


@dataclass(frozen=True)
class Answer:
    """One model's answer to one question."""

    title: str
    point: str
    right: bool
    tokens: int
    forwards: int
    pieces: list[Piece]


@dataclass(frozen=True)
class Question:
    benchmark: str
    category: str
    text: str
    answers: list[Answer]


def sample_answers(inputs: Inputs) -> list[Question]:
    """Up to NUM_QUESTIONS questions with the answers of AR, SFT and CAP, right and wrong ones from different categories."""
    shown = [(BASELINE, main_point(inputs, BASELINE))]
    shown += [(name, parallel_point(inputs.evaluations[name])) for name in (REFERENCE, TUNED)]
    sides = [
        {(one["benchmark"], one["id"]): one for one in inputs.records[name].get(point or "", []) if "tokens" in one}
        for name, point in shown
    ]
    texts = text_of_tokens(inputs.tokenizer)
    questions = []
    for key in choose(sides):
        first = sides[0][key]
        answers = [
            make_answer(TITLES[name], point, side[key], texts) for (name, point), side in zip(shown, sides, strict=True)
        ]
        questions.append(Question(first["benchmark"], first["category"], first["question"], answers))
    return questions


def choose(sides: list[dict[tuple[str, str], Record]]) -> list[tuple[str, str]]:
    """Keys of the questions to show: one per pattern of right and wrong, from benchmarks not shown yet where possible."""
    keys = sorted(set.intersection(*map(set, sides)))
    chosen: list[tuple[str, str]] = []
    for wanted in (*PATTERNS, *[None] * NUM_QUESTIONS):
        left = [key for key in keys if key not in chosen]
        if wanted:
            left = [key for key in left if tuple(int(side[key]["right"]) for side in sides) == wanted]
        used = [(sides[0][key]["category"], key[0]) for key in chosen]

        def familiarity(key: tuple[str, str], used: list[tuple[str, str]] = used) -> tuple[int, int]:
            category = sides[0][key]["category"]
            return sum(one == category for one, _ in used), sum(one == key[0] for _, one in used)

        if left and len(chosen) < NUM_QUESTIONS:
            chosen.append(min(left, key=lambda key: (*familiarity(key), key)))
    return chosen


def make_answer(title: str, point: str, record: Record, texts: Any) -> Answer:
    """An answer cut into the pieces its tokens stand for."""
    tokens = record["tokens"]
    return Answer(title, point, bool(record["right"]), len(tokens), record["forwards"], cut(record, texts))


def cut(record: Record, texts: Any) -> list[Piece]:
    """Pieces of an answer in order; bytes of one character that several tokens share stay together, counted by the last of
    them to appear."""
    pieces: list[Piece] = []
    start = 0
    tokens, revealed, confidence = record["tokens"], record["revealed_at"], record["confidence"]
    for index in range(len(tokens)):
        text, is_end = texts(tuple(tokens[start : index + 1]))
        is_last = index == len(tokens) - 1
        if text.endswith("\ufffd") and index - start < 3 and not is_last:
            continue  # half a character so far; no character has more than four bytes
        last = max(range(start, index + 1), key=lambda place: revealed[place])
        pieces.append(Piece(text, revealed[last], confidence[last], is_end))
        start = index + 1
    return pieces


def text_of_tokens(tokenizer_file: Path) -> Any:
    """A function from a tuple of ids to (text, whether it is a special token such as the end of the answer)."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))

    @cache
    def texts(ids: tuple[int, ...]) -> tuple[str, bool]:
        text = tokenizer.decode(list(ids), skip_special_tokens=True)
        if text:
            return text, False
        return tokenizer.decode(list(ids), skip_special_tokens=False) or END, True

    return texts
