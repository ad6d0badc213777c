"""Great Expectations suites over shards of row facts, their results combined into one verdict per expectation.

A shard is a small table, so memory does not grow with the corpus. An expectation about single values is judged on the counts of
all shards together (its `mostly` speaks of the corpus, not of a shard); one about a whole column must hold in every shard.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Outcome:
    """One expectation over all shards so far."""

    type: str
    kwargs: dict[str, Any]
    why: str
    shards: int = 0
    failed_shards: int = 0
    values: int = 0
    unexpected: int = 0
    observed: list[float] = field(default_factory=list)  # smallest and largest over shards
    examples: list[Any] = field(default_factory=list)
    counts_values: bool = False

    @property
    def success(self) -> bool:
        """Whether the corpus as a whole meets the expectation."""
        if not self.counts_values:
            return self.failed_shards == 0
        return self.values == 0 or 1 - self.unexpected / self.values >= self.kwargs.get("mostly", 1.0)

    @property
    def asked(self) -> str:
        """The expectation as a person reads it: `characters between 1 and 20000, mostly 0.99`."""
        return _phrase(self.type, self.kwargs)

    @property
    def seen(self) -> str:
        """What was observed instead, or all the same."""
        if self.counts_values:
            text = (
                f"{self.unexpected} of {self.values} values do not"
                if self.unexpected
                else f"all {self.values} values do"
            )
            return text + (f", such as {', '.join(map(_short, self.examples))}" if self.examples else "")
        if self.observed:
            low, high = (f"{value:.6g}" for value in self.observed)
            return low if low == high else f"{low} to {high} over {self.shards} shards"
        return f"does not hold in {self.failed_shards} of {self.shards} shards" if self.failed_shards else "holds"


class Suite:
    """A suite file applied to one corpus, shard after shard."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.outcomes: list[Outcome] = []
        os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
        import great_expectations as gx

        try:
            self._suite = gx.ExpectationSuite(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise ValueError(
                f"the suite {path} is missing: restore it from git, or write one after its siblings."
            ) from error
        except Exception as error:  # json, pydantic and Great Expectations each have their own
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{path} is no Great Expectations suite: {reason}. Correct or restore it from git."
            ) from error
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False, "metric_calculations": False}
        self._context = context

    def add(self, columns: Mapping[str, list[Any]]) -> None:
        """Judge one more shard. ValueError when an expectation cannot be evaluated (a column that does not exist)."""
        import pandas

        batch = self._context.data_sources.pandas_default.read_dataframe(pandas.DataFrame(columns))
        results = batch.validate(self._suite, result_format="SUMMARY").results
        results = sorted(results, key=lambda one: _key(one.expectation_config))
        if not self.outcomes:
            self.outcomes = [_outcome(one.expectation_config) for one in results]
        for outcome, result in zip(self.outcomes, results, strict=True):
            _add_result(outcome, result, self.path)


def _key(config: Any) -> str:
    return json.dumps([_kwargs(config).get("column", ""), config.type, _kwargs(config)], sort_keys=True, default=str)


def _kwargs(config: Any) -> dict[str, Any]:
    return {name: value for name, value in dict(config.kwargs).items() if name != "batch_id"}


def _outcome(config: Any) -> Outcome:
    meta = config.meta or {}
    return Outcome(config.type, _kwargs(config), str(meta.get("why", "")))


def _add_result(outcome: Outcome, result: Any, path: Path) -> None:
    information = result.exception_info or {}
    cases = [information] if "raised_exception" in information else list(information.values())
    for case in cases:
        if case.get("raised_exception"):
            raise ValueError(
                f"{path}: '{outcome.asked}' cannot be evaluated: {case.get('exception_message')}. Correct the suite."
            )
    found = result.result or {}
    outcome.shards += 1
    outcome.failed_shards += not result.success
    if "unexpected_count" in found:
        outcome.counts_values = True
        outcome.values += found["element_count"] - (found.get("missing_count") or 0)
        outcome.unexpected += found["unexpected_count"]
        for value in found.get("partial_unexpected_list") or []:
            if value not in outcome.examples and len(outcome.examples) < 3:
                outcome.examples.append(value)
    elif (
        isinstance(value := found.get("observed_value"), int | float) and not isinstance(value, bool) and value == value
    ):
        outcome.observed = [min([value, *outcome.observed]), max([value, *outcome.observed])]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _phrase(kind: str, kwargs: Mapping[str, Any]) -> str:
    words = kind.removeprefix("expect_").replace("_", " ")
    if column := kwargs.get("column"):
        words = words.replace("column values", column, 1).replace("column", f"{column}:", 1)
    low, high = kwargs.get("min_value"), kwargs.get("max_value")
    if low is not None and high is not None:
        words = words.removesuffix(" between") + f" between {low:g} and {high:g}"
    elif low is not None:
        words = words.removesuffix(" be between") + f" be at least {low:g}"
    elif high is not None:
        words = words.removesuffix(" be between") + f" be at most {high:g}"
    if "value_set" in kwargs:
        words += " {" + ", ".join(map(str, kwargs["value_set"])) + "}"
    if "column_set" in kwargs:
        words += " {" + ", ".join(map(str, kwargs["column_set"])) + "}"
    if "column_list" in kwargs:
        words += " [" + ", ".join(map(str, kwargs["column_list"])) + "]"
    return words + (f", for at least {kwargs['mostly']:.4g} of all values" if kwargs.get("mostly", 1.0) != 1.0 else "")
