"""The flow with real Prefect, DVC, MLflow and stage processes, on small stand-in pipelines."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import Checkout
from tests.flows.test_stage_process import wait_until_gone

FLOW = ("-m", "flows.pipeline")
DIAMOND = {"download": [], "left": ["download"], "right": ["download"], "join": ["left", "right"], "register": ["join"]}
# Reports every connection and every name looked up that is not this machine, from any Python process.
SOCKET_GUARD = """
import ipaddress, os, sys

def is_here(host):
    if host in (None, "", "localhost", b"localhost"):
        return True
    try:
        return ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host).is_loopback
    except ValueError:
        return False

def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    with open(os.environ["SOCKET_LOG"], "a") as log:
        log.write(f"{'here' if is_here(host) else 'OUTSIDE'} {event} {host!r} {sys.argv[:3]}\\n")

sys.addaudithook(watch)
"""


def lock_entries(checkout: Checkout) -> dict[str, object]:
    return yaml.safe_load((checkout.root / "dvc.lock").read_text())["stages"]


def runs(checkout: Checkout, fields: str) -> list[tuple[str, ...]]:
    with sqlite3.connect(checkout.root / "mlruns/mlflow.db") as database:
        return sorted(database.execute(f"select {fields} from runs").fetchall())


def stand_in_register(checkout: Checkout) -> None:
    """The stand-in also closes the pipeline's run, as the real one does."""
    program = checkout.root / "tasks/register.py"
    closing = (
        "\ndef closing(stage):\n"
        "    main(stage)\n"
        "    from model.training.pipeline_run import close_pipeline_run\n"
        "    from tasks.fingerprint import fingerprints\n"
        "    keys = {name: key for name, key in fingerprints(stage.root).items() if name != 'register'}\n"
        "    close_pipeline_run(stage.root, keys, [])\n\n\nif __name__"
    )
    text = program.read_text().replace("\nif __name__", closing).replace("run_stage(main", "run_stage(closing")
    program.write_text(text)


@pytest.fixture
def diamond(checkout: Checkout) -> Checkout:
    checkout.pipeline(DIAMOND)
    stand_in_register(checkout)
    return checkout


def test_a_run_stays_on_this_machine_and_the_second_starts_nothing_that_is_up_to_date(
    diamond: Checkout, tmp_path: Path
) -> None:
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(SOCKET_GUARD)
    log = tmp_path / "sockets.txt"
    guarded = {"PYTHONPATH": str(hook), "SOCKET_LOG": str(log)}

    first = diamond.python(*FLOW, **guarded)
    assert first.returncode == 0, first.stdout
    connections = log.read_text().splitlines()
    assert any("uvicorn" in line or "flows.pipeline" in line or "connect" in line for line in connections)
    assert not [line for line in connections if line.startswith("OUTSIDE")]
    assert all(diamond.runs_of(name) == 1 for name in DIAMOND)
    assert "left says hello" in first.stdout  # streamed to the console ...
    with sqlite3.connect(diamond.root / ".prefect/prefect.db") as database:  # ... and into Prefect
        assert database.execute("select count(*) from log where message = 'left says hello'").fetchone() == (1,)
        (table,) = database.execute("select data from artifact where key = 'stages'").fetchone()
        assert all(name in table for name in DIAMOND)

    started = time.monotonic()
    second = diamond.python(*FLOW)
    assert second.returncode == 0, second.stdout
    assert "nothing has changed" in second.stdout
    assert time.monotonic() - started < 60  # 8 s on an idle machine
    assert {name: diamond.runs_of(name) for name in DIAMOND} == dict.fromkeys(DIAMOND, 1) | {
        "download": 2,
        "register": 2,
    }
    with sqlite3.connect(diamond.root / "mlruns/mlflow.db") as database:
        linked = "select count(*) from tags t join runs r using (run_uuid) where r.name = 'pipeline' and t.key like 'stage.%'"
        assert database.execute(linked).fetchone() == (2 * 4,)
    assert [row for row in runs(diamond, "name, status") if row[0] == "pipeline"] == [("pipeline", "FINISHED")] * 2


