"""The face of `transformers`: public folders as they stand, LLaDA2's generate, and an export that needs none of this project."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import model.hugging_face.face  # noqa: F401
from model.checkpoints.store import save_checkpoint
from model.hugging_face.bundle import AUTO_MAP, FILE, modelling_file
from model.network.config import NetworkConfig
from model.network.masks import AttentionPattern
from model.network.transformer import Transformer

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
CONFIG = NetworkConfig(
    vocabulary_size=60, hidden_size=32, num_layers=3, num_heads=4, feed_forward_size=48, attention="block_causal",
    block_tokens=8, mask_token_id=59, eos_token_id=1, pad_token_id=0, num_experts=8, experts_per_token=2,
    num_expert_groups=4, groups_per_token=2, expert_feed_forward_size=16, num_shared_experts=1, num_dense_layers=1,
    routed_scaling_factor=2.5,
)  # fmt: skip


def network(config: NetworkConfig = CONFIG) -> Transformer:
    made = Transformer(config)
    made.initialise(torch.Generator().manual_seed(0))
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(8)
    return made.eval()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "saved"
    save_checkpoint(folder, network(), CONFIG, folder)
    return folder


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("llada-tiny", "logits"), ("llada2-moe-tiny", "logits.full"), ("llada21-edit-tiny", "logits.full"),
        ("minimind-tiny", "ar"), ("minimind-upstream-tiny", "ar"),
    ],
)  # fmt: skip
def test_a_public_folder_loads_as_it_stands_and_gives_its_logits(name: str, case: str) -> None:
    wanted = load_file(FIXTURES / name / "expected.safetensors")
    face = AutoModelForCausalLM.from_pretrained(FIXTURES / name)
    found = face(wanted[f"{case.partition('.')[0]}.input_ids"], output_hidden_states=True)
    assert (found.logits - wanted[f"{case}.logits"]).abs().max() < 1e-4
    if f"{case}.hidden_states" in wanted:
        assert (torch.stack(found.hidden_states) - wanted[f"{case}.hidden_states"]).abs().max() < 1e-4


def test_masks_of_both_shapes_are_obeyed() -> None:
    wanted = load_file(FIXTURES / "llada2-moe-tiny/expected.safetensors")
    face = AutoModelForCausalLM.from_pretrained(FIXTURES / "llada2-moe-tiny")
    blocks = wanted["logits.block_allowed"][None, None]
    additive = torch.zeros(blocks.shape).masked_fill(~blocks, float("-inf"))
    for mask in (blocks, additive):
        found = face(wanted["logits.input_ids"], attention_mask=mask).logits
        assert (found - wanted["logits.block.logits"]).abs().max() < 1e-4
    wanted = load_file(FIXTURES / "llada-tiny/expected.safetensors")
    face = AutoModelForCausalLM.from_pretrained(FIXTURES / "llada-tiny")
    mask = wanted["padded0.logits_attention_mask"]
    found = face(wanted["padded0.logits_input_ids"], attention_mask=mask).logits
    assert (found - wanted["padded0.logits"])[mask.bool()].abs().max() < 1e-4


def test_without_a_mask_llada2_reads_everything_as_its_public_code_does() -> None:
    face = AutoModelForCausalLM.from_pretrained(FIXTURES / "llada2-moe-tiny")
    ids = torch.randint(0, 100, (1, 80), generator=torch.Generator().manual_seed(0))  # more than its blocks of 32
    assert torch.equal(face(ids).logits, face(ids, attention_mask=torch.ones(1, 1, 80, 80, dtype=torch.bool)).logits)


CASES = json.loads((FIXTURES / "llada2-moe-tiny/cases.json").read_text())


@pytest.mark.parametrize(
    "case", ["p8.thr0.9.steps3", "p11.thr0.3.eos_nostop", "p8.thr0.3.eos_stop", "p3.thr0.4.eos_late"]
)
def test_generate_returns_what_llada2s_own_generate_returned(case: str) -> None:
    wanted, settings = load_file(FIXTURES / "llada2-moe-tiny/expected.safetensors"), CASES[case]
    face = AutoModelForCausalLM.from_pretrained(FIXTURES / "llada2-moe-tiny")
    names = ("gen_length", "block_length", "steps", "threshold", "mask_id", "eos_early_stop", "temperature")
    for row, prompt in enumerate(wanted[settings["prompt"]]):
        options = {name: settings[name] for name in names} | {"eos_id": settings["eos_id_per_row"][row]}
        assert torch.equal(face.generate(inputs=prompt[None], **options)[0], wanted[f"{case}.row{row}.out"])


def test_an_own_checkpoint_reads_in_blocks_and_comes_back_bit_identical(own: Path, tmp_path: Path) -> None:
    face = AutoModelForCausalLM.from_pretrained(own)
    ids = torch.arange(2, 22)[None]
    positions = torch.arange(20)[None]
    states = network()(ids, positions, AttentionPattern("block_causal", torch.zeros_like(ids), positions, 8))
    assert torch.equal(face(ids).logits, network().head(states))
    assert AutoConfig.from_pretrained(own).vocab_size == 60
    face.save_pretrained(tmp_path / "again")
    before, after = load_file(own / "model.safetensors"), load_file(tmp_path / "again/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_causal_network_answers_left_to_right(tmp_path: Path) -> None:
    face = AutoModelForCausalLM.from_pretrained(FIXTURES / "minimind-upstream-tiny")
    ids = torch.tensor([[5, 6, 7]])
    answer = face.generate(ids, gen_length=4, eos_id=95)[0].tolist()
    for token in answer:
        assert int(face(ids).logits[0, -1].argmax()) == token
        ids = torch.cat((ids, torch.tensor([[token]])), 1)


def test_a_missing_tensor_is_an_error_and_not_a_random_one(own: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((own / "config.json").read_bytes())
    from safetensors.torch import save_file

    tensors = load_file(own / "model.safetensors")
    tensors.pop("layers.1.feed_forward.down")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing layers\.1\.feed_forward\.down"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


OUTSIDE = """
import sys, json, torch
from transformers import AutoModelForCausalLM
assert not any(name.split(".")[0] == "model" for name in sys.modules)
face = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
ids = torch.tensor([[5, 6, 7, 8, 9]])
answer = face.generate(inputs=ids, gen_length=16, block_length=8, steps=8, threshold=0.3)
print(json.dumps([face(ids).logits.flatten().tolist(), answer.tolist()]))
"""


@pytest.mark.slow
def test_the_modelling_file_needs_nothing_of_this_repository(own: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((own / "model.safetensors").read_bytes())
    values = json.loads((own / "config.json").read_text()) | {"auto_map": AUTO_MAP}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / FILE).write_text(modelling_file())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OUTSIDE, str(folder)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    logits, answer = json.loads(done.stdout.splitlines()[-1])
    face = AutoModelForCausalLM.from_pretrained(own)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    torch.testing.assert_close(torch.tensor(logits), face(ids).logits.flatten(), atol=1e-5, rtol=1e-5)
    assert answer == face.generate(inputs=ids, gen_length=16, block_length=8, steps=8, threshold=0.3).tolist()
