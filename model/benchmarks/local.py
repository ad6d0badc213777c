"""Public benchmarks in files of one's own: written answers by their last number or by running them, choices by likelihood."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from model.benchmarks.task_forms import Judge, choice_task, generation_task, read_rows


@dataclass(frozen=True)
class LocalBenchmark:
    """A public benchmark in a file of one's own: which fields hold the question, the choices if any, and the answer.

    Fields may be dotted (`question.stem`); `question` may also be a text with fields in braces ("{prompt}\\n{tests}").
    `choices` names a list of texts, a list of {"text", "label"}, or several fields ("A,B,C,D"); `answer` is then an index, a
    label or the text. Without choices the answer is written and what follows `final` (or, where that mark is missing, the last
    number) is compared; with `tests` (fields that hold assertions) it is a Python program, in a fence or bare, and right when
    they hold in the sandbox. `path` is looked up in data/raw/benchmarks, where `download` puts files; the last
    `validation_rows` rows of it choose operating points and are never tested.
    """

    path: str
    validation_rows: int = 0
    question: str = "question"
    answer: str = "answer"
    choices: str | None = None
    tests: str | None = None
    final: str = "#### "
    category: str = "public"

    @classmethod
    def from_dict(cls, name: str, values: Mapping[str, Any]) -> LocalBenchmark:
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"evaluate.local.{name}: unknown key {unknown[0]!r}; it may hold {', '.join(sorted(known))}, or files"
            )
        if "path" not in values:
            raise ValueError(f"evaluate.local.{name} needs `path`, a .jsonl or .jsonl.gz file")
        spec = cls(**values)
        if not isinstance(spec.validation_rows, int) or spec.validation_rows < 0:
            raise ValueError(
                f"evaluate.local.{name}.validation_rows is {spec.validation_rows!r}; it counts rows: 0, 100 ..."
            )
        return spec

    def rows(self, folder: Path, split: str, limit: int | None = None) -> list[dict[str, Any]]:
        """The first `limit` rows of the split: "test" is the file without its last `validation_rows` rows, "validation" those."""
        path = benchmark_file(folder, self.path)
        if not self.validation_rows:
            return read_rows(path, limit)
        rows = read_rows(path)
        if len(rows) <= self.validation_rows:
            raise ValueError(f"{path} has {len(rows)} rows: validation_rows {self.validation_rows} leaves none to test")
        cut = len(rows) - self.validation_rows
        return (rows[:cut] if split == "test" else rows[cut:])[:limit]


def benchmark_file(folder: Path, path: str) -> Path:
    """The file `path` of `folder`; ValueError for one elsewhere, whose changes nothing would notice."""
    found = Path(os.path.normpath(folder / path))
    if not found.is_relative_to(os.path.normpath(folder)):
        raise ValueError(
            f"evaluate.local: {path} does not lie in {folder}. Name it under download.benchmarks.paths, so that it is fetched, "
            "validated and watched, and write its name there as `path`"
        )
    return found


def _field(row: Mapping[str, Any], path: str) -> Any:
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(f"benchmark rows have no field {path!r}; this one has {', '.join(row)}")
        value = value[part]
    return value


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _question(row: Mapping[str, Any], spec: LocalBenchmark) -> str:
    if "{" not in spec.question:
        return str(_field(row, spec.question))
    return re.sub(r"\{([^{}]+)\}", lambda found: _text(_field(row, found[1])), spec.question)


def _choices(row: Mapping[str, Any], spec: LocalBenchmark) -> tuple[list[str], list[str]]:
    """Texts and labels of a row's choices."""
    if "," in spec.choices:
        labels = [name.strip() for name in spec.choices.split(",")]
        return [str(_field(row, name)) for name in labels], labels
    values = _field(row, spec.choices)
    if values and isinstance(values[0], Mapping):
        return [str(value["text"]) for value in values], [str(value["label"]) for value in values]
    return [str(value) for value in values], [chr(ord("A") + index) for index in range(len(values))]


def _gold_index(row: Mapping[str, Any], spec: LocalBenchmark) -> int:
    texts, labels = _choices(row, spec)
    answer = _field(row, spec.answer)
    if isinstance(answer, int) or (str(answer).isdigit() and str(answer) not in labels):
        return int(answer)
    for known in (labels, texts):
        if str(answer) in known:
            return known.index(str(answer))
    raise ValueError(f"answer {answer!r} is none of the labels {labels} and none of the choices")


def final_of(text: str, mark: str) -> str:
    """What follows the last `mark` up to the line's end, else the last number, normalised (no commas, $, trailing stop)."""
    if mark and mark.strip() in text:
        found = text.rsplit(mark.strip(), 1)[1].strip().split("\n")[0]
    else:
        numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
        found = numbers[-1] if numbers else ""
    return found.replace(",", "").replace("$", "").strip().rstrip(".").strip()


def program_in(text: str) -> str:
    """The first fenced block of an answer, whether or not it is closed; the whole answer where there is none."""
    found = re.search(r"```(?:python|py)?[ ]*\n(.*?)(?:```|\Z)", text, re.DOTALL)
    return found[1] if found else text


def local_task(name: str, spec: LocalBenchmark, rows: list[dict[str, Any]], max_new_tokens: int, judge: Judge):
    """One benchmark from rows: by likelihood when it has choices, else written and judged by its tests or its final answer."""
    if spec.choices is not None:
        return choice_task(
            name,
            rows,
            lambda row: _question(row, spec),
            lambda row: _choices(row, spec)[0],
            lambda row: _gold_index(row, spec),
        )

    def is_right(row: dict[str, Any], text: str) -> bool:
        if spec.tests is not None:
            tests = "\n".join(_text(_field(row, field.strip())) for field in spec.tests.split(","))
            return judge.passes(program_in(text), tests)
        gold = final_of(str(_field(row, spec.answer)), spec.final) or str(_field(row, spec.answer)).strip()
        return final_of(text, spec.final) == gold

    return generation_task(
        name,
        rows,
        lambda row: _question(row, spec),
        lambda row: str(_field(row, spec.answer)),
        is_right,
        max_new_tokens,
    )
