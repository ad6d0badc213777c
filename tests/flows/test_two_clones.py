"""Two clones with a worker each, as on two machines: only the DVC remote and the servers are shared, and links break."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import Checkout, copy_of_this_repository
from tests.flows.fleet import EDGES, Fleet

pytestmark = pytest.mark.slow
# A worker is lost after 90 seconds and ends its runs after 75: Prefect's server on SQLite has been seen to hold its lock for 60.
HEARTBEAT_SECONDS = 30


class Link:
    """A loopback proxy to a port; `cut` breaks every connection, and lets none begin until `mend`."""

    def __init__(self, target: int):
        self.target, self.is_cut = target, False
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self.is_cut = True
        for each in list(self._open):
            self._close(each)

    def mend(self) -> None:
        self.is_cut = False

    def _close(self, each: socket.socket) -> None:
        self._open.discard(each)
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            if self.is_cut:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self.target))
            self._open |= {near, far}
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        self._close(source)
        self._close(target)


class Pair:
    """A fleet with servers and the worker of queues cpu and default, another clone with the GPU's, and a link between."""

    def __init__(self, fleet: Fleet, folder: Path, remote: Path):
        self.fleet, self.remote = fleet, remote
        self.clone = Checkout(folder / "other")
        subprocess.run(["git", "clone", "-q", str(self.fleet.root), str(self.clone.root)], check=True)
        self.elsewhere = Checkout(self.clone.root / ".work/checkouts/mini")
        self.fleet.up("--no-worker")
        self.link = Link(int(self.fleet.service("prefect")["address"].split(":")[2].partition("/")[0]))
        direct = self.fleet.service("prefect")["address"]
        self.workers = [
            self.work(self.fleet.clone, direct, "cpu", "default"),
            self.work(self.clone, f"http://127.0.0.1:{self.link.port}/api", "gpu"),
        ]

    def work(self, clone: Checkout, api: str, *queues: str) -> subprocess.Popen[bytes]:
        """A worker as `make worker` starts it; what it says goes to a file."""
        environment = clone.environment | {
            "PREFECT_API_URL": api,
            "MLFLOW_TRACKING_URI": self.fleet.service("mlflow")["address"],
            "PREFECT_WORKER_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS),
        }
        with (self.fleet.root / ".work/services" / f"{clone.root.name}-{queues[0]}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "flows.worker", "--queues", *queues],
                cwd=clone.root, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def training(self, checkout: Checkout) -> list[int]:
        """Training processes that are alive in a checkout."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command = (process / "cmdline").read_bytes().split(b"\0")
                if (process / "cwd").resolve() == checkout.root and b"tasks.train" in command:
                    found.append(int(process.name))
        return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    fleet = Fleet(copy_of_this_repository(folder), folder / "remote")
    workers: list[subprocess.Popen[bytes]] = []
    try:
        pair = Pair(fleet, folder, folder / "remote")
        workers = pair.workers
        yield pair
    finally:
        for worker in workers:
            worker.kill()
        fleet.down()


def test_two_clones_share_the_work_through_a_remote_and_nothing_runs_twice(pair: Pair) -> None:
    """CPU stages in one clone, the GPU stage in the other; no folder is shared but the DVC remote."""
    fleet, elsewhere, remote = pair.fleet, pair.elsewhere, pair.remote
    first = fleet.wait_for_end(fleet.start_run())
    assert first["type"] == "COMPLETED", first["message"]
    ran = {name: (fleet.checkout.runs_of(name), elsewhere.runs_of(name)) for name in EDGES}
    assert ran == dict.fromkeys(EDGES, (1, 0)) | {"train": (0, 1)}
    again = fleet.wait_for_end(fleet.start_run())
    assert again["type"] == "COMPLETED", again["message"]
    assert (fleet.checkout.runs_of("train"), elsewhere.runs_of("train")) == (0, 1)
    assert fleet.checkout.runs_of("report") == 1

    changed = ("--param", 'overrides={"train.steps": 30, "train.seconds": 0.2}')
    run = fleet.start_run(*changed)
    fleet.wait(lambda: list((elsewhere.root / ".work/train").glob("*/run/step-*")))
    remote.rename(remote.with_name("away"))
    remote.write_text("not a folder")
    failed = fleet.wait_for_end(run)
    assert failed["type"] == "FAILED"
    assert "DVC remote cannot be reached" in failed["message"]
    assert elsewhere.runs_of("train") == 2
    remote.unlink()
    (remote.with_name("away")).rename(remote)
    mended = fleet.wait_for_end(fleet.start_run(*changed))
    assert mended["type"] == "COMPLETED", mended["message"]
    assert elsewhere.runs_of("train") == 2  # what was made while the remote was away is only pushed


def test_a_worker_behind_a_broken_link_ends_its_stage_before_another_takes_it_over(pair: Pair, tmp_path: Path) -> None:
    """The link breaks for a moment, which harms nothing, and then for good while a stage trains."""
    fleet, here, elsewhere = pair.fleet, pair.fleet.checkout, pair.elsewhere
    before = here.runs_of("train"), elsewhere.runs_of("train")
    steps = 100  # of a second each: more than the worker has before it must end them
    run = fleet.start_run("--param", f'overrides={{"train.steps": {steps}, "train.seconds": 1.0}}')
    (process,) = fleet.wait(lambda: pair.training(elsewhere))
    pair.link.cut()
    time.sleep(HEARTBEAT_SECONDS / 4)
    pair.link.mend()
    time.sleep(HEARTBEAT_SECONDS / 4)
    assert pair.training(elsewhere) == [process]
    pair.link.cut()
    api = fleet.service("prefect")["address"]
    pair.workers.append(pair.work(fleet.clone, api, "gpu"))
    both = 0

    def is_taken_over() -> bool:
        nonlocal both
        there, taken = pair.training(elsewhere), pair.training(here)
        both = max(both, min(len(there), len(taken)))
        return bool(taken)

    fleet.wait(is_taken_over)
    assert both == 0 and not pair.training(elsewhere)
    pair.link.mend()  # the other clone's worker is back, and finds nothing to do
    ended = fleet.wait_for_end(run)
    assert ended["type"] == "COMPLETED", ended["message"]
    assert (here.runs_of("train"), elsewhere.runs_of("train")) == (before[0] + 1, before[1] + 1)
    assert (here.root / "data/models/train/fingerprint").read_text() == fleet.uninterrupted(tmp_path, steps)
