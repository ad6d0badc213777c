"""The options a person may write under a corpus in params.yaml, checked: unknown keys and wrong types are refused."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, get_type_hints

OptionsType = TypeVar("OptionsType")
TXT_ROWS = ("paragraphs", "lines", "files")


@dataclass(frozen=True)
class RowOptions:
    """How the rows of a corpus are named; shared by every corpus that reads what others wrote."""

    weight: float = 1.0
    text_field: str = "text"
    conversations_field: str = "conversations"
    chosen_field: str = "chosen"  # of preferences: turns, or the text of an answer beside a prompt
    rejected_field: str = "rejected"
    prompt_field: str = "prompt"  # text or turns
    role_field: str = "role"
    content_field: str = "content"
    roles: Mapping[str, str] = field(default_factory=dict)  # the corpus's name of a role -> user, assistant or system
    txt_rows: str = "paragraphs"  # what one document of a .txt file is: paragraphs (split at blank lines), lines, files
    license: str | None = None  # of the text, as SPDX names it; a retrained model is not promoted while nobody says

    def columns(self, kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The fields that a row of the kind must have, and those that it may have."""
        if kind == "preferences":
            return (self.chosen_field, self.rejected_field), (self.prompt_field,)
        return (self.conversations_field if kind == "instructions" else self.text_field,), ()


def read_options(kind: type[OptionsType], written: Mapping[str, Any], where: str) -> OptionsType:
    """`kind(**written)`; ValueError that names the place and the nearest known key, or the type that was expected."""
    hints = get_type_hints(kind)
    known = {item.name: hints[item.name] for item in fields(kind)}  # type: ignore[arg-type]
    for key, value in written.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"{where}: unknown option '{key}'. It knows {', '.join(sorted(known))}.{hint}")
        _check_type(f"{where}.{key}", known[key], value)
    options = kind(**written)
    weight = getattr(options, "weight", 1.0)
    if not 0 < weight < float("inf"):
        raise ValueError(f"{where}.weight is {weight}: a weight must be above 0. Remove the corpus to leave it out.")
    if getattr(options, "txt_rows", TXT_ROWS[0]) not in TXT_ROWS:
        raise ValueError(f"{where}.txt_rows is '{options.txt_rows}': it must be one of {', '.join(TXT_ROWS)}.")  # type: ignore[attr-defined]
    return options


def check_corpus_name(name: str, where: str) -> None:
    """ValueError unless the name can be a folder: letters, digits, dot, dash and underscore, not starting with a dot."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", str(name)):
        raise ValueError(f"{where}: '{name}' cannot name a corpus: use letters, digits, '-', '_' and '.' only.")


def _check_type(where: str, declared: Any, value: Any) -> None:
    accepted: dict[Any, tuple[type, ...]] = {
        float: (int, float),
        int: (int,),
        str: (str,),
        bool: (bool,),
        tuple: (list, tuple),
        tuple[str, ...]: (list, tuple),
        str | None: (str, type(None)),
        int | None: (int, type(None)),
        Mapping[str, str]: (Mapping,),
    }
    types = accepted[declared]
    wrong = not isinstance(value, types) or (isinstance(value, bool) and bool not in types)
    if wrong:
        expected = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in types)
        raise ValueError(f"{where} is {value!r}: it must be {expected}. Write 3.0e-4 rather than 3e-4 for a number.")
