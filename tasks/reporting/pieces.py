"""Answers as the pieces of text that their tokens stand for, each with the forward that revealed it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END, HIDDEN = "■", "░"
# How a token came to stand where it stands: revealed by a forward of the target, guessed and confirmed by it, guessed wrongly
# (the target's own token stands), or written over another one.
PLAIN, ACCEPTED, REFUSED, EDITED = "plain", "accepted", "refused", "edited"
MOST_TOKENS_PER_CHARACTER = 4  # bytes of a character in UTF-8
Texts = Callable[[tuple[int, ...]], tuple[str, bool]]


@dataclass(frozen=True)
class Mark:
    """What is known of one token of an answer: hidden (token None) or shown, and how it came there (PLAIN, ACCEPTED, ...).

    `before` are its earlier readings (forward, token) where it was edited.
    """

    token: int | None = None
    revealed_at: int = 0
    confidence: float = 0.0
    how: str = PLAIN
    before: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Piece:
    """Text that one token, or several that make one character, stands for; HIDDEN where nothing is revealed yet.

    `earlier` holds (forward, text) of what stood here before an edit.
    """

    text: str
    revealed_at: int
    confidence: float
    is_end: bool = False
    how: str = PLAIN
    earlier: tuple[tuple[int, str], ...] = ()


def marks_of(record: Mapping[str, Any]) -> list[Mark]:
    """The tokens of a finished answer that a sample of `evaluate` records."""
    columns = (record["tokens"], record["revealed_at"], record["confidence"])
    return [Mark(*values) for values in zip(*columns, strict=True)]


def cut(marks: Sequence[Mark], texts: Texts) -> list[Piece]:
    """Pieces of an answer in order; bytes of one character that several tokens share stay together, counted by the last of
    them to appear."""
    pieces: list[Piece] = []
    start = 0
    for index, mark in enumerate(marks):
        if mark.token is None:
            pieces += [_piece(marks[place : place + 1], texts) for place in range(start, index + 1)]
            start = index + 1
            continue
        text, _ = texts(tuple(one.token for one in marks[start : index + 1] if one.token is not None))
        may_grow = index - start < MOST_TOKENS_PER_CHARACTER - 1 and index < len(marks) - 1
        if not (text.endswith("\ufffd") and may_grow):
            pieces.append(_piece(marks[start : index + 1], texts))
            start = index + 1
    return pieces


def _piece(marks: Sequence[Mark], texts: Texts) -> Piece:
    last = max(marks, key=lambda mark: mark.revealed_at)
    if any(mark.token is None for mark in marks):
        return Piece(HIDDEN, 0, 0.0)
    text, is_end = texts(tuple(mark.token for mark in marks if mark.token is not None))
    earlier = tuple((forward, texts((token,))[0]) for forward, token in last.before)
    return Piece(text, last.revealed_at, last.confidence, is_end, last.how, earlier)


def text_of_tokens(tokenizer: "Tokenizer") -> Texts:
    """A function from a tuple of ids to (text, whether it is a special token such as the end of the answer)."""

    @cache
    def texts(ids: tuple[int, ...]) -> tuple[str, bool]:
        text = tokenizer.decode(list(ids), skip_special_tokens=True)
        if text:
            return text, False
        return tokenizer.decode(list(ids), skip_special_tokens=False) or END, True

    return texts
