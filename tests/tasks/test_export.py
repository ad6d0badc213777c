"""An export carries everything other tools need, says where it comes from, and is refused before anything is written."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import model.hugging_face.face  # noqa: F401
from model.checkpoints.store import load_checkpoint, save_checkpoint
from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.text.tokenizer import add_mask_token, load_tokenizer, train_tokenizer
from model.training.mlflow_tracker import open_tracker
from model.training.tracker import RunIdentity
from tasks.export import main
from tasks.fingerprint import fingerprint
from tasks.parameters import load_params

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
PIPELINE = """stages:
  finetune_diffusion: {cmd: python -m tasks.finetune_diffusion, outs: [data/models/finetune_diffusion]}
  tune_cap:
    foreach: [tune_cap]
    do:
      cmd: python -m tasks.tune_cap
      deps: [data/models/finetune_diffusion, data/raw]
      params: [tune_cap]
      outs: ["data/models/${item}"]
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    train_tokenizer(iter(["what is one and one? it is two."] * 4), 270, root / "plain")
    add_mask_token(load_tokenizer(root / "plain"), root / "tokenizer")
    tokenizer = load_tokenizer(root / "tokenizer")
    config = NetworkConfig(
        vocabulary_size=len(tokenizer), hidden_size=16, num_layers=2, num_heads=2, feed_forward_size=24, block_tokens=8,
        attention="block_causal", maximum_positions=128, norm="rms_cast_first", eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, mask_token_id=tokenizer.convert_tokens_to_ids("<|mask|>"),
    )  # fmt: skip
    for seed, name in enumerate(("finetune_diffusion", "tune_cap")):
        network = Transformer(config)
        network.initialise(torch.Generator().manual_seed(seed))
        save_checkpoint(root / "data/models" / name, network, config, root / "tokenizer")
    (root / "data/raw").mkdir()
    (root / "data/raw/manifest.json").write_text("{}")
    (root / "dvc.yaml").write_text(PIPELINE)
    (root / "params.yaml").write_text("preset: mini\ntune_cap: {strength: 2.0}\n")
    point = {"items": 40, "score": {"value": 61.5, "low": 55.0, "high": 67.5}, "tokens_per_forward": {"value": 2.351}}
    (root / "data/metrics/evaluate").mkdir(parents=True)
    (root / "data/metrics/evaluate/tune_cap.json").write_text(
        json.dumps({"main_point": "threshold_0.9", "test": {"threshold_0.9": point}})
    )
    (root / "data/metrics/tune_cap.json").write_text(json.dumps({"val/bits_per_byte": 0.4321, "steps": 400}))
    return root


@pytest.fixture
def at_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(root)
    return root


