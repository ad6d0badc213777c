"""What is registered: once per checkpoint, again when it is missing, and usable from anywhere."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.server import free_port, wait_until_healthy
from model.apps.registered import registered_checkpoint
from model.checkpoints.store import save_checkpoint
from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.text.tokenizer import add_mask_token, load_tokenizer, train_tokenizer
from model.training.tracking import open_store, tracking_uri
from tasks.register import MODELS, hash_of_folder, register
from tasks.stage import open_stage
from tests.conftest import Checkout

PIPELINE = (
    "stages:\n"
    + "".join(f"  {name}: {{cmd: python -m tasks.{name}, outs: [data/models/{name}]}}\n" for name in MODELS.values())
    + "  register: {cmd: python -m tasks.register, always_changed: true}\n"
)


def write_checkpoint(root: Path, stage: str, seed: int) -> None:
    tokenizer_folder = root / "tokenizer"
    if not tokenizer_folder.exists():
        train_tokenizer(iter(["what is one and one? it is two."] * 4), 270, root / "plain")
        add_mask_token(load_tokenizer(root / "plain"), tokenizer_folder)
    tokenizer = load_tokenizer(tokenizer_folder)
    config = NetworkConfig.from_dict(
        {
            "hidden_size": 16, "feed_forward_size": 32, "num_layers": 1, "num_heads": 2,
            "vocabulary_size": len(tokenizer), "block_tokens": 4,
            "attention": "block_causal", "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
            "mask_token_id": tokenizer.convert_tokens_to_ids("<|mask|>"), "maximum_positions": 64,
        }
    )  # fmt: skip
    network = Transformer(config)
    network.initialise(torch.Generator().manual_seed(seed))
    save_checkpoint(root / "data/models" / stage, network, config, tokenizer_folder)


@pytest.fixture
def trained(checkout: Checkout) -> Checkout:
    (checkout.root / "dvc.yaml").write_text(PIPELINE)
    checkout.settings({"register": []})
    for seed, stage in enumerate(MODELS.values()):
        write_checkpoint(checkout.root, stage, seed)
    return checkout


def run_register(checkout: Checkout) -> dict[str, dict[str, Any]]:
    """Registers; name -> its aliases and the number of its versions."""
    with open_stage("register", checkout.root) as stage:
        register(stage)
    client, _ = open_store(checkout.root)
    return {
        name: {
            **{alias: str(version) for alias, version in client.get_registered_model(name).aliases.items()},
            "versions": len(client.search_model_versions(f"name = '{name}'")),
        }
        for name in MODELS
    }


def test_each_checkpoint_is_registered_once_and_a_champion_is_never_replaced(trained: Checkout) -> None:
    first = run_register(trained)
    both = {"challenger": "1", "champion": "1", "versions": 1}
    assert first == {name: both | ({"draft": "1"} if name == "unmask-draft" else {}) for name in MODELS}
    assert run_register(trained) == first

    measured = trained.root / "data/metrics/evaluate/tune_cap.json"
    measured.parent.mkdir(parents=True)
    figures = {"score": {"value": 70.5}, "tokens_per_forward": {"value": 3.25}}
    measured.write_text(json.dumps({"main_point": "t", "test": {"t": figures}}))
    write_checkpoint(trained.root, "tune_cap", 9)
    second = run_register(trained)
    assert second["unmask-target-cap"] == {"challenger": "2", "champion": "1", "versions": 2}
    assert second["unmask-target"] == first["unmask-target"]
    client, _ = open_store(trained.root)
    tags = client.get_model_version("unmask-target-cap", "2").tags
    assert (tags["eval.score"], tags["eval.tpf"]) == ("70.5", "3.25")
    assert tags["unmask.draft_version"] == "1"
    assert tags["unmask.parent_version"] == "unmask-target/1"
    assert tags["unmask.champion_then"] == "1"
    assert {"unmask.git", "unmask.data", "unmask.pipeline_run", "unmask.checkpoint", "unmask.dvc_lock"} <= set(tags)

    # Going back to the first checkpoint makes its version the challenger again, not a third one.
    write_checkpoint(trained.root, "tune_cap", list(MODELS).index("unmask-target-cap"))
    assert run_register(trained)["unmask-target-cap"] == {"challenger": "1", "champion": "1", "versions": 2}

    # What is gone from the registry, or from the disk, comes back.
    folder = Path(client.get_model_version_download_uri("unmask-draft", "1").removeprefix("file://"))
    shutil.rmtree(folder)
    client.delete_registered_model("unmask-target")
    third = run_register(trained)
    assert third["unmask-draft"]["versions"] == 2
    assert third["unmask-draft"]["challenger"] == "2"
    assert third["unmask-target"] == {"challenger": "1", "champion": "1", "versions": 1}


def test_a_version_answers_from_any_folder_without_this_repository(trained: Checkout, tmp_path: Path) -> None:
    run_register(trained)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    script = (
        "import sys, mlflow, pandas as pd\n"
        f"mlflow.set_tracking_uri({tracking_uri(trained.root)!r})\n"
        "loaded = mlflow.pyfunc.load_model('models:/unmask-target-cap@champion')\n"
        "import model.apps.answer as code\n"
        "assert 'mlruns' in code.__file__, code.__file__\n"
        "answers = loaded.predict(pd.DataFrame({'prompt': ['what is one?', 'and two?']}))\n"
        "assert [type(answer) for answer in answers] == [str, str], answers\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=elsewhere,
        env=trained.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    stored = [path for path in (trained.root / "mlruns").rglob("*") if path.suffix in (".pkl", ".pickle")]
    assert not stored


@pytest.mark.slow
def test_versions_behind_a_server_are_found_again_and_their_files_fetched_once(
    trained: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    port, kept = free_port(0), tmp_path / "kept-by-the-server"
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--artifacts-destination", str(kept)]
    with (tmp_path / "server.log").open("wb") as log:
        settings = trained.environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen([sys.executable, "-m", *command], env=settings, stdout=log, stderr=log)
    request.addfinalizer(lambda: (server.terminate(), server.wait()))
    assert wait_until_healthy(f"http://127.0.0.1:{port}/health", server), (tmp_path / "server.log").read_text()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    first = run_register(trained)
    assert {each["versions"] for each in first.values()} == {1}
    assert run_register(trained) == first  # nothing is registered twice

    folder = registered_checkpoint(trained.root, "unmask-target", "champion")
    assert folder.is_relative_to(trained.root / ".work")
    assert hash_of_folder(folder) == hash_of_folder(trained.root / "data/models/finetune_diffusion")
    (folder / "mark").touch()
    assert (registered_checkpoint(trained.root, "unmask-target", "champion") / "mark").exists()  # not fetched again

    shutil.rmtree(kept)
    assert {name: each["versions"] for name, each in run_register(trained).items()} == dict.fromkeys(MODELS, 2)


def test_a_missing_checkpoint_is_named(trained: Checkout) -> None:
    shutil.rmtree(trained.root / "data/models/tune_cap")
    with pytest.raises(ValueError, match="run stage tune_cap first"), open_stage("register", trained.root) as stage:
        register(stage)
