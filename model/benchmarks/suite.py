"""Benchmarks by name as harness tasks: the toy suite, public ones from files of one's own, and whatever lm_eval knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.benchmarks.harness import quiet
from model.benchmarks.local import LocalBenchmark, benchmark_file, local_task
from model.benchmarks.task_forms import Judge, generation_task, read_rows

TOY_SUITE = "toy_world"


@dataclass(frozen=True)
class Suite:
    """Harness tasks in order, and the category of each benchmark."""

    tasks: list
    categories: dict[str, str]


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


def has_split(name: str, split: str, local: Mapping[str, Mapping[str, Any]] | None = None) -> bool:
    """Whether a benchmark has that split: toy_world has both, a file of one's own where `validation_rows` sets some apart."""
    described = (local or {}).get(name) or {}
    return split == "test" or name == TOY_SUITE or bool(described.get("validation_rows"))


def _public(
    name: str,
    described: dict,
    split: str,
    folder: Path,
    judge: Judge,
    max_new_tokens: int,
    limit: int | None,
    num_fewshot: int | None,
) -> tuple[list, str]:
    """Tasks and category of a benchmark that is not ours."""
    if described and "files" not in described:
        spec = LocalBenchmark.from_dict(name, described)
        return [local_task(name, spec, spec.rows(folder, split, limit), max_new_tokens, judge)], spec.category
    files = {key: str(benchmark_file(folder, path)) for key, path in (described.get("files") or {}).items()}
    return known_tasks(name, files, num_fewshot), name


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
    """All named benchmarks that have the split (see has_split). Files are looked up in `folder`."""
    tasks, categories, local = [], {}, local or {}
    for name in names:
        if name == TOY_SUITE:
            with quiet():
                toy = toy_suite(folder, split, judge, max_new_tokens, limit)
            tasks += toy.tasks
            categories |= toy.categories
        elif has_split(name, split, local):
            described = dict(local.get(name) or {})
            with quiet():
                found, category = _public(name, described, split, folder, judge, max_new_tokens, limit, num_fewshot)
            tasks += found
            categories |= {task.task_name: category for task in found}
    if not tasks:
        raise ValueError(
            f"evaluate.tasks {list(names)} has no {split} split; name toy_world, or set validation_rows of a file in "
            "evaluate.local"
        )
    return Suite(tasks, categories)
