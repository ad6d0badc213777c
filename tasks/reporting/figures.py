"""report.json as a dictionary: the comparison, training, speculation and data, plus published figures to stand beside."""

from typing import Any

from tasks.reporting.comparison import compare
from tasks.reporting.goals import goals
from tasks.reporting.inputs import TRAINED, Inputs

# LLaDA 2.0 report (arXiv:2512.15745), model cards, and arXiv:2509.26488. Their tokens per forward may count other forwards.
PUBLISHED = (
    {"what": "LLaDA2.0-flash, 12 benchmarks", "score": 78.57, "tokens_per_forward": 3.19},
    {"what": "LLaDA2.0-flash-CAP, 12 benchmarks", "score": 76.85, "tokens_per_forward": 4.65, "ratio_to_sft": 1.46},
    {"what": "LLaDA2.0-mini, threshold 0.95", "score": 70.15, "tokens_per_forward": 2.55},
    {"what": "LLaDA2.0-mini, threshold 0.85", "score": 67.90, "tokens_per_forward": 3.31},
)


def gather(inputs: Inputs, preset: str) -> dict[str, Any]:
    """Everything the report says in numbers, rounded to what carries meaning; nothing in it differs between equal runs."""
    compared = compare(inputs)
    figures = {
        "preset": preset,
        **compared,
        "goals": goals(compared, inputs),
        "training": {stage: training_row(inputs, stage) for stage in TRAINED},
        "speculation": inputs.metrics["speculate"],
        "data": data_figures(inputs),
        "published": list(PUBLISHED),
    }
    return rounded(figures)


def training_row(inputs: Inputs, stage: str) -> dict[str, Any]:
    """Steps and last values of a training stage, and its best validation."""
    metrics, curve = inputs.metrics[stage], inputs.curves[stage]
    validation = [value for _, value in curve.get("val/bits_per_byte", [])]
    return {
        "steps": metrics["steps"],
        "stopped_early": metrics["stopped_early"],
        "train_loss": metrics.get("train/loss"),
        "val_bits_per_byte": metrics.get("val/bits_per_byte"),
        "best_val_bits_per_byte": min(validation, default=None),
    }


def data_figures(inputs: Inputs) -> dict[str, Any]:
    """Rows and tokens of every corpus."""
    tokens = dict(inputs.metrics["tokenize"])
    vocabulary = tokens.pop("vocabulary_size")
    corpora: dict[str, Any] = {name: dict(counts) for name, counts in inputs.metrics["validate"].items()}
    for name, splits in tokens.items():
        corpora.setdefault(name, {})["splits"] = {
            split: {key: counts[key] for key in ("rows", "tokens", "graded_tokens", "bytes_per_token", "too_long")}
            for split, counts in splits.items()
        }
    return {"vocabulary_size": vocabulary, "corpora": corpora}


def rounded(value: Any, digits: int = 4) -> Any:
    """The same structure with floats rounded; logit gaps and the like keep their leading digits."""
    if isinstance(value, dict):
        return {key: rounded(one, digits) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one, digits) for one in value]
    if isinstance(value, float):
        return round(value, digits) if abs(value) >= 10**-digits else float(f"{value:.3g}")
    return value
