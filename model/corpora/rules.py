"""Which rows are fit to train on: each rule has a short code, and a row that breaks one is refused with that code.

Kept rows come out canonical: {"text": str}, {"conversations": [{"role", "content"}, ...]}, or a benchmark's row as it is.
"""

import hashlib
import re
import sqlite3
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from model.corpora.options import RowOptions

REASONS = {
    "unparsable": "the line is not JSON (a truncated last line among them)",
    "invalid_utf8": "bytes that are not UTF-8, or half of a surrogate pair",
    "line_too_long": "the line is longer than maximum_line_bytes",
    "not_an_object": "the row is JSON but not an object with fields",
    "missing_field": "the field that holds the text or the turns is absent",
    "not_text": "what should be text is a number, a list, null ...",
    "empty": "no character but white space",
    "too_long": "more characters than maximum_characters",
    "control_characters": "characters of the classes C0 and C1 other than tab, newline, return and form feed",
    "duplicate": "the same content as an earlier row of its kind",
    "not_turns": "the conversation is not a list of objects with a role and a content",
    "wrong_role": "a role that is neither user, assistant nor system (the first turn only)",
    "first_turn_not_user": "the first turn, after a system turn, is the assistant's",
    "roles_do_not_alternate": "two turns of the same role follow one another",
    "no_assistant_turn": "nobody answers",
    "last_turn_not_assistant": "the last turn has no answer",
    "empty_turn": "a turn without a character but white space",
    "prompts_differ": "the chosen and the rejected conversation do not ask the same",
    "no_preference": "the chosen and the rejected answer are the same",
}
# Form feeds separate sections of many source files; the rest of C0 and all of C1 are damage or a wrong encoding.
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]")