@pytest.mark.slow
def test_dvc_alone_does_the_same_work_and_leaves_the_same_records(diamond: Checkout, tmp_path: Path) -> None:
    by_flow = diamond.python(*FLOW)
    assert by_flow.returncode == 0, by_flow.stdout
    entries, recorded = lock_entries(diamond), runs(diamond, "name, status")
    for made in ("dvc.lock", "log.txt", ".work/pipeline_run"):
        (diamond.root / made).unlink()
    for folder in ("data", "mlruns", ".dvc/cache", ".dvc/tmp", ".work/recorded"):
        (diamond.root / folder).rename(tmp_path / folder.replace("/", "-"))
    by_dvc = diamond.python("-m", "dvc", "repro", PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert by_dvc.returncode == 0, by_dvc.stdout
    assert lock_entries(diamond) == entries
    assert runs(diamond, "name, status") == recorded


@pytest.mark.parametrize("sent", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_cancelling_ends_every_child_and_a_second_run_is_refused_meanwhile(
    checkout: Checkout, request: pytest.FixtureRequest, sent: int
) -> None:
    edges = {"download": [], "left": ["download"], "right": ["download"]}
    checkout.pipeline(edges, {"left": "{steps: 1000, seconds: 1}", "right": "{steps: 1000, seconds: 1}"})
    flow = checkout.start(*FLOW)
    request.addfinalizer(flow.kill)
    wait_for(lambda: checkout.runs_of("left") and checkout.runs_of("right"), 600)  # 20 s on an idle machine
    trainers = [int(line.split()[1]) for line in (checkout.root / "log.txt").read_text().splitlines()[-2:]]
    tree = descendants(flow.pid)
    assert set(trainers) <= set(tree)

    started = time.monotonic()
    refused = checkout.python(*FLOW)
    assert refused.returncode == 2
    assert f"process {flow.pid}" in refused.stdout
    assert time.monotonic() - started < 60  # 1 s on an idle machine

    flow.send_signal(sent)
    said, _ = flow.communicate(timeout=180)
    assert flow.returncode != 0
    assert "Unable to connect" not in said  # the server outlives the last word to it
    assert not wait_until_gone(tree, 10)


def wait_for(condition: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def descendants(process: int) -> list[int]:
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.split()
    parents = dict(zip(map(int, listed[::2]), map(int, listed[1::2]), strict=True))
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return [one for one in found[1:] if one != os.getpid()]


@pytest.mark.slow
def test_a_killed_stage_is_tried_again_and_a_wrong_parameter_is_not(checkout: Checkout) -> None:
    checkout.pipeline({"download": [], "train": ["download"]}, {"train": "{die: 1}"})
    assert checkout.python(*FLOW).returncode == 0
    assert checkout.runs_of("train") == 2
    checkout.settings({"download": [], "train": []}, {"train": "{wrong: 1}"})
    failed = checkout.python(*FLOW)
    assert failed.returncode == 1
    assert "wrong is 1; leave it out" in failed.stdout
    assert "Traceback" not in failed.stdout
    assert checkout.runs_of("train") == 3


@pytest.mark.slow
def test_a_failure_stops_what_depends_on_it_and_nothing_else(checkout: Checkout) -> None:
    checkout.pipeline(DIAMOND, {"left": "{wrong: 1}"})
    assert checkout.python(*FLOW).returncode == 1
    assert {name: checkout.runs_of(name) for name in DIAMOND} == {
        "download": 1, "left": 1, "right": 1, "join": 0, "register": 0
    }  # fmt: skip


@pytest.mark.slow
def test_new_data_found_by_a_look_runs_what_follows(checkout: Checkout) -> None:
    edges = {"download": [], "left": ["download"], "register": ["left"]}
    checkout.pipeline(edges)
    assert checkout.python(*FLOW).returncode == 0
    program = checkout.root / "tasks/download.py"
    program.write_text(program.read_text().replace("[NAME,", "[os.environ['FRESH'], NAME,"))
    assert checkout.python(*FLOW, FRESH="monday").returncode == 0
    assert checkout.runs_of("left") == 2
    found = checkout.python(*FLOW, FRESH="tuesday")
    assert found.returncode == 0, found.stdout
    assert {name: checkout.runs_of(name) for name in edges} == {"download": 3, "left": 3, "register": 3}


@pytest.mark.slow
def test_three_siblings_started_together_never_collide(checkout: Checkout) -> None:
    from flows.stage_process import StageProcesses

    siblings = ["one", "two", "three"]
    checkout.pipeline({"download": []} | {name: ["download"] for name in siblings})
    assert together(StageProcesses(checkout.root), ["download"])[0].status == "ran"
    for attempt in range(20):
        checkout.settings({"download": []} | dict.fromkeys(siblings), dict.fromkeys(siblings, f"{{text: t{attempt}}}"))
        outcomes = together(StageProcesses(checkout.root), siblings)
        assert [outcome.status for outcome in outcomes] == ["ran"] * 3, [outcome.lines for outcome in outcomes]
    assert set(lock_entries(checkout)) == {"download", *siblings}
    assert checkout.python("-m", "dvc", "status").stdout.count("changed") == 1  # download, which always is


def together(processes: object, names: list[str]) -> list[object]:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(lambda name: processes.run(name, lambda line: None), names))  # type: ignore[attr-defined]
