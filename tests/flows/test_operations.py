"""Servers, workers and what may happen to them: real ones, really killed. One fleet serves all tests of this file."""

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import copy_of_this_repository
from tests.flows.fleet import EDGES, Fleet

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(copy_of_this_repository(tmp_path_factory.mktemp("fleet")))
    try:
        fleet.up()
        yield fleet
    finally:
        fleet.down()


def curve(fleet: Fleet, key: str) -> list[tuple[int, float]]:
    """The points of the last training run in MLflow's database."""
    query = (
        "select step, value from metrics where key = ? and run_uuid = "
        "(select run_uuid from runs where name = 'train' order by start_time desc limit 1) order by step, timestamp"
    )
    with sqlite3.connect(fleet.root / "mlruns/mlflow.db") as database:
        return database.execute(query, (key,)).fetchall()


def test_the_readme_command_runs_a_preset_beside_the_users_outputs_and_a_second_up_changes_nothing(
    fleet: Fleet,
) -> None:
    before = subprocess.run(
        ["git", "status", "--porcelain"], cwd=fleet.root, capture_output=True, text=True, check=True
    )
    done = fleet.prefect("deployment", "run", "pipeline/mini", "--watch")
    assert done.returncode == 0, done.stdout + fleet.logs()
    assert {name: fleet.checkout.runs_of(name) for name in EDGES} == dict.fromkeys(EDGES, 1)
    after = subprocess.run(["git", "status", "--porcelain"], cwd=fleet.root, capture_output=True, text=True, check=True)
    assert before.stdout == after.stdout == ""
    assert not (fleet.root / "data/models").exists()
    queues = {run["name"]: run["work_queue_name"] for run in fleet.api("/flow_runs/filter", {})}
    assert {name: queues[name] for name in EDGES} == dict.fromkeys(EDGES, "cpu") | {"train": "gpu"}
    assert fleet.api("/work_pools/unmask/queues/gpu")["concurrency_limit"] == 1
    assert len(curve(fleet, "train/loss")) == 40
    pids = {name: fleet.service(name)["pid"] for name in ("prefect", "mlflow", "worker")}
    fleet.up()
    assert {name: fleet.service(name)["pid"] for name in pids} == pids


def test_a_killed_worker_is_replaced_and_training_goes_on_from_its_checkpoint(fleet: Fleet, tmp_path: Path) -> None:
    before = fleet.checkout.runs_of("train")
    run = fleet.start_run("--param", 'overrides={"train.steps": 60, "train.seconds": 0.15}')
    fleet.wait(fleet.checkpoints)
    fleet.kill("worker")  # with the engines and the training process below it
    assert fleet.wait_for_end(run)["type"] == "COMPLETED", fleet.logs()
    assert fleet.checkout.runs_of("train") == before + 2
    made = (fleet.checkout.root / "data/models/train/fingerprint").read_text()
    assert made == fleet.uninterrupted(tmp_path, 60)
    assert [step for step, _ in curve(fleet, "train/loss")] == list(range(1, 61))


def test_a_restarted_prefect_server_loses_no_run_and_repeats_no_stage(fleet: Fleet) -> None:
    count = fleet.checkout.runs_of("train")
    run = fleet.start_run("--param", 'overrides={"train.steps": 50, "train.seconds": 0.15}')
    fleet.wait(fleet.checkpoints)
    fleet.kill("prefect")
    assert fleet.wait_for_end(run)["type"] == "COMPLETED", fleet.logs()
    assert fleet.checkout.runs_of("train") == count + 1


def test_a_curve_is_whole_after_mlflows_server_was_away(fleet: Fleet) -> None:
    run = fleet.start_run("--param", 'overrides={"train.steps": 80, "train.seconds": 0.15}')
    fleet.wait(fleet.checkpoints)
    keeper = fleet.processes("mlflow")[0]
    os.kill(keeper, signal.SIGSTOP)  # else it would be back in two seconds
    fleet.kill("mlflow")
    begun = {path.name for path in fleet.checkpoints()}
    try:
        steps = len(curve(fleet, "train/loss"))
        fleet.wait(lambda: len(fleet.checkpoints()) == 0 or fleet.checkpoints()[-1].parent.name > "step-00000040")
        assert len(curve(fleet, "train/loss")) == steps < 40  # training has gone on, the store has not
    finally:
        os.kill(keeper, signal.SIGCONT)
    assert begun
    assert fleet.wait_for_end(run)["type"] == "COMPLETED", fleet.logs()
    assert [step for step, _ in curve(fleet, "train/loss")] == list(range(1, 81))


def test_down_in_the_middle_of_a_run_only_pauses_it(fleet: Fleet) -> None:
    run = fleet.start_run("--param", 'overrides={"train.steps": 70, "train.seconds": 0.15}')
    fleet.wait(fleet.checkpoints)
    fleet.down()
    assert fleet.checkpoints()
    before = fleet.checkout.runs_of("download")
    fleet.up()
    assert fleet.wait_for_end(run)["type"] == "COMPLETED", fleet.logs()
    assert [step for step, _ in curve(fleet, "train/loss")] == list(range(1, 71))
    assert fleet.checkout.runs_of("download") == before + 1  # it always looks; nothing else that was done is done again


def state_of(process: int, seconds: float = 5) -> str:
    """Its letter in /proc, once it has ended ("gone", or "Z": nobody has asked how) or the time is up, with its command."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return "gone"
        if state == "Z":
            return state
        if time.monotonic() > deadline:
            return state + Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
        time.sleep(0.05)


def test_down_ends_exactly_what_up_began(fleet: Fleet) -> None:
    bystander = subprocess.Popen(["sleep", "300"])
    try:
        worker = fleet.processes("worker")
        mlflow = fleet.service("mlflow")
        ours = [*worker, *fleet.processes("prefect"), *fleet.processes("mlflow")]
        (fleet.root / ".work/services/mlflow.json").write_text(json.dumps(mlflow | {"pid": bystander.pid}))
        fleet.down()
        assert bystander.poll() is None  # its number stood in the file, but it is not a keeper
        kept = fleet.root / ".work/services/mlflow.log"
        assert (
            str(kept)
            in subprocess.run(["ps", "-ww", "-eo", "args="], capture_output=True, text=True, check=True).stdout
        )
        (fleet.root / ".work/services/mlflow.json").write_text(json.dumps(mlflow))
        fleet.down()
        left = {process: state_of(process) for process in ours}
        assert not {process: state for process, state in left.items() if state not in ("gone", "Z")}
    finally:
        bystander.kill()
