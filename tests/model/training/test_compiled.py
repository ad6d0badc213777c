"""`compile: true` changes how fast a step is, not what it learns."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_example import CONFIG, fresh_network, trainer, write_rows

from model.network.documents import FlatDocuments
from model.network.transformer import Transformer
from model.training.compiled import compile_layers

REACH = {"float32": 1e-5, "bfloat16": 3e-2}


def gradients(network: Transformer, rows: int, precision: str) -> dict[str, torch.Tensor]:
    tokens = torch.randint(0, 20, (1, rows), generator=torch.Generator().manual_seed(rows))
    positions = torch.arange(rows)[None] % 16
    pattern = FlatDocuments(
        "block_causal", ((rows // 16, 16),), positions, torch.ones_like(tokens, dtype=torch.bool), 4
    )
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        hidden = network(tokens, positions, pattern, None, tokens < 9)
        network.unembedding(hidden).float().logsumexp(-1).sum().backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_layers_have_the_gradients_of_plain_ones_for_any_number_of_rows(precision):
    plain = fresh_network(CONFIG)
    compiled = copy.deepcopy(plain)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        compile_layers(compiled, 64)
    for rows in (32, 80):
        wanted, found = gradients(plain, rows, precision), gradients(compiled, rows, precision)
        for name, value in wanted.items():
            assert (found[name] - value).norm() <= REACH[precision] * value.norm(), name


@pytest.mark.slow
def test_a_compiled_run_goes_on_bit_identically_in_a_new_process(tmp_path):
    data = write_rows(tmp_path / "rows")
    code = (
        "import sys; from pathlib import Path; from training_example import *\n"
        "run = trainer(Path(sys.argv[1]), Path(sys.argv[2]), steps=20, compile=True)\n"
        "step = run._step\n"
        "def limited(batch):\n"
        "    if run.progress.step == int(sys.argv[3]): sys.exit(3)\n"
        "    return step(batch)\n"
        "run._step = limited\n"
        "run.run()\n"
        "Path(sys.argv[1], 'fingerprint').write_text(fingerprint(run))"
    )
    here = Path(__file__).resolve()
    folders = os.pathsep.join(str(folder) for folder in (here.parent, here.parents[3]))
    environment = os.environ | {"PYTHONPATH": folders, "OMP_NUM_THREADS": "1"}

    def train(name: str, stop: int) -> int:
        command = [sys.executable, "-c", code, str(tmp_path / name), str(data), str(stop)]
        return subprocess.run(command, env=environment, stderr=subprocess.DEVNULL).returncode

    assert (train("stopped", 13), train("stopped", -1), train("whole", -1)) == (3, 0, 0)
    assert (tmp_path / "stopped/fingerprint").read_text() == (tmp_path / "whole/fingerprint").read_text()


def test_without_a_compiler_the_run_is_refused_before_a_step(tmp_path, monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(ValueError, match=r"install g\+\+, or set compile: false"):
        trainer(tmp_path, write_rows(tmp_path / "rows"), compile=True)
