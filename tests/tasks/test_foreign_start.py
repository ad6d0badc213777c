"""Stages start from other people's checkpoints: any AR family becomes a diffusion network, any diffusion family can teach."""

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.checkpoints.store import export_checkpoint, load_checkpoint
from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.text.packing import Layout, RowWriter
from model.text.tokenizer import load_tokenizer, train_tokenizer
from tasks.contradictions import check_recipe
from tasks.convert_to_diffusion import convert_to_diffusion
from tasks.distill_draft import distill_draft
from tasks.fingerprint import fingerprint
from tasks.stage import Stage
from tasks.tune_cap import tune_cap

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
AR_FAMILIES = {  # what each family fixes
    "llama": {"norm": "rms_cast_first", "query_key_norm": False, "tie_embeddings": False},
    "qwen2": {"norm": "rms_cast_first", "query_key_norm": False, "attention_bias": "query_key_value"},
    "qwen3": {"norm": "rms_cast_first", "tie_embeddings": False},
    "minimind": {"norm": "rms"},
}


class Silent:
    """Records nothing."""

    def __getattr__(self, name: str):
        return lambda *arguments, **named: None


def stage(root: Path, name: str, section: dict, instance: str | None = None) -> SimpleNamespace:
    (root / "work").mkdir(exist_ok=True)
    made = SimpleNamespace(
        name=name, instance=instance, address=name, section=section, seed=0, root=root, work=root / "work",
        tracker=Silent(),
    )  # fmt: skip
    made.publish = partial(Stage.publish, made)
    return made


@pytest.mark.parametrize("family", AR_FAMILIES)
def test_an_ar_network_of_any_family_becomes_a_diffusion_network_with_a_mask_token(family: str, tmp_path: Path) -> None:
    train_tokenizer(iter(["one two three"] * 20), 270, tmp_path / "tokenizer")
    words = len(load_tokenizer(tmp_path / "tokenizer"))
    higher = words + 10 if family == "qwen3" else words  # Qwen's tables have more rows than its tokenizer has tokens
    config = NetworkConfig(
        vocabulary_size=higher, hidden_size=16, num_layers=2, num_heads=2, feed_forward_size=24, **AR_FAMILIES[family]
    )
    network = Transformer(config)
    network.initialise(torch.Generator().manual_seed(0))
    export_checkpoint(tmp_path / "theirs", network, config, family, tmp_path / "tokenizer")
    convert_to_diffusion(stage(tmp_path, "convert_to_diffusion", {"block_tokens": 8, "start_from": "theirs"}))
    made = load_checkpoint(tmp_path / "data/models/convert_to_diffusion")
    assert (made.config.attention, made.config.mask_token_id, made.config.block_tokens) == ("bidirectional", words, 8)
    assert load_tokenizer(tmp_path / "data/models/convert_to_diffusion").mask_token_id == words
    before, after = network.state_dict(), made.network.state_dict()
    for name in ("embedding.weight", "unembedding.weight"):
        assert torch.equal(after[name][:words], before[name][:words])
        torch.testing.assert_close(after[name][words], before[name][:words].mean(0))
    assert all(torch.equal(after[name], before[name]) for name in before if "embedding" not in name)


@pytest.fixture
def llada2(tmp_path: Path) -> Path:
    """The public miniature as a folder that names its mask token, and rows of its vocabulary."""
    shutil.copytree(FIXTURES / "llada2-moe-tiny", tmp_path / "llada2")
    values = json.loads((tmp_path / "llada2/config.json").read_text())
    (tmp_path / "llada2/config.json").write_text(json.dumps(values | {"mask_token_id": 123, "eos_token_id": 120}))
    for split in ("train", "validation"):
        writer = RowWriter(tmp_path / "data/tokens/instructions" / split / "chat", Layout(32, 32, 128, 120, 120))
        tokens = np.random.default_rng(0).integers(0, 100, (8, 32))
        writer.append(tokens, np.zeros((8, 1)), np.ones((8, 32), bool), np.ones((8, 32), bool))
        writer.counts.bytes = 8 * 32
        writer.close()
    (tmp_path / "data/tokens/mixture.json").write_text(json.dumps({"instructions": {"chat": 1.0}}))
    return tmp_path


TRAINING = {"steps": 2, "batch_rows": 2, "learning_rate": 1e-3, "warmup_steps": 1, "start_from": "llada2"}


def test_a_mixture_of_llada2_teaches_a_draft_and_is_tuned_by_cap(llada2: Path) -> None:
    section = TRAINING | {"layers": 2, "teacher_share": 0.7, "direction": "forward"}
    distill_draft(stage(llada2, "distill_draft", section))
    draft = load_checkpoint(llada2 / "data/models/distill_draft")
    assert (draft.config.num_layers, draft.config.num_dense_layers, draft.config.num_experts) == (2, 1, 8)
    tune_cap(stage(llada2, "tune_cap", TRAINING | {"strength": 2.0, "temperature": 0.5}, "tune_cap"))
    tuned, source = (load_checkpoint(llada2 / folder).network for folder in ("data/models/tune_cap", "llada2"))
    changed = {name for name, value in tuned.state_dict().items() if not torch.equal(value, source.state_dict()[name])}
    assert "layers.2.feed_forward.gate_up" in changed
    assert not any("expert_bias" in name for name in changed)  # frozen unless balanced is asked for


