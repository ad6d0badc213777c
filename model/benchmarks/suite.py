"""Benchmarks by name as harness tasks: the toy suite, local files of public benchmarks, and whatever lm_eval knows.

Tasks are made in code from one template; rows travel as JSON text inside the harness, so that no row shape is forced on them.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from model.benchmarks.harness import quiet

TOY_SUITE = "toy_world"
Judge = Callable[[dict[str, Any], str], bool]


@dataclass(frozen=True)
class LocalBenchmark:
    """A public benchmark in a file of one's own: which fields hold the question, the choices if any, and the answer.

    Fields may be dotted (`question.stem`). `choices` names a list of texts, a list of {"text", "label"}, or several fields
    ("A,B,C,D"); `answer` is then an index, a label or the text. Without choices the answer is generated and what follows `final`
    (or, where that mark is missing, the last number) is compared.
    """

    path: str
    question: str = "question"
    answer: str = "answer"
    choices: str | None = None
    final: str = "#### "
    category: str = "public"

    @classmethod
    def from_dict(cls, name: str, values: Mapping[str, Any]) -> LocalBenchmark:
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"evaluate.local.{name}: unknown key {unknown[0]!r}; it may hold {', '.join(sorted(known))}, or files")
        if "path" not in values:
            raise ValueError(f"evaluate.local.{name} needs `path`, a .jsonl or .jsonl.gz file")
        return cls(**values)


@dataclass(frozen=True)
class Suite:
    """Harness tasks in order, and the category of each benchmark."""

    tasks: list
    categories: dict[str, str]


def read_rows(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """The first `limit` rows of a .jsonl or .jsonl.gz file."""
    if not path.is_file():
        raise ValueError(f"no benchmark file {path}: run the download stage, or correct evaluate.local")
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as handle:
        rows = []
        for number, line in enumerate(handle, 1):
            if limit is not None and len(rows) >= limit:
                break
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} line {number} is not JSON ({error}); a benchmark must be complete to be comparable") from error
    if not rows:
        raise ValueError(f"benchmark file {path} is empty")
    return rows


def _task(name: str, rows: Sequence[dict[str, Any]], **config: Any):
    """A harness task over `rows`; each document is {"row": the row as JSON, "question": its prompt}."""
    import datasets
    from lm_eval.api.task import ConfigurableTask

    data = datasets.Dataset.from_dict({"row": [json.dumps(row, ensure_ascii=False) for row in rows]})
    return ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": lambda **_: {"test": data},
            "test_split": "test",
            "num_fewshot": 0,
            **config,
        }
    )


def generation_task(
    name: str, rows: Sequence[dict[str, Any]], question: Callable, gold: Callable, judge: Judge, max_new_tokens: int
):
    """A task whose answers are generated until EOS and judged right or wrong by `judge(row, text)`."""
    return _task(
        name,
        rows,
        output_type="generate_until",
        doc_to_text=lambda document: question(json.loads(document["row"])),
        doc_to_target=lambda document: gold(json.loads(document["row"])),
        generation_kwargs={"until": [], "max_gen_toks": max_new_tokens, "do_sample": False, "temperature": 0.0},
        process_results=lambda document, results: {"accuracy": float(judge(json.loads(document["row"]), results[0]))},
        metric_list=[{"metric": "accuracy", "aggregation": "mean", "higher_is_better": True}],
    )


def choice_task(name: str, rows: Sequence[dict[str, Any]], question: Callable, choices: Callable, gold: Callable):
    """A multiple-choice task decided by the highest log-likelihood per byte-free total (the harness's `acc`)."""
    return _task(
        name,
        rows,
        output_type="multiple_choice",
        doc_to_text=lambda document: question(json.loads(document["row"])),
        doc_to_choice=lambda document: choices(json.loads(document["row"])),
        doc_to_target=lambda document: gold(json.loads(document["row"])),
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )


def toy_suite(folder: Path, split: str, judge: Judge, max_new_tokens: int, limit: int | None = None) -> Suite:
    """The embedded benchmarks from `folder`/<benchmark>.<split>.jsonl, in the order of the world's own list."""
    from model.corpora.toy_world import BENCHMARKS

    tasks = [
        generation_task(
            name,
            read_rows(folder / f"{name}.{split}.jsonl", limit),
            lambda row: row["question"],
            lambda row: row["answer"],
            judge,
            max_new_tokens,
        )
        for name in BENCHMARKS
    ]
    return Suite(tasks, dict(BENCHMARKS))


def _field(row: Mapping[str, Any], path: str) -> Any:
    value: Any = row
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(f"benchmark rows have no field {path!r}; this one has {', '.join(row)}")
        value = value[part]
    return value


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


def local_task(name: str, spec: LocalBenchmark, max_new_tokens: int, limit: int | None = None):
    """One benchmark from a file: by likelihood when it has choices, else generated and compared by its final answer."""
    rows = read_rows(Path(spec.path), limit)
    if spec.choices is not None:
        return choice_task(
            name,
            rows,
            lambda row: str(_field(row, spec.question)),
            lambda row: _choices(row, spec)[0],
            lambda row: _gold_index(row, spec),
        )

    def judge(row: dict[str, Any], text: str) -> bool:
        gold = final_of(str(_field(row, spec.answer)), spec.final) or str(_field(row, spec.answer)).strip()
        return final_of(text, spec.final) == gold

    return generation_task(
        name, rows, lambda row: str(_field(row, spec.question)), lambda row: str(_field(row, spec.answer)), judge, max_new_tokens
    )


def known_tasks(name: str, files: Mapping[str, str] | None = None, num_fewshot: int | None = None) -> list:
    """The task, or the members of the group, that lm_eval knows as `name`; `files` {split: path} replaces its data source.

    Without `files` the data comes from the Hugging Face hub. Building the index of names takes about 20 s.
    """
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    if name not in manager.all_tasks:
        close = manager.match_tasks([f"{name[:4]}*"])[:5]
        raise ValueError(f"evaluate.tasks: lm_eval knows no task {name!r}; similar: {', '.join(close) or 'none'}")
    wanted: Any = name
    if files:  # only as the member of a group does a task known by name take changes
        source = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": dict(files)}}
        wanted = {"group": f"local_{name}", "task": [{"task": name, **source}]}
    try:
        tasks = list(manager.load([wanted])["tasks"].values())
    except (OSError, ConnectionError) as error:
        raise ValueError(
            f"the data of {name} could not be loaded ({error}); offline, give a file of your own in evaluate.local.{name}"
        ) from error
    for task in tasks:
        if num_fewshot is not None or task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=1234)
    return tasks


