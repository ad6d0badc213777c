"""A stage started in two processes by accelerate makes what one process makes, sharded or not, killed or not."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml

from model.checkpoints.store import load_checkpoint
from model.text.packing import Layout, RowWriter
from tasks.launch import processes_of
from tests.conftest import Checkout

HELD = """
import sys

import torch

from model.checkpoints.derive import layer_subset, narrowed
from model.checkpoints.store import load_checkpoint
from model.training.optimizer import make_optimizers
from model.training.sharding import sharding
from tasks.plan import held_bytes

section = {"precision": "bfloat16", "optimizer": sys.argv[1]}
shard = sharding(section["precision"])
teacher = load_checkpoint("theirs", shard=shard).network
student = layer_subset(teacher, [0, 2], shard)
teacher = narrowed(teacher, shard)
optimizers = make_optimizers(student, section["optimizer"], 1e-3, 0.0)
tokens = torch.arange(12)[None]
allowed = torch.ones(1, 1, 12, 12, dtype=torch.bool)
with torch.autocast("cpu", torch.bfloat16):
    wanted = teacher.head(teacher(tokens, tokens, allowed)).float().detach()
    (student.head(student(tokens, tokens, allowed)).float() - wanted).square().mean().backward()
for optimizer in optimizers:
    optimizer.step()


def held(tensors):
    return sum(tensor.to_local().nbytes for tensor in tensors if hasattr(tensor, "device_mesh"))


states = [entry for optimizer in optimizers for entries in optimizer.state.values() for entry in entries.values()]
parameters = list(student.parameters())
found = held(parameters), held(p.grad for p in parameters), held(states), held(teacher.parameters())
whole = load_checkpoint("theirs", device="meta").network
planned = held_bytes(layer_subset(whole, [0, 2]), whole, section)
assert all(abs(one - two / 2) <= 0.01 * two for one, two in zip(found, planned, strict=True)), (found, planned)
tied = {}
for name, cut in (("whole", None), ("parts", shard)):
    network = tied[name] = load_checkpoint(sys.argv[2], shard=cut).network
    for _ in range(2):  # the second backward meets what the first one left
        with torch.autocast("cpu", torch.bfloat16):
            network.head(network(tokens, tokens, allowed)).float().square().mean().backward()
assert tied["parts"].unembedding.weight is tied["parts"].embedding.weight
for name, parameter in tied["whole"].named_parameters():
    gradient = tied["parts"].get_parameter(name).grad.full_tensor()
    assert torch.allclose(gradient, parameter.grad, rtol=0.02, atol=1e-3 * float(parameter.grad.abs().max())), name
