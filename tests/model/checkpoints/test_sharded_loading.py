"""Two processes load one folder, each its own part, train it, and together write what one process has."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FIXTURES = ROOT / "tests/fixtures"
WORKER = """
import sys
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from model.checkpoints.network_weights import empty_sharded_network
from model.checkpoints.store import export_checkpoint, load_checkpoint
from model.network.transformer import Transformer

rank, folder, meeting = int(sys.argv[1]), sys.argv[2], sys.argv[3]
distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))


def shard(network):
    for layer in network.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(network, mesh=mesh)


config = load_checkpoint(folder).config
whole, part = Transformer(config), empty_sharded_network(config, "cpu", torch.float32, shard)
for network in (whole, part):
    network.initialise(torch.Generator().manual_seed(3))
held = sum(value.to_local().numel() for value in part.parameters())
assert held <= 0.51 * sum(value.numel() for value in whole.parameters()), held
for name, value in part.named_parameters():
    assert torch.equal(value.full_tensor(), whole.get_parameter(name)), name

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
assert torch.allclose(part(tokens, tokens, dense), whole(tokens, tokens, dense), atol=1e-5)


def trained(network, rows):
    # Three steps of AdamW on a batch of which this call sees `rows`.
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    batch = torch.randint(0, 90, (3, 4, 12), generator=torch.Generator().manual_seed(0))
    for step in range(3):
        seen = batch[step, rows]
        hidden = network(seen, torch.arange(12).expand_as(seen), dense)
        torch.nn.functional.cross_entropy(network.head(hidden).flatten(0, 1), seen.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network


whole = trained(load_checkpoint(folder, dtype=torch.float64).network.train(), slice(None))
part = trained(load_checkpoint(folder, dtype=torch.float64, shard=shard).network.train(), slice(2 * rank, 2 * rank + 2))
out = Path(meeting).with_name("out")
export_checkpoint(out, part, part.config, sys.argv[4], maximum_shard_bytes=200_000)
again = load_checkpoint(out, dtype=torch.float64).network
before = load_checkpoint(folder, dtype=torch.float64).network
for name, value in whole.named_parameters():
    assert torch.allclose(again.get_parameter(name), value, atol=1e-9), name
    assert not torch.allclose(before.get_parameter(name), value, atol=1e-4), name
print("equal")
distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name, family", [("llada2-moe-tiny", "llada2_moe"), ("minimind-upstream-tiny", "minimind")])
def test_two_processes_hold_half_each_and_draw_load_train_and_write_what_one_does(name, family, tmp_path):
    commands = [
        [sys.executable, "-c", WORKER, str(rank), str(FIXTURES / name), str(tmp_path / "meeting"), family]
        for rank in range(2)
    ]
    running = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    ended = [process.communicate(timeout=240) for process in running]
    for process, (out, error) in zip(running, ended, strict=True):
        assert process.returncode == 0 and out == "equal\n", error[-2000:]
