"""Which answers a stage trains on, and what is hidden of them: keys `answers` and `states` of tune_cap and distill_draft."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FOLDER = "data/own_answers"  # what stage own_answers makes
SECTIONS = ("tune_cap", "distill_draft")
KEYS = ("answers", "states")
ANSWERS = ("truth", "own")
STATES = ("drawn", "visited")
DRAWING = ("hiding", "block_curriculum", "ratio_curriculum", "mask_noise", "variable_length")


@dataclass(frozen=True)
class TrainingAnswers:
    """`answers`: the corpus' (`truth`) or the model's own right ones, which stage own_answers has collected (`own`).

    `states`: what is hidden of them, what `hiding` draws or the states that the decoder passed through.
    """

    answers: str = "truth"
    states: str = "drawn"

    @classmethod
    def from_section(cls, name: str, section: Mapping[str, Any]) -> "TrainingAnswers":
        """The two keys of section `name`; ValueError for other values, or beside keys that they exclude."""
        found = cls(**{key: section[key] for key in KEYS if key in section})
        for key, known in zip(KEYS, (ANSWERS, STATES), strict=True):
            if getattr(found, key) not in known:
                raise ValueError(f"{name}.{key} is {getattr(found, key)!r}; it must be one of {', '.join(known)}")
        if found.states == "visited":
            if found.answers != "own":
                raise ValueError(
                    f"{name}.states is visited and {name}.answers {found.answers}: a decoder has passed through its own "
                    f"answers alone. Set {name}.answers: own, or states: drawn"
                )
            if wrong := [key for key in (*DRAWING, "teacher_cache") if section.get(key) is not None]:
                raise ValueError(
                    f"{name}.{wrong[0]} says what is hidden, and so does {name}.states: visited. Leave one of them out"
                )
        return found


def check_answers(params: Mapping[str, Any]) -> None:
    """ValueError where a section trains on own answers that nobody gives, or that another model gives."""
    given = params.get("own_answers")
    for name in SECTIONS:
        section = params.get(name)
        if not isinstance(section, Mapping):
            continue
        wanted = TrainingAnswers.from_section(name, section)
        if wanted.answers != "own" or not isinstance(given, Mapping):
            continue
        if not given.get("questions"):
            raise ValueError(
                f"{name}.answers is own and own_answers.questions {given.get('questions')}: nobody is asked. Set the number of "
                f"questions, or {name}.answers: truth"
            )
        if section.get("start_from") != given.get("start_from"):
            raise ValueError(
                f"{name}.start_from is {section.get('start_from')} and own_answers.start_from {given.get('start_from')}: the "
                "answers would be another model's. Give both the same"
            )
