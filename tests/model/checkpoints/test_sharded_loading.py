"""Two processes load one folder, each its own part, and together have what one process loads."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FIXTURES = ROOT / "tests/fixtures"
WORKER = """
import sys
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from model.checkpoints.store import load_checkpoint

rank, folder, meeting = int(sys.argv[1]), sys.argv[2], sys.argv[3]
distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))


def shard(network):
    for layer in network.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(network, mesh=mesh)


whole = load_checkpoint(folder).network
part = load_checkpoint(folder, shard=shard).network
held = sum(value.to_local().numel() for value in part.parameters())
assert held <= 0.51 * sum(value.numel() for value in whole.parameters()), held
for name, value in part.named_parameters():
    assert torch.equal(value.full_tensor(), whole.get_parameter(name)), name
for name, value in part.named_buffers():
    assert torch.equal(value, whole.get_buffer(name)), name
assert (part.unembedding.weight is part.embedding.weight) == whole.config.tie_embeddings
tokens = torch.arange(12).reshape(1, 12)
dense = torch.ones(1, 1, 12, 12, dtype=torch.bool)
found = part(tokens, tokens, dense)
assert torch.allclose(found, whole(tokens, tokens, dense), atol=1e-5)
print("equal")
distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llada2-moe-tiny", "minimind-upstream-tiny"])
def test_two_processes_hold_half_each_and_the_same_weights_as_one(name, tmp_path):
    commands = [
        [sys.executable, "-c", WORKER, str(rank), str(FIXTURES / name), str(tmp_path / "meeting")] for rank in range(2)
    ]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    ended = [process.communicate(timeout=240) for process in running]
    for process, (out, error) in zip(running, ended, strict=True):
        assert process.returncode == 0 and out == "equal\n", error[-2000:]
