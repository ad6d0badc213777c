"""What a person can get wrong about a checkpoint is one message that names it; nothing runs, nothing is left half-written."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoints import network_weights
from model.checkpoints.store import export_checkpoint, load_checkpoint, load_config, save_checkpoint

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture
def folder(tmp_path):
    """A copy of a mixture's public folder that a test may damage."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copyfile(FIXTURES / "llada2-moe-tiny" / name, tmp_path / "in" / name)
    return tmp_path / "in"


def change_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text()) | changes
    kept = {key: value for key, value in values.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


BIAS, NORM = "model.layers.1.mlp.gate.expert_bias", "model.norm.weight"
DOWN = "model.layers.2.mlp.experts.3.down_proj.weight"


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.pop(DOWN), f"missing {DOWN} (64, 32)"),
        (lambda t: t.update(colour=torch.zeros(3)), "unexpected colour (3,)"),
        (lambda t: t.update({BIAS: torch.zeros(7)}), f"{BIAS} has shape (7,), the configuration wants (8,)"),
        (lambda t: t.update({NORM: torch.zeros(64, dtype=torch.int8)}), f"{NORM} is stored as I8: quantised"),
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(folder, change, words):
    change_tensors(folder, change)
    with pytest.raises(ValueError) as error:
        load_checkpoint(folder)
    assert words in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize("kept", [0, 100, 700_000])
def test_a_truncated_file_is_named(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read .*download it again"):
        load_checkpoint(folder)


def test_a_missing_shard_and_an_index_that_leaves_its_folder_are_named(folder, tmp_path):
    checkpoint = load_checkpoint(folder)
    out = tmp_path / "out"
    export_checkpoint(out, checkpoint.network, checkpoint.config, "llada2_moe", maximum_shard_bytes=300_000)
    (out / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks model-00002-of-00003\.safetensors"):
        load_checkpoint(out)
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../in/model.safetensors"}}))
    with pytest.raises(ValueError, match="outside its folder"):
        load_checkpoint(out)
    (out / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ValueError, match="no index of shards"):
        load_checkpoint(out)


def test_a_folder_without_weights_or_with_several_is_told_so(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no weights"):
        load_checkpoint(folder)
    for name in ("a.pt", "b.pt"):
        torch.save({}, folder / name)
    with pytest.raises(ValueError, match=r"several files of weights: name one of a\.pt, b\.pt"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"colour": 1}, "unknown key(s) for a llada2_moe network: colour"),
        ({"hidden_size": ...}, "it has no hidden_size"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu': only 'silu' is supported"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 must be a multiple of num_key_value_heads 3"),
        ({"n_group": 3}, "must be a multiple of n_group 3"),
        ({"topk_group": 1, "num_experts_per_tok": 5}, "num_experts_per_tok 5 is more than the 2 experts of 1 group"),
        ({"first_k_dense_replace": 9}, "first_k_dense_replace 9 must be below 3"),
        ({"mask_token_id": 128}, "mask_token_id 128 is not among the 128 rows"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, "rope_scaling type 'dynamic' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "speed": 2}}, "unknown key(s) in rope_scaling: speed"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, "rope_theta is 600000 and 5.0"),
        ({"unmask": {"hidden_size": 2}}, "unknown key(s) under 'unmask': hidden_size"),
        ({"model_type": "gpt2"}, "model_type 'gpt2' is none that can be read: llada, llada2_moe"),
    ],
)  # fmt: skip
def test_a_key_that_is_unknown_missing_or_contradicts_another_is_named(folder, changes, words):
    change_config(folder, **changes)
    with pytest.raises(ValueError) as error:
        load_config(folder)
    assert words in str(error.value) and "config.json" in str(error.value)


def test_a_width_stated_twice_must_be_the_same_and_a_key_given_twice_is_refused(tmp_path):
    shutil.copytree(FIXTURES / "minimind-tiny", tmp_path / "in")
    change_config(tmp_path / "in", effective_intermediate_size=128)
    with pytest.raises(ValueError, match="effective_intermediate_size is 128, and intermediate_size gives 192"):
        load_config(tmp_path / "in")
    (tmp_path / "in/config.json").write_text('{"model_type": "minimind", "model_type": "llada"}')
    with pytest.raises(ValueError, match="given twice: model_type"):
        load_config(tmp_path / "in")


def test_a_tied_head_that_differs_from_the_embedding_is_refused(tmp_path):
    shutil.copytree(FIXTURES / "minimind-upstream-tiny", tmp_path / "in")
    change_tensors(tmp_path / "in", lambda tensors: tensors["lm_head.weight"].add_(1))
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        load_checkpoint(tmp_path / "in")


def write_tokenizer(folder, tokens, mask="<|mask|>"):
    added = [{"content": content, "id": number} for content, number in tokens.items()]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}, "added_tokens": added}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": mask}))


def test_a_tokenizer_that_does_not_fit_is_named_and_one_that_does_gives_the_mask_token(folder):
    write_tokenizer(folder, {"<|mask|>": 128})
    with pytest.raises(ValueError, match=r"token '<\|mask\|>' with id 128.* has 128 rows"):
        load_checkpoint(folder)
    write_tokenizer(folder, {"<|mask|>": 123})
    assert load_checkpoint(folder).config.mask_token_id == 123
    change_config(folder, mask_token_id=122)
    with pytest.raises(ValueError, match="mask_token_id 122, and the tokenizer's mask token has id 123"):
        load_checkpoint(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not JSON"):
        load_checkpoint(folder)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(folder, tmp_path, name):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({"model_state_dict": tensors, "trap": Trap(tmp_path / "ran")}, folder / name)
    with pytest.raises(ValueError, match=rf"{name} is refused: .*Save its state dict as safetensors"):
        load_checkpoint(folder)
    assert not (tmp_path / "ran").exists()
    torch.save({"model_state_dict": tensors}, folder / name)
    assert load_checkpoint(folder).family == "llada2_moe"


def test_remote_code_beside_the_weights_is_never_run(folder, tmp_path):
    for name in ("configuration_llada2_moe.py", "modeling_llada2_moe.py", "tokenization.py"):
        (folder / name).write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    load_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("way", ["save", "export"])
def test_a_write_that_fails_leaves_the_old_folder_whole_and_nothing_beside_it(folder, tmp_path, monkeypatch, way):
    checkpoint = load_checkpoint(folder)
    network, config = checkpoint.network, replace(checkpoint.config, mask_token_id=5)
    out = tmp_path / "out"

    def write():
        if way == "save":
            save_checkpoint(out, network, config, folder)
        else:
            export_checkpoint(out, network, config, "llada2_moe", folder, maximum_shard_bytes=300_000)

    write()
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*args):
        (args[0] / "model-00001-of-00003.safetensors").write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(network_weights, "write_weights", full)
    with pytest.raises(OSError, match="no space"):
        write()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_name_of_the_hub_is_downloaded_once_without_code_or_pickles(folder, monkeypatch):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_checkpoint("inclusionAI/LLaDA2.0-mini@abc").folder == folder
    assert (asked["name"], asked["revision"]) == ("inclusionAI/LLaDA2.0-mini", "abc")
    assert all(
        pattern.endswith((".safetensors", ".json", ".txt", ".jinja", ".model")) for pattern in asked["allow_patterns"]
    )


def test_a_path_that_is_not_there_asks_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    for source in ("data/nothing", tmp_path / "nothing", "nothing", "../up/there", "a/b/c"):
        with pytest.raises(ValueError, match="is not a checkpoint: no such folder"):
            load_checkpoint(source)