def test_an_own_export_opens_in_transformers_with_its_tokenizer_and_holds_the_same_weights(at_root: Path) -> None:
    assert main(["--model", "data/models/tune_cap", "--to", "out/own"]) == 0
    files = {path.name for path in (at_root / "out/own").iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "modeling_unmask.py", "tokenizer.json"} <= files
    before, after = (
        load_file(at_root / folder / "model.safetensors") for folder in ("data/models/tune_cap", "out/own")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert load_checkpoint(at_root / "out/own").config == load_checkpoint(at_root / "data/models/tune_cap").config
    tokenizer = AutoTokenizer.from_pretrained(at_root / "out/own")
    face = AutoModelForCausalLM.from_pretrained(at_root / "out/own")
    turns = [{"role": "user", "content": "what is one and one?"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    answer = face.generate(inputs=ids, eos_early_stop=True, gen_length=16, block_length=8, steps=8, temperature=0.0)
    assert answer.shape[0] == 1
    assert 1 <= answer.shape[1] <= 16


def test_what_the_readme_exports_the_default_preset_can(root: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(shutil.copytree(root, tmp_path / "root"))
    checkout = Path(__file__).resolve().parents[2]
    tokenizer = load_tokenizer(root / "tokenizer")
    config = NetworkConfig(
        vocabulary_size=len(tokenizer), block_tokens=16, attention="block_causal",
        mask_token_id=tokenizer.convert_tokens_to_ids("<|mask|>"), **load_params(checkout / "presets/tiny.yaml")["network"],
    )  # fmt: skip
    save_checkpoint(Path("data/models/tune_cap"), Transformer(config), config, root / "tokenizer")
    lines = [line for line in (checkout / "README.md").read_text().splitlines() if "-m tasks.export" in line]
    assert len(lines) == 2
    for line in lines:
        assert main(shlex.split(line, comments=True)[3:]) == 0, line


@pytest.mark.slow
def test_the_card_says_what_was_measured_and_where_the_model_comes_from(at_root: Path) -> None:
    identity = fingerprint(at_root, "tune_cap@tune_cap")
    tracker = open_tracker(at_root, RunIdentity("tune_cap@tune_cap", identity.key, {"unmask.git": "abc1234"}))
    tracker.close()
    assert main(["--model", "data/models/tune_cap", "--to", "out/carded", "--name", "Tiny CAP"]) == 0
    card = (at_root / "out/carded/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# Tiny CAP" in card
    assert "| threshold_0.9 | 40 | 61.5 (55.0 to 67.5) | 2.35 |" in card
    assert "val/bits_per_byte 0.4321" in card
    for value in (tracker.run, "abc1234", identity.data_hash, identity.key, "data/models/finetune_diffusion", "mini"):
        assert value in card
    assert main(["--model", "data/models/finetune_diffusion", "--to", "out/unmeasured"]) == 0
    assert "no score is claimed" in (at_root / "out/unmeasured/README.md").read_text()


def test_a_family_export_is_that_familys_folder_with_a_card(at_root: Path) -> None:
    assert (
        main(["--model", "data/models/tune_cap", "--to", "out/qwen3", "--family", "qwen3", "--dtype", "bfloat16"]) == 0
    )
    back = load_checkpoint(at_root / "out/qwen3")
    assert back.family == "qwen3"
    source = load_checkpoint(at_root / "data/models/tune_cap", dtype=torch.bfloat16).network.state_dict()
    again = load_checkpoint(at_root / "out/qwen3", dtype=torch.bfloat16).network.state_dict()
    assert all(torch.equal(source[name], again[name]) for name in source)
    assert "`qwen3`" in (at_root / "out/qwen3/README.md").read_text()


def test_what_cannot_be_written_leaves_nothing_behind(at_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "data/models/tune_cap", "--to", "out/llada", "--family", "llada"]) == 2
    assert "cannot be written as llada" in capsys.readouterr().err
    assert not list(at_root.glob("out/llada*"))
    (at_root / "precious").mkdir()
    (at_root / "precious/notes.txt").write_text("mine")
    assert main(["--model", "data/models/tune_cap", "--to", "precious"]) == 2
    assert "no earlier export" in capsys.readouterr().err
    assert (at_root / "precious/notes.txt").read_text() == "mine"


OUTSIDE = """
import sys, json, torch
from transformers import AutoModel, AutoModelForCausalLM
assert not any(name.split(".")[0] in ("model", "tasks") for name in sys.modules)
said = {}
for folder in sys.argv[1:]:
    face = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]])
    states = face(ids, output_hidden_states=True).hidden_states[-1]
    answer = face.generate(inputs=ids, gen_length=16, block_length=8, steps=8, eos_id=2, mask_id=59)
    assert face.dtype == torch.float32 and answer.shape[0] == 1
    if "AutoModel" in face.config.auto_map:
        base = AutoModel.from_pretrained(folder, trust_remote_code=True)
        assert torch.equal(getattr(base(ids, output_hidden_states=True), "hidden_states")[-1], states)
    face.save_pretrained(folder + ".again")
    again = AutoModelForCausalLM.from_pretrained(folder + ".again", trust_remote_code=True)
    assert torch.equal(again(ids).logits, face(ids).logits)
    said[folder] = [type(face).__name__, face(ids).logits.flatten().tolist(), answer.tolist()]
print(json.dumps(said))
"""
LAYOUTS = {
    "llada": ("llada-tiny", "LLaDAModelLM"),
    "llada2_moe": ("llada2-moe-tiny", "LLaDA2MoeModelLM"),
    "minimind": ("minimind-upstream-tiny", "ExportedForCausalLM"),
    "qwen3": ("data/models/tune_cap", "ExportedForCausalLM"),
}


@pytest.mark.slow
def test_an_export_in_any_layout_opens_elsewhere_with_remote_code_under_the_public_names(at_root: Path) -> None:
    for family, (source, _) in LAYOUTS.items():
        model = source if "/" in source else str(FIXTURES / source)
        assert main(["--model", model, "--to", f"out/{family}-outside", "--family", family]) == 0
        public = FIXTURES / source / "config.json"
        wanted = json.loads(public.read_text()).get("auto_map") if public.exists() else None
        found = json.loads((at_root / f"out/{family}-outside/config.json").read_text())["auto_map"]
        assert wanted in (None, found)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(at_root / "home"), "HF_HUB_OFFLINE": "1"}
    folders = [f"out/{family}-outside" for family in LAYOUTS]
    done = subprocess.run(
        [sys.executable, "-c", OUTSIDE, *folders],
        cwd=at_root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14]])
    for family, (source, class_name) in LAYOUTS.items():
        face = AutoModelForCausalLM.from_pretrained(source if "/" in source else FIXTURES / source)
        name, logits, answer = said[f"out/{family}-outside"]
        assert name == class_name
        torch.testing.assert_close(torch.tensor(logits), face(ids).logits.flatten(), atol=1e-5, rtol=1e-5)
        options = {"gen_length": 16, "block_length": 8, "steps": 8, "eos_id": 2, "mask_id": 59}
        assert answer == face.generate(inputs=ids, **options).tolist()


def test_an_autoregressive_network_of_transformers_own_class_needs_no_code(at_root: Path) -> None:
    config = NetworkConfig(
        vocabulary_size=60, hidden_size=16, num_layers=2, num_heads=2, feed_forward_size=24, norm="rms_cast_first"
    )
    network = Transformer(config)
    network.initialise(torch.Generator().manual_seed(0))
    save_checkpoint(at_root / "causal", network, config, at_root / "none")
    assert main(["--model", "causal", "--to", "out/causal", "--family", "qwen3"]) == 0
    assert not list((at_root / "out/causal").glob("*.py"))
    assert "auto_map" not in json.loads((at_root / "out/causal/config.json").read_text())
