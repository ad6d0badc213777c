"""The loop: what a kill costs, what is divided by what, and when it stops."""

import ast
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_example import fingerprint, trainer, write_rows

from model.objectives.block_diffusion import BlockDiffusion
from model.objectives.curriculum import Curriculum
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


@pytest.mark.slow
def test_compiled_layers_compute_what_the_others_do_and_go_on_bit_for_bit(tmp_path, data):
    plain, whole = (trainer(tmp_path / name, data, steps=10, compile=name == "whole") for name in ("plain", "whole"))
    plain.run()
    whole.run()
    for name, value in plain.raw_network.state_dict().items():
        assert torch.allclose(value, whole.raw_network.state_dict()[name], atol=1e-4), name
    cut = trainer(tmp_path / "cut", data, steps=10, compile=True)
    step = cut._step

    def interrupted(batch):
        if cut.progress.step == 7:
            raise KeyboardInterrupt
        return step(batch)

    cut._step = interrupted
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    resumed = trainer(tmp_path / "cut", data, steps=10, compile=True)
    assert resumed.points.load(resumed.progress).step == 5
    resumed.run()
    assert fingerprint(resumed) == fingerprint(whole)


def test_compiling_without_a_compiler_is_refused_before_the_first_step(tmp_path, data, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"compile is true, and there is no C\+\+ compiler 'no-such-compiler'"):
        trainer(tmp_path / "work", data, compile=True)


def test_a_disk_that_fills_up_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, data):
    """The limit on file sizes stands in for the full disk: the system refuses the same call, with another number."""
    work = tmp_path / "full"
    code = (
        f"import resource, sys; sys.path[:0] = [{str(Path(PROGRAM).parent)!r}]\n"
        "from training_example import *\n"
        "run = trainer(Path(sys.argv[1]), Path(sys.argv[2]), steps=30)\n"
        "step = run._step\n"
        "def limited(batch):\n"
        "    if run.progress.step == 9:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
        "    return step(batch)\n"
        "run._step = limited\n"
        "run.run()"
    )
    arguments = [sys.executable, "-c", code, str(work), str(data)]
    failed = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True)
    assert failed.returncode
    assert "checkpoint of step 10 could not be written" in failed.stderr
    assert "it goes on from step-00000005" in failed.stderr
    assert [point.name for point in work.iterdir()] == ["step-00000005"]
    run, whole = trainer(work, data, steps=30), trainer(tmp_path / "whole", data, steps=30)
    run.run()
    whole.run()
    assert fingerprint(run) == fingerprint(whole)


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


def trained_by(processes: int, work: Path, data: Path, objective: str, parts: int) -> tuple[dict, list[float]]:
    """Weights and losses after six steps on the same rows, shared by that many gloo processes with `parts` slices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "ACCELERATE_USE_CPU": "true",
    }
    program = str(Path(PROGRAM).with_name("processes_example.py"))
    command = [sys.executable, program, str(work), str(data), objective, str(parts)]
    running = [
        subprocess.Popen(command, env=ENVIRONMENT | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(processes)
    ]
    assert [process.wait(timeout=300) for process in running] == [0] * processes
    return load_file(work / "weights.safetensors"), ast.literal_eval((work / "losses").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["block_diffusion", "confidence"])
def test_accumulation_times_processes_is_one_big_batch(tmp_path, data, objective):
    """2 processes x 2 slices against 1 process x 4: the same rows, the same hidden tokens, one division by the counts of all."""
    (shared, losses), (alone, wanted) = (
        trained_by(processes, tmp_path / str(processes), data, objective, 4 // processes) for processes in (2, 1)
    )
    assert losses == pytest.approx(wanted, rel=1e-4)
    for name, value in alone.items():
        assert torch.allclose(shared[name], value, atol=1e-4), name


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


def test_a_resume_point_of_a_network_cut_over_processes_is_refused_by_a_whole_one(tmp_path, data):
    trainer(tmp_path / "run", data, steps=12).run()
    progress = tmp_path / "run/step-00000010/progress.json"
    progress.write_text(progress.read_text().replace('"shared": false', '"shared": true'))
    with pytest.raises(
        ValueError, match=r"step-00000010 holds a network cut over processes \(FSDP2\), this run has it whole"
    ):
        trainer(tmp_path / "run", data, steps=12).run()


def test_patience_ends_a_run_that_no_longer_improves(tmp_path, data):
    run = trainer(tmp_path / "patient", data, steps=400, patience=2, minimum_improvement=100.0)
    progress = run.run()
    assert progress.stopped_early and progress.step == 30


def test_the_published_weights_are_the_mean_of_the_best_evaluations_also_after_a_kill(tmp_path, data):
    """Steps of 0.3 jump about, so that the best evaluations are not the last ones."""
    wanted = {"steps": 40, "validate_every_steps": 5, "merge_best": 3, "learning_rate": 0.3, "optimizer": "adamw"}
    run = trainer(tmp_path / "merged", data, **wanted)
    weights = {}
    evaluate = run._validate

    def remember():
        evaluate()
        weights[run.progress.step] = {name: value.clone() for name, value in run.raw_network.named_parameters()}

    run._validate = remember
    run.run()
    bits = {point["step"]: point["val/bits_per_byte"] for point in run.progress.curve if "val/bits_per_byte" in point}
    best = sorted(bits, key=bits.get)[:3]
    assert set(best) != set(list(bits)[-3:]), "nothing to choose: the test shows nothing"
    for name, value in run.raw_network.named_parameters():
        assert torch.allclose(value, torch.stack([weights[step][name] for step in best]).mean(0), atol=1e-6), name
    assert run.progress.curve[-1]["merged/bits_per_byte"] != bits[40]
    assert sorted(path.name for path in (tmp_path / "merged/best").iterdir()) == [
        f"step-{step:08d}.safetensors" for step in sorted(best)
    ]
    # What a kill leaves is the resume point of step 35 and files of later evaluations; going on ends in the same place.
    again = trainer(tmp_path / "merged", data, **wanted)
    again.run()
    assert fingerprint(again) == fingerprint(run)


def test_a_curriculum_is_asked_for_every_step_and_resumes_where_it_was(tmp_path, data):
    asked = []

    def at(step):
        asked.append(step)
        return BlockDiffusion(19, (1, 2, 16)[step // 10])

    whole = trainer(tmp_path / "whole", data, Curriculum(at), judge=BlockDiffusion(19, 4))
    whole.run()
    assert asked == [0, *range(30)]
    resumed = trainer(tmp_path / "whole", data, Curriculum(at), judge=BlockDiffusion(19, 4))  # from step 25
    resumed.run()
    assert asked[31:] == [0, *range(25, 30)] and fingerprint(resumed) == fingerprint(whole)
    plain = trainer(tmp_path / "plain", data, BlockDiffusion(19, 4), judge=BlockDiffusion(19, 4))
    plain.run()
    assert fingerprint(plain) != fingerprint(whole)


def test_a_section_with_an_unknown_or_impossible_key_is_refused_by_name():
    from model.training.config import TrainingConfig

    good = {"steps": 3, "batch_rows": 8, "learning_rate": 0.1}
    with pytest.raises(ValueError, match=r"learning_rat;"):
        TrainingConfig.from_section({**good, "learning_rat": 1})
    bad = {
        "merge_best": (1, 9),
        "steps": (0,),
        "learning_rate": (0.0,),
        "precision": ("half",),
        "accumulation_steps": (3,),
    }
    for key, value in ((key, value) for key, values in bad.items() for value in values):
        with pytest.raises(ValueError, match=key):
            TrainingConfig.from_section({**good, key: value})
