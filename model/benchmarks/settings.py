"""What an evaluation measures: section `evaluate` of params.yaml, and the operating points that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

ONE_TOKEN, LEFT_TO_RIGHT = "tokens_per_step=1", "left_to_right"


@dataclass(frozen=True)
class EvaluateConfig:
    """Section `evaluate`. Items count per benchmark; the other points are measured on the first `sweep_items` of them."""

    tasks: tuple[str, ...] = ("toy_world",)
    start_from: Mapping[str, str] | None = (
        None  # instance -> folder or hub id of any family, instead of data/models/<instance>
    )
    local: Mapping[str, Mapping[str, Any]] | None = None  # public benchmarks from files, see model/benchmarks/suite.py
    num_fewshot: int | None = None  # None: what each public task asks for
    chat: bool = True  # prompts through the chat template
    max_new_tokens: int = 128
    test_items: int = 30  # at the main operating points
    sweep_items: int = 10
    validation_items: int = 10
    thresholds: tuple[float, ...] = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
    main_threshold: float = 0.9
    tokens_per_step: tuple[int, ...] = (1, 8)
    batch_rows: int = 64
    likelihood_draws: int = 16
    scale_items: int = 2  # validation prompts per benchmark on which the confidence of the scaled control is matched
    resamples: int = 2000

    def __post_init__(self) -> None:
        counts = ("max_new_tokens", "test_items", "sweep_items", "validation_items", "batch_rows")
        for name in (*counts, "likelihood_draws", "scale_items", "resamples"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"evaluate.{name} is {value!r}; it must be a whole number of at least 1")
        if not self.tasks:
            raise ValueError("evaluate.tasks is empty; name toy_world, or a task that lm_eval knows")
        if unused := sorted(set(self.local or {}) - set(self.tasks)):
            raise ValueError(
                f"evaluate.local describes {unused[0]}, which evaluate.tasks {list(self.tasks)} does not name"
            )
        if self.main_threshold not in self.thresholds:
            raise ValueError(
                f"evaluate.main_threshold {self.main_threshold} must be one of evaluate.thresholds {self.thresholds}"
            )
        if 1 not in self.tokens_per_step:
            raise ValueError(
                f"evaluate.tokens_per_step {self.tokens_per_step} must hold 1: one token per forward is the main row"
            )
        if self.sweep_items > self.test_items:
            raise ValueError(
                f"evaluate.sweep_items {self.sweep_items} must not exceed evaluate.test_items {self.test_items}"
            )

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> EvaluateConfig:
        """The configuration of a params section (`threads` is the stage's business)."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(section) - known - {"threads"}):
            raise ValueError(f"evaluate.{unknown[0]} is unknown; the section may hold {', '.join(sorted(known))}")
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in section.items()
                if name in known
            }
        )


def operating_points(config: EvaluateConfig, attention: str) -> dict[str, dict[str, Any] | None]:
    """Name -> decoding policy, the main row first. A causal network has one point: left to right."""
    if attention == "causal":
        return {LEFT_TO_RIGHT: None}
    steps = {
        f"tokens_per_step={count}": {"name": "tokens_per_step", "tokens": count}
        for count in sorted(config.tokens_per_step)
    }
    return steps | {
        f"threshold={value:.2f}": {"name": "threshold", "threshold": value} for value in sorted(config.thresholds)
    }


def main_points(config: EvaluateConfig, attention: str) -> list[str]:
    """The rows of the comparison table: one token per forward, then the main threshold; left to right for a causal network."""
    if attention == "causal":
        return [LEFT_TO_RIGHT]
    return [ONE_TOKEN, f"threshold={config.main_threshold:.2f}"]
