"""What the stages wrote, read for the report; an absent or broken file is an error that names its stage."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]  # one question answered at one operating point, see model/benchmarks/records.py


@dataclass(frozen=True)
class Model:
    """A row of the comparison: an instance of `evaluate`, and the stage that trained its weights."""

    instance: str
    title: str
    trained_by: str
    note: str

    @property
    def has_own_weights(self) -> bool:
        """False for a control that only decodes another model differently."""
        return self.instance == self.trained_by


REFERENCE, TUNED, BASELINE = "finetune_diffusion", "tune_cap", "finetune_ar"
MODELS = (
    Model(BASELINE, "AR", BASELINE, "autoregressive, fine-tuned, decoded left to right"),
    Model(REFERENCE, "SFT", REFERENCE, "diffusion model, fine-tuned on the same conversations"),
    Model(TUNED, "CAP", TUNED, "SFT, tuned to be sure where it is right"),
    Model("tune_cap_control", "control: λ = 0", "tune_cap_control", "the same extra steps without the CAP term"),
    Model("finetune_diffusion_scaled", "control: scaled", REFERENCE, "SFT, its logits scaled to CAP's confidence"),
    Model("distill_draft", "draft", "distill_draft", "some of SFT's layers, distilled"),
)
TITLES = {model.instance: model.title for model in MODELS}
TRAINED = {
    "pretrain_ar": "tokens of the pretraining text, left to right",
    "pretrain_diffusion": "the same text, unmasked",
    "finetune_ar": "answers, left to right",
    "finetune_diffusion": "answers, unmasked",
    "distill_draft": "the draft, from SFT",
    "tune_cap": "CAP",
    "tune_cap_control": "CAP's control with λ = 0",
}
# Stages of several instances in dvc.yaml: what `dvc repro` calls one of them.
INSTANCE_OF = {"tune_cap": "tune_cap@tune_cap", "tune_cap_control": "tune_cap@tune_cap_control"}


@dataclass(frozen=True)
class Inputs:
    """Everything the report is made of."""

    metrics: dict[str, dict[str, Any]]  # stage -> data/metrics/<stage>.json
    evaluations: dict[str, dict[str, Any]]  # instance -> data/metrics/evaluate/<instance>.json
    records: dict[str, dict[str, list[Record]]]  # instance -> operating point -> records in order
    curves: dict[str, dict[str, list[tuple[int, float]]]]  # stage -> series -> (step, value)
    tokenizer: Path


@dataclass
class _Reader:
    """Reads files below `root` and notes the stages whose files are absent."""

    root: Path
    missing: dict[str, list[str]] = field(default_factory=dict)

    def text(self, file: str, stage: str) -> str | None:
        path = self.root / file
        if path.is_file():
            return path.read_text(encoding="utf-8")
        self.missing.setdefault(INSTANCE_OF.get(stage, stage), []).append(file)
        return None

    def json(self, file: str, stage: str) -> dict[str, Any]:
        text = self.text(file, stage)
        return {} if text is None else parse(text, file, stage)


def read_inputs(root: Path) -> Inputs:
    """All inputs; ValueError that names every stage with an absent file, or the stage whose file is broken."""
    reader = _Reader(root)
    stages = ("validate", "tokenize", *TRAINED, "speculate")
    metrics = {stage: reader.json(f"data/metrics/{stage}.json", stage) for stage in stages}
    evaluations, records = {}, {}
    for model in MODELS:
        name, stage = model.instance, f"evaluate@{model.instance}"
        evaluations[name] = reader.json(f"data/metrics/evaluate/{name}.json", stage)
        file = f"data/samples/{name}.jsonl"
        records[name] = by_point(reader.text(file, stage) or "", file, stage)
    curves = {
        stage: read_curve(reader.text(f"data/curves/{stage}.csv", stage) or "", f"data/curves/{stage}.csv", stage)
        for stage in TRAINED
    }
    tokenizer = "data/tokens/tokenizer/tokenizer.json"
    reader.text(tokenizer, "tokenize")
    if reader.missing:
        listed = "\n".join(f"  {stage}: no {', '.join(files)}" for stage, files in reader.missing.items())
        raise ValueError(
            f"the report needs what these stages write, and they have not run:\n{listed}\n`make run` runs what is missing, "
            f"or one stage: dvc repro {next(iter(reader.missing))}"
        )
    return Inputs(metrics, evaluations, records, curves, root / tokenizer)


def parse(text: str, file: str, stage: str) -> dict[str, Any]:
    """A JSON object; ValueError that says which file is broken and how to get a whole one."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file} is not whole ({error}): remove it and run the stage again (dvc repro {stage})"
        ) from error


def by_point(text: str, file: str, stage: str) -> dict[str, list[Record]]:
    """Records of a samples file by operating point."""
    found: dict[str, list[Record]] = {}
    for line in filter(str.strip, text.split("\n")):
        record = parse(line, file, stage)
        found.setdefault(record["point"], []).append(record)
    return found


def read_curve(text: str, file: str, stage: str) -> dict[str, list[tuple[int, float]]]:
    """Series of a curve file; a row holds only what was measured at its step."""
    series: dict[str, list[tuple[int, float]]] = {}
    try:
        for row in csv.DictReader(text.splitlines()):
            step = int(row.pop("step"))
            for name, value in row.items():
                if value:
                    series.setdefault(name, []).append((step, float(value)))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is not a curve ({error!r}): run the stage again (dvc repro {stage})") from error
    return series
