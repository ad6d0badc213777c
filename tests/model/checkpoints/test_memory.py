"""Loading needs the network in the dtype asked for and one shard; writing needs a shard beside the network."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
WORKER = """
import sys, threading, time
from pathlib import Path
import torch
from model.checkpoints.store import export_checkpoint, load_checkpoint
from model.network.config import NetworkConfig
from model.network.transformer import Transformer, num_parameters

folder = Path(sys.argv[1])


def network(**sizes):
    sizes = {"vocabulary_size": 64, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "feed_forward_size": 8} | sizes
    return Transformer(NetworkConfig(**sizes, query_key_norm=False, tie_embeddings=False)).to(torch.bfloat16)


def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) * 1024


def peak(work):
    seen, ended, before = [resident()], threading.Event(), resident()

    def watch():
        while not ended.is_set():
            seen.append(resident())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    ended.set()
    watcher.join()
    return max(seen) - before


def write(made):
    export_checkpoint(folder, made, made.config, "llama", maximum_shard_bytes=10_000_000)


write(network())  # what the first use imports and sets up is not what is measured
load_checkpoint(folder, dtype=torch.bfloat16)
large = network(vocabulary_size=16, hidden_size=512, num_heads=8, num_layers=12, feed_forward_size=2048)
size, shard = 2 * num_parameters(large), 10_000_000
print(size, shard, peak(lambda: write(large)))
del large
print(peak(lambda: load_checkpoint(folder, dtype=torch.bfloat16)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_at_its_peak_is_the_network_and_about_a_shard(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    size, shard, writing, loading = map(int, done.stdout.split())
    assert size > 8 * shard
    assert writing < 3 * shard and loading < size + 2 * shard, (size, shard, writing, loading)
