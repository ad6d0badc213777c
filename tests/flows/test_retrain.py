"""Retraining from end to end on a miniature pipeline: real data, validation, registry and gate; only training is a stand-in."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from flows.start import alone
from model.apps.registered import checkpoint_of_version
from model.training.tracking import open_store
from tasks.promotion import decisions
from tasks.promotion.champions import aliases, version_of
from tests.conftest import Checkout
from tests.flows.test_pipeline import descendants

DRAFT, TARGET = "unmask-draft", "unmask-target"
# Makes all three checkpoints from nothing but the bytes of the validated text.
LEARN = '''
"""A stand-in for training: python -m tasks.learn"""
import hashlib
from dataclasses import replace

import torch

from model.checkpoints.derive import layer_subset
from model.checkpoints.store import save_checkpoint
from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.text.tokenizer import add_mask_token, load_tokenizer, train_tokenizer
from tasks.stage import run_stage


def learn(stage):
    text = b"".join(path.read_bytes() for path in sorted((stage.root / "data/validated").rglob("*.jsonl")))
    train_tokenizer(iter(["what is one and one? it is two."] * 4), 270, stage.work / "plain")
    mask = add_mask_token(load_tokenizer(stage.work / "plain"), stage.work / "tokenizer")
    tokenizer = load_tokenizer(stage.work / "tokenizer")
    config = NetworkConfig(
        vocabulary_size=len(tokenizer), hidden_size=16, num_layers=2, num_heads=2, feed_forward_size=24,
        attention="block_causal", block_tokens=4, mask_token_id=mask, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, maximum_positions=512,
    )
    network = Transformer(config)
    network.initialise(torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:4])))
    models = stage.root / "data/models"
    for name in ("finetune_diffusion", "tune_cap"):
        save_checkpoint(models / name, network, config, stage.work / "tokenizer")
    draft = layer_subset(network, [0])
    save_checkpoint(models / "distill_draft", draft, replace(config, num_layers=1), stage.work / "tokenizer")
    (stage.root / "log.txt").open("a").write("learn\\\\n")


if __name__ == "__main__":
    run_stage(learn, "learn")
'''
PIPELINE = """
stages:
  download:
    cmd: python -m tasks.download
    deps: [model/corpora, tasks/download.py]
    params: [seed, toy_world, download]
    outs: [{data/raw: {persist: true}}]
    always_changed: true
  validate:
    cmd: python -m tasks.validate
    deps: [data/raw, data/suites, model/corpora, tasks/validate.py]
    params: [validate]
    outs: [data/validated, data/quarantine, data/reports/validation]
    metrics: [{data/metrics/validate.json: {cache: false}}]
  learn:
    cmd: python -m tasks.learn
    deps: [data/validated, tasks/learn.py]
    params: [seed, learn, evaluate, speculate, tokenize]
    outs: [data/models/finetune_diffusion, data/models/tune_cap, data/models/distill_draft]
  register:
    cmd: python -m tasks.register
    deps:
      - data/models/finetune_diffusion
      - data/models/tune_cap
      - data/models/distill_draft
      - data/raw/manifest.json
      - data/validated
      - tasks/register.py
    params: [register]
    always_changed: true
"""
PARAMS = """
preset: mini
seed: 0
threads: 1
toy_world: {difficulty: 1, num_people: 20}
download:
  pretrain: {books: {source: files, paths: [data/inbox], license: CC0-1.0}}
  benchmarks: {source: toy_world, validation_items: 1, test_items: 1}
validate: {maximum_characters: 2000}
tokenize: {validation_fraction: 0.3}
learn: {}
evaluate:
  {test_items: 1, sweep_items: 1, validation_items: 1, max_new_tokens: 8, thresholds: [0.9], tokens_per_step: [1]}
speculate:
  {prompts_per_benchmark: 1, max_new_tokens: 8, batch_rows: 16, policies: {p: {name: one_token}}, sources: [draft], depths: [2]}
register: {}
retrain: {models: [unmask-target], tpf_tolerance: 1.0}
"""


class Plant:
    """The checkout, a Prefect server, and what can be asked about both."""

    def __init__(self, checkout: Checkout, api: str) -> None:
        self.checkout, self.root, self.api = checkout, checkout.root, api

    def drop(self, name: str, *texts: str) -> None:
        folder = self.root / "data/inbox"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def run(self, flow: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.checkout.python("-m", f"flows.{flow}", *arguments, PREFECT_API_URL=self.api)

    @property
    def champion(self) -> tuple[str, str]:
        """Versions of the target and of its draft."""
        client, _ = open_store(self.root)
        return aliases(client, TARGET)["champion"], aliases(client, DRAFT)["draft"]

    def tags(self, number: str) -> dict[str, str]:
        return version_of(open_store(self.root)[0], TARGET, number).tags

    def artifacts(self, key: str) -> list[str]:
        with sqlite3.connect(self.root / ".prefect/prefect.db") as database:
            query = (
                "select coalesce(data, '') || coalesce(description, '') from artifact where key = ? order by created"
            )
            return [row[0] for row in database.execute(query, (key,))]


@pytest.fixture
def plant(checkout: Checkout, request: pytest.FixtureRequest) -> Plant:
    root = checkout.root
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "params.yaml").write_text(PARAMS)
    (root / "tasks/learn.py").write_text(LEARN.lstrip().replace("\\\\n", "\\n"))
    from flows.server import free_port

    port = free_port(0)
    api = f"http://127.0.0.1:{port}/api"
    settings = {"PREFECT_HOME": str(root / ".prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    server = start_prefect(checkout, settings, "server", "start", "--host", "127.0.0.1", "--port", str(port))
    request.addfinalizer(lambda: kill(server))
    wait_for(lambda: answers(f"{api}/health"), 240)
    return Plant(checkout, api)


def start_prefect(checkout: Checkout, settings: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    """`prefect ARGUMENTS` without waiting; what it says goes to a file, for a pipe that nobody reads would stop it."""
    with (checkout.root / f".work-{arguments[0]}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=checkout.root,
            env=checkout.environment | settings | {"DO_NOT_TRACK": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to it and all that it has started."""
    for each in (process.pid, *descendants(process.pid)):
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    process.wait()