def test_a_student_of_its_own_must_share_the_teachers_tokens_and_blocks(llada2: Path) -> None:
    shutil.copytree(llada2 / "llada2", llada2 / "student")
    section = TRAINING | {"student": "student", "layers": 2, "teacher_share": 0.7, "direction": "forward"}
    distill_draft(stage(llada2, "distill_draft", section))
    assert load_checkpoint(llada2 / "data/models/distill_draft").config.num_layers == 3
    values = json.loads((llada2 / "student/config.json").read_text())
    (llada2 / "student/config.json").write_text(json.dumps(values | {"mask_token_id": 122}))
    with pytest.raises(ValueError, match=r"distill_draft\.student student has mask_token_id 122, its teacher \(llada2"):
        distill_draft(stage(llada2, "distill_draft", section))
    with pytest.raises(ValueError, match="which_layers 'middle' must be one of first_and_last, even, last"):
        distill_draft(stage(llada2, "distill_draft", section | {"student": None, "which_layers": "middle"}))


def test_a_draft_learns_from_answers_on_disk(llada2: Path) -> None:
    section = TRAINING | {"layers": 2, "teacher_share": 1.0, "direction": "forward", "log_every_steps": 1}
    first = {}
    for name, more in (
        ("asked", {}),
        ("told", {"teacher_cache": {"top_k": 128}}),
        ("again", {"teacher_cache": {"top_k": 128}}),
    ):
        distill_draft(stage(llada2, "distill_draft", section | more))
        weights = load_checkpoint(llada2 / "data/models/distill_draft").network.state_dict()
        first[name] = weights["layers.1.feed_forward.gate_up"]
    assert torch.equal(first["told"], first["again"]) and not torch.equal(first["told"], first["asked"])
    assert len(list((llada2 / ".work/teacher_cache").glob("*/meta.json"))) == 1
    with pytest.raises(ValueError, match="teacher_cache and mask_noise exclude each other"):
        check_recipe({"distill_draft": section | {"mask_noise": {"scale": 1.0, "steps": 1}, "teacher_cache": {}}})
    with pytest.raises(ValueError, match=r"teacher_cache\.top_k 999 is more than tokenize\.vocabulary_size 128"):
        check_recipe({"distill_draft": {"teacher_cache": {"top_k": 999}}, "tokenize": {"vocabulary_size": 128}})


def test_every_switch_of_the_recipe_works_in_a_stage_and_leaves_its_terms_in_the_curve(llada2: Path) -> None:
    section = TRAINING | {
        "strength": 1.0, "temperature": 0.5, "steps": 6, "log_every_steps": 1, "validate_every_steps": 2, "merge_best": 2,
        "block_curriculum": {"up": [1, 8, 32], "down": [32]}, "mask_noise": {"scale": 0.1, "steps": 3},
        "variable_length": 0.5, "repeat_penalty": 0.1, "z_loss": 1e-4,
    }  # fmt: skip
    tune_cap(stage(llada2, "tune_cap", section, "tune_cap"))
    columns = (llada2 / "data/curves/tune_cap.csv").read_text().partition("\n")[0].split(",")
    assert {"train/repeat", "train/z", "train/entropy", "train/diffusion", "merged/bits_per_byte"} <= set(columns)
    with pytest.raises(ValueError, match=r"block_curriculum has the size\(s\) 5.*row_tokens 32"):
        wrong = {"block_curriculum": {"up": [5, 32], "down": [32]}}
        tune_cap(stage(llada2, "tune_cap", section | wrong, "tune_cap"))


def test_rows_of_another_tokenizer_are_refused(llada2: Path) -> None:
    for meta in llada2.glob("data/tokens/instructions/*/chat/meta.json"):
        meta.write_text(json.dumps(json.loads(meta.read_text()) | {"vocabulary_size": 6400}))
    with pytest.raises(ValueError, match=r"vocabulary of 6400, the network has 128 rows"):
        tune_cap(stage(llada2, "tune_cap", TRAINING | {"strength": 2.0, "temperature": 0.5}, "tune_cap"))


def test_start_from_stands_in_for_the_stage_before_and_its_contents_are_part_of_the_key(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {tune: {cmd: go, deps: [data/models/before, code.py], params: [tune]}}")
    (tmp_path / "code.py").write_text("")
    (tmp_path / "params.yaml").write_text("tune: {steps: 1}")
    with pytest.raises(ValueError, match="reads data/models/before, which does not exist"):
        fingerprint(tmp_path, "tune")
    (tmp_path / "params.yaml").write_text("tune: {steps: 1, start_from: theirs}")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/config.json").write_text("1")
    first = fingerprint(tmp_path, "tune")
    (tmp_path / "theirs/config.json").write_text("2")
    assert fingerprint(tmp_path, "tune") != first
    (tmp_path / "code.py").unlink()
    with pytest.raises(ValueError, match=r"reads code\.py"):
        fingerprint(tmp_path, "tune")
