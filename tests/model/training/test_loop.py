"""The loop: what a kill costs, what is divided by what, and when it stops."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_example import fingerprint, trainer, write_rows

from model.objectives.next_token import NextToken

PROGRAM = str(Path(__file__).with_name("training_example.py"))
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def data(tmp_path):
    torch.set_num_threads(1)
    return write_rows(tmp_path / "rows")


def test_a_killed_run_goes_on_to_bit_identical_weights_and_curve(tmp_path, data):
    steps, work = "300", tmp_path / "killed"
    arguments = [sys.executable, PROGRAM, str(work), str(data), steps]
    process = subprocess.Popen(arguments, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(int(point.name[5:]) >= 20 for point in work.glob("step-*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (work / "fingerprint").exists()
    subprocess.run(arguments, env=ENVIRONMENT, check=True, stderr=subprocess.PIPE)
    whole = tmp_path / "whole"
    subprocess.run([*arguments[:2], str(whole), *arguments[3:]], env=ENVIRONMENT, check=True, stderr=subprocess.PIPE)
    assert (work / "fingerprint").read_text() == (whole / "fingerprint").read_text()


def test_the_same_seed_gives_the_same_weights_and_learns(tmp_path, data):
    runs = [trainer(tmp_path / name, data, steps=60) for name in ("a", "b")]
    for run in runs:
        run.run()
    assert fingerprint(runs[0]) == fingerprint(runs[1])
    losses = [point["val/bits_per_byte"] for point in runs[0].progress.curve if "val/bits_per_byte" in point]
    assert losses[-1] < 0.8 * losses[0]


def test_accumulation_is_one_big_batch(tmp_path, data):
    weights = []
    for parts in (1, 4):
        run = trainer(tmp_path / str(parts), data, NextToken(), steps=5, accumulation_steps=parts)
        run.run()
        weights.append(run.raw_network.state_dict())
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=2e-5), name


def test_a_loss_that_is_not_finite_stops_the_run_naming_the_step_and_keeping_the_checkpoint(tmp_path, data):
    run = trainer(tmp_path / "nan", data)
    step = run._step

    def spoiled(batch):
        if run.progress.step == 12:
            with torch.no_grad():
                run.raw_network.norm.weight.fill_(float("nan"))
        return step(batch)

    run._step = spoiled
    with pytest.raises(ValueError, match="step 13"):
        run.run()
    assert [point.name for point in (tmp_path / "nan").glob("step-*")] == ["step-00000010"]


def test_patience_ends_a_run_that_no_longer_improves(tmp_path, data):
    run = trainer(tmp_path / "patient", data, steps=400, patience=2, minimum_improvement=100.0)
    progress = run.run()
    assert progress.stopped_early and progress.step == 30


def test_a_section_with_an_unknown_or_impossible_key_is_refused_by_name():
    from model.training.config import TrainingConfig

    good = {"steps": 3, "batch_rows": 8, "learning_rate": 0.1}
    with pytest.raises(ValueError, match=r"learning_rat;"):
        TrainingConfig.from_section({**good, "learning_rat": 1})
    for bad in ({"steps": 0}, {"learning_rate": 0.0}, {"precision": "half"}, {"accumulation_steps": 3}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            TrainingConfig.from_section({**good, **bad})