def answers(url: str) -> bool:
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def wait_for(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


BOOKS = [f"In year {n} the river was {'high' if n % 3 else 'low'} and {n % 7} boats came by." for n in range(60)]
NEWS = [f"In year {n} the harbour was closed because of the ice on the river." for n in range(60, 90)]


@pytest.mark.slow
def test_new_data_is_judged_poison_is_stopped_nothing_new_ends_at_once_and_a_rollback_goes_back(plant: Plant) -> None:
    plant.drop("first.jsonl", *BOOKS)
    first = plant.checkout.python("-m", "dvc", "repro", PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert first.returncode == 0, first.stdout
    assert plant.champion == ("1", "1")
    assert [entry["action"] for entry in decisions.read(plant.root)] == ["first"] * 3

    # New data: challenger 2 is judged against champion 1 and takes its place, the draft with it, although the
    # champion's checkpoint is in data/ no more.
    plant.drop("second.jsonl", *NEWS)
    new = plant.run("retrain")
    assert new.returncode == 0, new.stdout
    assert plant.champion == ("2", "2"), new.stdout
    tags = plant.tags("2")
    assert (tags["unmask.decision"], tags["unmask.licenses"]) == ("promoted", "CC0-1.0")
    entry = decisions.read(plant.root)[-1]
    assert (entry["action"], entry["from"], entry["to"], entry["draft"]) == ("promoted", "1", "2", "2")
    assert set(entry["numbers"]) == {"tokens_per_step=1", "threshold=0.90"}
    assert "version 2 promoted" in plant.artifacts("promotion")[-1]
    drift = json.loads((plant.root / "data/reports/drift.json").read_text())
    (row,) = drift["rows"]
    assert (row["rows_before"], row["rows"]) == (60, 90)
    assert row["vocabulary"] > 0 and row["script"] == 0 and row["bits_per_byte_now"] > 0
    assert "ALARM" in plant.artifacts("drift")[-1] and "retrain.alarm_length" in plant.artifacts("drift")[-1]

    # Nothing new: in seconds, no stage but the look has run, no model was loaded, nothing was decided.
    before = (plant.root / decisions.LOG).read_bytes()
    started = time.monotonic()
    again = plant.run("retrain")
    took = time.monotonic() - started
    assert again.returncode == 0, again.stdout
    assert "nothing is new" in again.stdout
    assert took < 30 * patience(), took  # 30 s on an idle machine
    assert plant.checkout.runs_of("learn") == 2
    assert (plant.root / decisions.LOG).read_bytes() == before

    # A poisoned drop: validation stops it before anything is trained.
    plant.drop("third.jsonl", *BOOKS[:3], "", "a\u0000b", "x" * 2001)
    poisoned = plant.run("retrain")
    assert poisoned.returncode == 1, poisoned.stdout
    assert "pretrain/books" in poisoned.stdout and "rows are bad" in poisoned.stdout
    assert plant.champion == ("2", "2")
    assert plant.checkout.runs_of("learn") == 2
    assert decisions.read(plant.root)[-1]["action"] == "stopped"
    assert "Stopped, champions as they were" in plant.artifacts("promotion")[-1]

    # A rollback waits for nobody, while a retrain is refused.
    with alone(plant.root):
        refused = plant.run("retrain")
        assert (refused.returncode, "a run is under way" in refused.stdout) == (2, True)
        back = plant.run("rollback", "--reason", "the answers got short")
    assert back.returncode == 0, back.stdout
    assert plant.champion == ("1", "1")
    assert decisions.read(plant.root)[-1]["reasons"] == ["the answers got short"]
    nothing = plant.checkout.python("-m", "tasks.rollback")
    assert (nothing.returncode, "replaced none" in nothing.stdout) == (2, True)

    # A challenger whose weights are no numbers is refused, and says which.
    weights = checkpoint_of_version(plant.root, TARGET, "2") / "model.safetensors"
    tensors = load_file(weights)
    tensors["embedding.weight"][5, 3] = float("nan")
    save_file(tensors, weights)
    judged = plant.run("promote", "--model", TARGET)
    assert judged.returncode == 0, judged.stdout
    assert plant.champion == ("1", "1")
    entry = decisions.read(plant.root)[-1]
    assert (entry["action"], entry["to"]) == ("refused", "2")
    assert any(reason.startswith("finite: embedding.weight") for reason in entry["reasons"])
    assert plant.tags("2")["unmask.decision"] == "refused"


def patience() -> float:
    """How much longer than on an idle machine things may take."""
    return max(1.0, os.getloadavg()[0])
