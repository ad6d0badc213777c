"""Sample answers: the same questions answered by several models, each piece of text with the forward that revealed it."""

from dataclasses import dataclass

from tasks.reporting.comparison import main_point, parallel_point
from tasks.reporting.inputs import BASELINE, REFERENCE, TITLES, TUNED, Inputs, Record
from tasks.reporting.pieces import Piece, Texts, cut, marks_of, text_of_tokens

# Which of (AR, SFT, CAP) are right: what a reader wants to see of each, in this order.
PATTERNS = ((1, 1, 1), (1, 1, 0), (1, 0, 0), (0, 1, 1), (1, 0, 1), (0, 0, 0))
NUM_QUESTIONS = 6


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
    from tokenizers import Tokenizer

    shown = [(BASELINE, main_point(inputs, BASELINE))]
    shown += [(name, parallel_point(inputs.evaluations[name])) for name in (REFERENCE, TUNED)]
    sides = [
        {(one["benchmark"], one["id"]): one for one in inputs.records[name].get(point or "", []) if "tokens" in one}
        for name, point in shown
    ]
    texts = text_of_tokens(Tokenizer.from_file(str(inputs.tokenizer)))
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


def make_answer(title: str, point: str, record: Record, texts: Texts) -> Answer:
    """An answer cut into the pieces its tokens stand for."""
    pieces = cut(marks_of(record), texts)
    return Answer(title, point, bool(record["right"]), len(record["tokens"]), record["forwards"], pieces)
