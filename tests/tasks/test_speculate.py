"""The speculate stage on random networks: nothing changes, everything is counted."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from model.checkpoints.derive import first_and_last_layers, layer_subset
from model.checkpoints.store import save_checkpoint
from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.text.tokenizer import add_mask_token, load_tokenizer, train_tokenizer
from tasks.speculate import speculate

WORDS = "the red boat has nine lamps and the blue boat has two"


class Quiet:
    def log_metrics(self, metrics, step=0) -> None:
        assert all(isinstance(value, float) for value in metrics.values())


@pytest.fixture
def stage(tmp_path):
    torch.set_num_threads(1)
    train_tokenizer(iter([WORDS] * 50), 300, tmp_path / "plain")
    mask = add_mask_token(load_tokenizer(tmp_path / "plain"), tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    config = NetworkConfig(
        vocabulary_size=len(tokenizer), hidden_size=32, num_layers=4, num_heads=2, feed_forward_size=48,
        attention="block_causal", block_tokens=8, mask_token_id=mask, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, maximum_positions=128,
    )  # fmt: skip
    network = Transformer(config)
    network.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    models = tmp_path / "data/models"
    models.mkdir(parents=True)
    for name in ("finetune_diffusion", "tune_cap"):
        save_checkpoint(models / name, network, config, tmp_path / "tokenizer")
    draft = layer_subset(network, first_and_last_layers(4, 2))
    save_checkpoint(models / "distill_draft", draft, replace(config, num_layers=2), tmp_path / "tokenizer")
    benchmarks = tmp_path / "data/raw/benchmarks"
    benchmarks.mkdir(parents=True)
    rows = [{"question": f"{WORDS[:length]}?", "answer": "2"} for length in (8, 20, 33)]
    rows.insert(1, {"question": WORDS * 50, "answer": "2"})  # longer than the context
    (benchmarks / "boats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate = {"tasks": ["boats"], "local": {"boats": {"path": "boats.jsonl"}}}
    section = {
        "prompts_per_benchmark": 3, "max_new_tokens": 20, "batch_rows": 2, "sources": ["draft", "stale"], "depths": [1, 3],
        "policies": {"one_token": {"name": "one_token"}, "sure": {"name": "threshold", "threshold": 0.5}},
    }  # fmt: skip
    work = tmp_path / ".work"
    work.mkdir()

    def publish(made, out):
        (tmp_path / out).parent.mkdir(parents=True, exist_ok=True)
        made.rename(tmp_path / out)

    return SimpleNamespace(
        name="speculate",
        root=tmp_path,
        work=work,
        section=section,
        params={"speculate": section, "evaluate": evaluate},
        seed=0,
        tracker=Quiet(),
        publish=publish,
    )


def test_every_combination_is_measured_and_none_changes_a_token(stage, capsys):
    speculate(stage)
    assert "1 of 3 prompts are longer than 108 tokens: left out" in capsys.readouterr().out
    found = json.loads((stage.root / "data/metrics/speculate.json").read_text())
    assert found["num_prompts"] == 2 and len(found["rows"]) == 2 * 2 * 2 * 2
    for row in found["rows"]:
        assert row["identical_fraction"] == 1.0
        assert row["target_forwards"] <= row["plain_target_forwards"]
        assert row["forwards_ratio"] == round(row["plain_target_forwards"] / row["target_forwards"], 4)
        assert (row["draft_forwards"] > 0) == (row["source"] == "draft")
        assert all(0 <= share <= 1 for share in row["acceptance"].values())
    assert any(row["forwards_ratio"] > 1 for row in found["rows"])


def test_an_unknown_source_and_missing_prompts_are_refused(stage):
    stage.section["sources"] = ["crystal"]
    with pytest.raises(ValueError, match="draft or stale"):
        speculate(stage)
    (stage.root / "data/raw/benchmarks/boats.jsonl").unlink()
    with pytest.raises(ValueError, match="run the download stage"):
        speculate(stage)