def _public(name: str, described: dict, max_new_tokens: int, limit: int | None, num_fewshot: int | None) -> tuple[list, str]:
    """Tasks and category of a benchmark that is not ours."""
    if described and "files" not in described:
        spec = LocalBenchmark.from_dict(name, described)
        return [local_task(name, spec, max_new_tokens, limit)], spec.category
    return known_tasks(name, described.get("files"), num_fewshot), name


def load_suite(
    names: Sequence[str],
    split: str,
    *,
    folder: Path,
    judge: Judge,
    max_new_tokens: int,
    limit: int | None = None,
    local: Mapping[str, Mapping[str, Any]] | None = None,
    num_fewshot: int | None = None,
) -> Suite:
    """All named benchmarks. Only toy_world has a validation split: the others are left out unless `split` is "test"."""
    tasks, categories, local = [], {}, local or {}
    for name in names:
        if name == TOY_SUITE:
            with quiet():
                toy = toy_suite(folder, split, judge, max_new_tokens, limit)
            tasks += toy.tasks
            categories |= toy.categories
        elif split == "test":
            with quiet():
                found, category = _public(name, dict(local.get(name) or {}), max_new_tokens, limit, num_fewshot)
            tasks += found
            categories |= {task.task_name: category for task in found}
    if not tasks:
        raise ValueError(f"evaluate.tasks {list(names)} has no {split} split; name toy_world or evaluate on the test split")
    return Suite(tasks, categories)
