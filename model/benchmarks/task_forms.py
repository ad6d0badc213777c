"""The two forms a benchmark takes as a harness task, made in code from rows; nothing is copied per benchmark.

Rows travel as JSON text inside the harness, so that no row shape is forced on them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol


class Judge(Protocol):
    """Decides whether a written answer is right; see model/benchmarks/judge.py."""

    def __call__(self, row: dict[str, Any], text: str) -> bool: ...

    def passes(self, program: str, tests: str) -> bool:
        """Whether the program survives its tests in the sandbox."""
        ...


Decide = Callable[[dict[str, Any], str], bool]  # (row, answer) -> right


def read_rows(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """The first `limit` rows of a .jsonl or .jsonl.gz file."""
    if not path.is_file():
        raise ValueError(f"no benchmark file {path}: run the download stage, or correct evaluate.local")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as handle:
        rows = []
        for number, line in enumerate(handle, 1):
            if limit is not None and len(rows) >= limit:
                break
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path} line {number} is not JSON ({error}); a benchmark must be complete to be comparable"
                ) from error
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
    name: str, rows: Sequence[dict[str, Any]], question: Callable, gold: Callable, judge: Decide, max_new_tokens: int
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
