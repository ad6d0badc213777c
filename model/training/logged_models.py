"""Checkpoints as MLflow models: the run that made one, its settings, and every figure that training and evaluation have of it.

MLflow's model page and its charts then compare checkpoints by `train/loss`, `val/bits_per_byte`, `eval/score` and `eval/tpf`
alike, though the figures come from different runs. Weights are not stored again: a model says where they are.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from model.training.tracking import open_store

MODEL_TAG = "unmask.model"  # of runs and models: the folder under data/models that they are about
EVALUATE = "evaluate"
KIND_TAG, KIND = (
    "mlflow.experimentKind",
    "custom_model_development",
)  # the pages then speak of runs and models, not of agents
PASSED_ON = ("unmask.key", "unmask.preset", "unmask.git", "unmask.data", "unmask.stage")


def log_models(root: Path, runs: Mapping[str, str]) -> dict[str, str]:
    """Checkpoint name -> MLflow model, for every stage of `runs` (address -> run) that made one; what is there is left alone."""
    client, experiment = open_store(root)
    made = {}
    for address, run in runs.items():
        stage, _, instance = address.partition("@")
        name = instance or stage
        if stage == EVALUATE:
            _tag(client, run, name)
        elif (root / "data/models" / name / "config.json").is_file():
            _tag(client, run, name)
            made[name] = _find(client, experiment, name, run) or _create(client, experiment, name, run)
            link_figures(client, made[name], filter(None, (run, runs.get(f"{EVALUATE}@{name}"))))
    return made


def link_figures(client: Any, model: str, runs: Iterable[str]) -> None:
    """The last point of every metric of the runs becomes the model's too; the runs' own curves stay as they are."""
    from mlflow.entities import Metric

    known = {metric.run_id for metric in client.get_logged_model(model).metrics or []}
    for run in runs:
        if run in known:
            continue
        last = [client.get_metric_history(run, name)[-1] for name in client.get_run(run).data.metrics]
        # The same point again, key, time, step and value: the store keeps one of the run's and adds the model's.
        points = [Metric(each.key, each.value, each.timestamp, each.step, model_id=model, run_id=run) for each in last]
        if points:
            client.log_batch(run, metrics=points)


def _tag(client: Any, run: str, name: str) -> None:
    if client.get_run(run).data.tags.get(MODEL_TAG) != name:
        client.set_tag(run, MODEL_TAG, name)


def _find(client: Any, experiment: str, name: str, run: str) -> str | None:
    found = client.search_logged_models([experiment], f"name = '{name}' AND source_run_id = '{run}'", max_results=1)
    return str(found[0].model_id) if found else None


def _create(client: Any, experiment: str, name: str, run: str) -> str:
    data = client.get_run(run).data
    tags = {tag: data.tags[tag] for tag in PASSED_ON if tag in data.tags} | {MODEL_TAG: name}
    model = client.create_logged_model(
        experiment, name=name, source_run_id=run, tags=tags, params=dict(data.params), model_type="checkpoint"
    )
    where = {"path": f"data/models/{name}", "run": run, "artifact": "checkpoint"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint.json"
        file.write_text(json.dumps(where, indent=1) + "\n", encoding="utf-8")
        client.log_model_artifact(model.model_id, str(file))
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)
