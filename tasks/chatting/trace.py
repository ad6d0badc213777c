"""A page on which a chat's answers appear again, token by token; everything it needs is inside."""

import os
from dataclasses import dataclass
from pathlib import Path

from model.atomic import write_atomically
from tasks.chatting.unmasking import Answer
from tasks.reporting.templates import template


@dataclass(frozen=True)
class Turn:
    """A question and every voice's answer."""

    question: str
    answers: list[Answer]


def check_target(path: Path) -> None:
    """ValueError where a trace cannot be written: better before the chat than after it."""
    if path.is_dir() or not path.parent.is_dir():
        problem = "is a folder" if path.is_dir() else f"has no folder {path.parent} to lie in"
        raise ValueError(f"--trace {path} {problem}; name a file, for example trace.html")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"--trace {path}: {path.parent} may not be written to")


def write_trace(path: Path, turns: list[Turn]) -> None:
    """The page of all turns so far, whole or not at all."""
    write_atomically(path, template("trace.html").render(turns=turns))
