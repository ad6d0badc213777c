"""A real SQLite store after every kind of stage: one set of names, aligned steps, tags to filter by, models with figures."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from model.corpora import toy_world
from model.text.packing import Layout, RowWriter
from model.text.tokenizer import load_tokenizer, train_tokenizer
from model.training.logged_models import MODEL_TAG, log_models
from model.training.mlflow_tracker import MlflowTracker
from model.training.tracker import RunIdentity
from model.training.tracking import open_store
from tasks import evaluate
from tasks.convert_to_diffusion import convert_to_diffusion
from tasks.distill_draft import distill_draft
from tasks.finetune_ar import finetune_ar
from tasks.finetune_diffusion import finetune_diffusion
from tasks.pretrain_ar import pretrain_ar
from tasks.pretrain_diffusion import pretrain_diffusion
from tasks.stage import Stage
from tasks.tune_cap import tune_cap

TRAINED = {"train/loss", "train/tokens_per_second", "train/learning_rate", "train/gradient_norm"}
TRAINED |= {"val/loss", "val/bits_per_byte", "val/accuracy"}
EVALUATED = {"eval/score", "eval/people/accuracy", "eval/knowledge/score", "eval/tpf", "eval/sweep/score"}
LOOP = {
    "steps": 4,
    "batch_rows": 2,
    "learning_rate": 1e-3,
    "warmup_steps": 1,
    "log_every_steps": 2,
    "validate_every_steps": 2,
}
HIDING = {"hiding": {"draw": "iid_t", "minimum_fraction": 0.1, "maximum_fraction": 0.9}}
STAGES = {  # address -> its function and its own settings
    "pretrain_ar": (pretrain_ar, LOOP),
    "convert_to_diffusion": (convert_to_diffusion, {"block_tokens": 8}),
    "pretrain_diffusion": (pretrain_diffusion, LOOP | HIDING | {"objective": "masked_diffusion"}),
    "finetune_ar": (finetune_ar, LOOP),
    "finetune_diffusion": (finetune_diffusion, LOOP | HIDING | {"objective": "block_diffusion"}),
    "distill_draft": (distill_draft, LOOP | HIDING | {"layers": 2, "teacher_share": 0.7, "direction": "forward"}),
    "tune_cap@tune_cap": (tune_cap, LOOP | HIDING | {"strength": 2.0, "temperature": 0.5}),
    "evaluate@finetune_diffusion": (
        evaluate.main,
        {"test_items": 1, "sweep_items": 1, "validation_items": 1, "max_new_tokens": 8, "thresholds": [0.9]},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A root where every stage has run, and the MLflow run of each."""
    root = tmp_path_factory.mktemp("stages")
    texts = write_benchmark(root / "data/raw/benchmarks")
    train_tokenizer(iter(texts * 9), 290, root / "data/tokens/tokenizer")
    tokenizer = load_tokenizer(root / "data/tokens/tokenizer")
    layout = Layout(32, 8, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    for place in ("pretrain/train", "pretrain/validation", "instructions/train", "instructions/validation"):
        writer = RowWriter(root / "data/tokens" / place / "world", layout)
        tokens, real = np.random.default_rng(0).integers(10, 200, (8, 32)), np.ones((8, 32), bool)
        writer.append(tokens, np.zeros((8, 4)), real, real)
        writer.counts.bytes = 8 * 32
        writer.close()
    mixture = {"pretrain": {"world": 1.0}, "instructions": {"world": 1.0}}
    (root / "data/tokens/mixture.json").write_text(json.dumps(mixture))
    network = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "feed_forward_size": 24, "maximum_positions": 512}
    params = {"network": network, "tokenize": {"block_tokens": 8, "row_tokens": 32}}
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy_world, "BENCHMARKS", {"people": "knowledge"})
        for address, (main, section) in STAGES.items():
            name, _, instance = address.partition("@")
            tracker = MlflowTracker(
                root, RunIdentity(address, address, {"unmask.stage": name, "unmask.preset": "test"})
            )
            tracker.log_params(section)
            work = root / ".work" / address
            work.mkdir(parents=True)
            main(Stage(name, instance or None, params, section, 0, 1, root, work, address, {}, tracker))
            tracker.close()
            shutil.rmtree(work)
            found[address] = tracker.run
    return root, found


def write_benchmark(folder: Path) -> list[str]:
    folder.mkdir(parents=True)
    texts = []
    for split in ("validation", "test"):
        rows = toy_world.questions(toy_world.WorldConfig(), "people", split, 1)
        texts += [row["question"] + row["answer"] for row in rows]
        (folder / f"people.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return texts


def test_every_stage_uses_the_same_names_and_steps_for_the_same_things(runs: tuple[Path, dict[str, str]]) -> None:
    root, found = runs
    client, _ = open_store(root)
    for address, run in found.items():
        names = set(client.get_run(run).data.metrics)
        if address.startswith("evaluate"):
            assert names >= EVALUATED
        elif address != "convert_to_diffusion":
            assert names >= TRAINED, address
            for metric in ("train/loss", "train/tokens_per_second", "val/bits_per_byte"):
                assert [point.step for point in client.get_metric_history(run, metric)] == [2, 4], (address, metric)
            plots = {file.path for file in client.list_artifacts(run, "plots")}
            assert plots == {"plots/curve.csv", "plots/curves.png"}
    plots = {file.path for file in client.list_artifacts(found["evaluate@finetune_diffusion"], "plots")}
    assert plots == {"plots/score_against_tpf.png"}


def test_a_checkpoint_is_a_model_with_the_figures_of_training_and_evaluation(runs: tuple[Path, dict[str, str]]) -> None:
    root, found = runs
    client, experiment = open_store(root)
    before = [client.get_metric_history(found["finetune_diffusion"], name) for name in sorted(TRAINED)]
    made = log_models(root, found)
    assert set(made) == {address.partition("@")[2] or address for address in found if "evaluate" not in address}
    assert log_models(root, found) == made  # a second look makes nothing
    model = client.get_logged_model(made["finetune_diffusion"])
    assert {metric.key for metric in model.metrics} >= TRAINED | EVALUATED
    assert model.source_run_id == found["finetune_diffusion"] and model.params["steps"] == "4"
    assert str(model.status) == "READY" and model.tags["unmask.preset"] == "test"
    after = [client.get_metric_history(found["finetune_diffusion"], name) for name in sorted(TRAINED)]
    assert [len(points) for points in after] == [len(points) for points in before]  # linking doubles no point
    best = client.search_logged_models([experiment], "metrics.`val/bits_per_byte` > 0 AND name = 'tune_cap'")
    assert [each.model_id for each in best] == [made["tune_cap"]]
    about = client.search_runs([experiment], f"tags.`{MODEL_TAG}` = 'finetune_diffusion'")
    assert {run.info.run_name for run in about} == {"finetune_diffusion", "evaluate@finetune_diffusion"}