print("agrees")
"""
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TRAINING = {
    "batch_rows": 4, "steps": 6, "learning_rate": 3e-3, "warmup_steps": 1, "validate_every_steps": 3, "validation_rows": 80,
    "checkpoint_every_steps": 2, "start_from": "theirs", "hiding": {"draw": "iid_t", "minimum_fraction": 0.1},
}  # fmt: skip
DISTILL = TRAINING | {"layers": 2, "teacher_share": 0.7, "direction": "forward", "optimizer": "muon"}
CAP = TRAINING | {
    "strength": 2.0,
    "temperature": 0.5,
    "expert_bias": "balanced",
    "precision": "bfloat16",
    "merge_best": 2,
}


def prepare(root: Path, stage: str, section: dict) -> None:
    """A public mixture with a mask token, rows of its vocabulary, and settings for one stage."""
    shutil.copytree(FIXTURES / "llada2-moe-tiny", root / "theirs")
    values = json.loads((root / "theirs/config.json").read_text())
    (root / "theirs/config.json").write_text(json.dumps(values | {"mask_token_id": 123, "eos_token_id": 120}))
    for split, rows in (("train", 16), ("validation", 80)):
        writer = RowWriter(root / "data/tokens/instructions" / split / "chat", Layout(32, 32, 128, 120, 120))
        tokens = np.random.default_rng(rows).integers(0, 100, (rows, 32))
        graded = np.arange(32)[None] >= np.arange(rows)[:, None] % 16  # processes count differently many tokens
        writer.append(tokens, np.zeros((rows, 1)), np.ones((rows, 32), bool), graded)
        writer.counts.bytes = rows * 32
        writer.close()
    (root / "data/tokens/mixture.json").write_text(json.dumps({"instructions": {"chat": 1.0}}))
    (root / "params.yaml").write_text(settings(root, stage, section))


def settings(root: Path, stage: str, section: dict) -> str:
    """params.yaml with one section for the test."""
    return yaml.safe_dump(yaml.safe_load((root / "presets/smoke.yaml").read_text()) | {stage: section})


def launch(checkout: Checkout, kind: str, *program: str, wait: bool = True):
    """`accelerate launch --config_file accelerate/KIND.yaml` in two processes on this machine's CPUs."""
    arguments = ["-m", "accelerate.commands.launch", "--config_file", f"accelerate/{kind}.yaml", "--num_processes", "2"]
    arguments += ["--main_process_port", "0", "-m", *program]
    if not wait:
        return checkout.start(*arguments, ACCELERATE_USE_CPU="true")
    done = checkout.python(*arguments, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stdout[-3000:]
    return done


def made(checkout: Checkout, name: str) -> dict[str, torch.Tensor]:
    """The published weights, and nothing left of the work."""
    folder = checkout.root / "data/models" / name
    state = load_checkpoint(folder).network.state_dict()
    shutil.rmtree(folder)
    return state


def apart(ones: dict[str, torch.Tensor], others: dict[str, torch.Tensor], begin: dict[str, torch.Tensor]) -> float:
    """How far two trained networks are from each other, as a share of how far training went."""

    def far(a: dict, b: dict) -> float:
        return sum(float((a[name] - b[name]).square().sum()) for name in a) ** 0.5

    return far(ones, others) / far(ones, begin)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the launcher and what it has started, which lives in sessions of its own."""
    for each in (*psutil.Process(process.pid).children(recursive=True), process):
        each.kill()
    process.communicate()


@pytest.mark.slow
def test_two_processes_distil_what_one_does_sharded_or_not_killed_or_not(checkout: Checkout) -> None:
    program, name = "tasks.distill_draft", "distill_draft"
    prepare(checkout.root, name, DISTILL | {"accumulation_steps": 2})
    done = checkout.python("-m", program)
    assert done.returncode == 0, done.stdout
    one = made(checkout, name)
    begin = {
        key: value
        for key, value in load_checkpoint(checkout.root / "theirs").network.state_dict().items()
        if key in one
    }
    (checkout.root / "params.yaml").write_text(
        settings(checkout.root, name, DISTILL)
    )  # the second slice is the second process'
    said = launch(checkout, "fsdp2", program).stdout
    assert said.count("distill_draft: done") == 1
    shared = made(checkout, name)
    launch(checkout, "ddp", program)
    copied = made(checkout, name)
    process = launch(checkout, "fsdp2", program, wait=False)
    deadline = time.monotonic() + 240
    while not list(checkout.root.glob(f".work/{name}/*/step-*/progress.json")):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.01)
    kill(process)
    assert not (checkout.root / "data/models" / name).exists()
    launch(checkout, "fsdp2", program)
    resumed = made(checkout, name)
    assert all(torch.equal(resumed[key], shared[key]) for key in shared)
    # Sums of two halves round otherwise than one sum: 4e-8 of the way was measured.
    assert apart(one, shared, begin) < 1e-5
    assert apart(one, copied, begin) < 1e-5


@pytest.mark.slow
def test_a_sharded_bfloat16_mixture_is_tuned_and_balanced_as_by_one_process(checkout: Checkout) -> None:
    program = ("tasks.tune_cap", "--instance", "tune_cap")
    prepare(checkout.root, "tune_cap", CAP | {"accumulation_steps": 2})
    done = checkout.python("-m", *program)
    assert done.returncode == 0, done.stdout
    one = made(checkout, "tune_cap")
    begin = load_checkpoint(checkout.root / "theirs").network.state_dict()
    (checkout.root / "params.yaml").write_text(settings(checkout.root, "tune_cap", CAP))
    launch(checkout, "fsdp2", *program)
    shared = made(checkout, "tune_cap")
    biases = [key for key in one if key.endswith("expert_bias")]
    assert biases
    assert all(torch.equal(one[key], shared[key]) and not torch.equal(one[key], begin[key]) for key in biases)
    # 2.9e-3 was measured, less than one rounding to bfloat16 (2^-8): sums of slices and of processes are rounded differently.
    assert apart(one, shared, begin) < 2**-7


@pytest.mark.slow
def test_two_processes_hold_what_the_plan_counts_and_a_tied_head_learns(checkout: Checkout) -> None:
    prepare(checkout.root, "distill_draft", DISTILL)
    (checkout.root / "held.py").write_text(HELD)
    assert (
        launch(checkout, "fsdp2", "held", "muon", str(FIXTURES / "minimind-upstream-tiny")).stdout.count("agrees") == 2
    )


@pytest.mark.slow
def test_a_stage_that_asks_for_two_processes_is_the_launched_one_and_leaves_none_behind(checkout: Checkout) -> None:
    program, name = "tasks.distill_draft", "distill_draft"
    prepare(checkout.root, name, DISTILL)
    launch(checkout, "ddp", program)
    launched = made(checkout, name)
    asked = DISTILL | {"processes": 2}
    (checkout.root / "params.yaml").write_text(settings(checkout.root, name, asked | {"batch_rows": 3}))
    refused = checkout.python("-m", program)
    assert refused.returncode == 2, refused.stdout
    assert "batch_rows 3 must be a multiple" in refused.stdout and "Traceback" not in refused.stdout
    (checkout.root / "params.yaml").write_text(settings(checkout.root, name, asked))
    for sign, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        process = checkout.start("-m", program)
        known = list(checkout.root.glob(f".work/{name}/*/step-*/progress.json"))
        deadline = time.monotonic() + 240
        while list(checkout.root.glob(f".work/{name}/*/step-*/progress.json")) == known:
            assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
            time.sleep(0.01)
        ranks = psutil.Process(process.pid).children(recursive=True)
        assert len(ranks) >= 2
        process.send_signal(sign)
        process.communicate()
        assert process.returncode == code
        assert not psutil.wait_procs(ranks, timeout=20)[1]
    done = checkout.python("-m", program)
    assert done.returncode == 0 and done.stdout.count("distill_draft: done") == 1, done.stdout
    resumed = made(checkout, name)
    assert all(torch.equal(resumed[key], launched[key]) for key in launched)


@pytest.mark.parametrize(
    "section, wrong",
    [({"processes": 0}, "processes is 0"), ({"processes": 2, "distribution": "fsdp"}, "distribution 'fsdp'")],
)
def test_a_number_of_processes_or_a_way_to_share_that_is_none_is_refused(section: dict, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        processes_of(section)