class BadRow(Exception):
    """A row that breaks a rule: its code, and what stood there."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def check_pretrain(value: Any, options: RowOptions, maximum_characters: int) -> dict[str, Any]:
    """The canonical row {"text": str}; BadRow names the rule it breaks."""
    text = _clean(_field(value, options.text_field), "the text", "empty")
    _check_length(len(text), maximum_characters)
    return {"text": text}


def check_instructions(value: Any, options: RowOptions, maximum_characters: int) -> dict[str, Any]:
    """The canonical row {"conversations": [turns]}, user and assistant in turn, the assistant last; BadRow otherwise."""
    written = _field(value, options.conversations_field)
    if not isinstance(written, list) or not all(isinstance(turn, Mapping) for turn in written):
        raise BadRow("not_turns", f"{type(written).__name__} in '{options.conversations_field}'")
    if not written:
        raise BadRow("empty", "no turns")
    turns = []
    for index, turn in enumerate(written):
        role = _turn_field(turn, options.role_field, index)
        content = _clean(_turn_field(turn, options.content_field, index), f"turn {index + 1}", "empty_turn")
        if not isinstance(role, str):
            raise BadRow("wrong_role", f"turn {index + 1}: {role!r}"[:80])
        turns.append({"role": options.roles.get(role, role), "content": content})
    _check_roles([turn["role"] for turn in turns])
    _check_length(sum(len(turn["content"]) for turn in turns), maximum_characters)
    return {"conversations": turns}


def check_preferences(value: Any, options: RowOptions, maximum_characters: int) -> dict[str, Any]:
    """The canonical row {"chosen": [turns], "rejected": [turns]}, alike but for the last answer; BadRow otherwise.

    Either both fields hold whole conversations, or both hold the text of an answer to what the prompt field asks.
    """
    sides = {}
    for side, name in (("chosen", options.chosen_field), ("rejected", options.rejected_field)):
        written = _field(value, name)
        if isinstance(written, str):
            asked = _field(value, options.prompt_field)
            prompt = asked if isinstance(asked, list) else [{options.role_field: "user", options.content_field: asked}]
            written = [*prompt, {options.role_field: "assistant", options.content_field: written}]
        row = {options.conversations_field: written}
        sides[side] = check_instructions(row, options, maximum_characters)["conversations"]
    if sides["chosen"][:-1] != sides["rejected"][:-1]:
        raise BadRow("prompts_differ")
    if sides["chosen"] == sides["rejected"]:
        raise BadRow("no_preference")
    return sides


def check_benchmarks(value: Any, options: RowOptions, maximum_characters: int) -> dict[str, Any]:
    """The row as it is, for a public benchmark is not ours to correct; BadRow when it holds no text to ask or to score."""
    if not isinstance(value, dict):
        raise BadRow("not_an_object", type(value).__name__)
    texts = [text for text in value.values() if isinstance(text, str)]
    if not any(text.strip() for text in texts):
        raise BadRow("empty", "no field holds text")
    _check_length(sum(map(len, texts)), maximum_characters)
    return value


CHECKS: dict[str, Callable[[Any, RowOptions, int], dict[str, Any]]] = {
    "pretrain": check_pretrain,
    "instructions": check_instructions,
    "preferences": check_preferences,
    "benchmarks": check_benchmarks,
}


def content_of(row: dict[str, Any]) -> str:
    """What makes a canonical row the same as another: its text, or its turns with their roles, or all its fields."""
    if "text" in row and len(row) == 1:
        return row["text"]
    if "conversations" in row and len(row) == 1:
        return "\x1e".join(f"{turn['role']}\x1f{turn['content']}" for turn in row["conversations"])
    return repr(sorted(row.items()))


class DuplicateFilter:
    """Whether a content was seen before, by 128-bit hash, in an SQLite table: memory stays at its 32 MiB page cache.

    The table takes about 25 bytes of disk a row. Two different contents are taken for one with probability n^2 / 2^129.
    """

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.connection = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-32768", "locking_mode=EXCLUSIVE"):
            self.connection.execute(f"PRAGMA {pragma}")
        self.connection.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID")
        self.connection.execute("BEGIN")

    def is_duplicate(self, content: str) -> bool:
        """True when the same content was given before; remembers it."""
        digest = hashlib.blake2b(content.encode(), digest_size=16).digest()
        return self.connection.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 0

    def close(self) -> None:
        """Forget everything and give the file back."""
        path = self.connection.execute("PRAGMA database_list").fetchone()[2]
        self.connection.close()
        Path(path).unlink(missing_ok=True)


def _field(value: Any, name: str) -> Any:
    if not isinstance(value, Mapping):
        raise BadRow("not_an_object", type(value).__name__)
    if name not in value:
        raise BadRow("missing_field", f"no '{name}' among {', '.join(map(str, value))}"[:160])
    return value[name]


def _turn_field(turn: Mapping[str, Any], name: str, index: int) -> Any:
    if name not in turn:
        raise BadRow("missing_field", f"turn {index + 1}: no '{name}' among {', '.join(map(str, turn))}"[:160])
    return turn[name]


def _clean(text: Any, what: str, reason_if_blank: str) -> str:
    """The text with Windows line ends made plain; BadRow when it is no sound text or a blank one."""
    if not isinstance(text, str):
        raise BadRow("not_text", f"{what} is {type(text).__name__}")
    if not text.strip():
        raise BadRow(reason_if_blank, what)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadRow("invalid_utf8", f"{what}: half of a surrogate pair at character {error.start}") from error
    if found := _CONTROL.search(text):
        raise BadRow("control_characters", f"{what}: U+{ord(found.group()):04X} at character {found.start()}")
    return text.replace("\r\n", "\n") if "\r" in text else text


def _check_length(characters: int, maximum: int) -> None:
    if characters > maximum:
        raise BadRow("too_long", f"{characters} characters; maximum_characters is {maximum}")


def _check_roles(roles: list[str]) -> None:
    for index, role in enumerate(roles):
        if role not in ("user", "assistant") and not (role == "system" and index == 0):
            raise BadRow("wrong_role", f"turn {index + 1}: {role!r}"[:80])
    spoken = roles[1:] if roles[0] == "system" else roles
    if "assistant" not in spoken:
        raise BadRow("no_assistant_turn", f"{len(roles)} turns")
    if spoken[0] != "user":
        raise BadRow("first_turn_not_user", f"it is {spoken[0]!r}")
    for index, (before, role) in enumerate(pairwise(spoken)):
        if role == before:
            raise BadRow("roles_do_not_alternate", f"spoken turns {index + 1} and {index + 2} are both {role!r}")
    if spoken[-1] != "assistant":
        raise BadRow("last_turn_not_assistant", f"{len(roles)} turns")
