"""Engines that are forked: they end as their stand-ins say, and nobody is left when a stand-in or the worker is killed."""

import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from flows.fork_client import __file__ as CLIENT
from tests.conftest import ROOT
from tests.flows.test_pipeline import descendants
from tests.flows.test_stage_process import wait_until_gone

WORKER = """
import os, sys
from flows import engines
engines.IDLE_SECONDS = 2.0
engines.start_server.__defaults__ = (0.0, ())  # no libraries
print(*engines.start(), flush=True)
print(os.environ[engines.ADDRESS], flush=True)
sys.stdin.read()
"""


class Engines:
    """A process that has started the server, and a Prefect server that never answers, so that engines wait."""

    def __init__(self, home: Path, worker: subprocess.Popen[str], silent: socket.socket):
        self.worker = worker
        assert worker.stdout is not None
        self.server, command = worker.stdout.readline().split(maxsplit=1)
        self.command = shlex.split(command)
        self.stages = worker.stdout.readline().strip()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        self.environment = os.environ | {"PREFECT_HOME": str(home), "PREFECT_API_URL": address, "DO_NOT_TRACK": "1"}

    def ask(self, flow_run: str) -> subprocess.Popen[str]:
        environment = self.environment | {"PREFECT__FLOW_RUN_ID": flow_run}
        return subprocess.Popen(self.command, env=environment, stderr=subprocess.PIPE, text=True)

    def engine(self) -> list[int]:
        """The engine, as soon as there is one."""
        while not (found := descendants(int(self.server))):
            pass
        return found

    def stage(self, folder: Path, text: str) -> str:
        """What a program prints that the server of stages forks."""
        (folder / "program.py").write_text(text)
        command = [sys.executable, "-S", "-E", str(CLIENT), self.stages, "-m", "program"]
        return subprocess.check_output(command, cwd=folder, env=self.environment, text=True, timeout=60)


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = os.environ | {"PREFECT_HOME": str(tmp_path), "DO_NOT_TRACK": "1"}
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        subprocess.Popen([sys.executable, "-c", WORKER], cwd=ROOT, env=environment, text=True, **pipes) as worker,
    ):
        engines = Engines(tmp_path, worker, silent)
        yield engines
        worker.kill()
    assert not wait_until_gone([int(engines.server)], 10)


def test_a_stand_in_ends_with_its_engines_code_and_passes_signals_on(engines: Engines) -> None:
    wrong = engines.ask("nonsense")
    assert "Invalid flow run id" in wrong.communicate(timeout=60)[1]
    assert wrong.returncode == 1
    waiting = engines.ask(str(uuid4()))
    engine = engines.engine()
    waiting.terminate()
    assert waiting.wait(timeout=60) == 128 + signal.SIGTERM
    assert not wait_until_gone(engine, 10)


def test_an_engine_goes_with_its_stand_in_but_outlives_the_worker(engines: Engines) -> None:
    waiting = engines.ask(str(uuid4()))
    engine = engines.engine()
    engines.worker.kill()
    assert engines.worker.wait(timeout=10) == -signal.SIGKILL
    assert wait_until_gone(engine, 1) == engine
    waiting.kill()
    assert not wait_until_gone(engine, 10)


@pytest.mark.skipif(sys.platform != "linux", reason="stages are forked on Linux only")
def test_a_worker_has_a_server_of_stages_when_one_is_wanted_and_no_longer(engines: Engines, tmp_path: Path) -> None:
    grandparent = "import os; print(Path(f'/proc/{os.getppid()}/stat').read_text().split()[3])"
    program = f"from pathlib import Path\n{grandparent}"
    assert not descendants(int(engines.server))
    first = int(engines.stage(tmp_path, program))
    assert descendants(int(engines.server)) == [first]
    assert int(engines.stage(tmp_path, program)) == first
    assert not wait_until_gone([first], 20)
    second = int(engines.stage(tmp_path, program))
    assert second not in (first, os.getpid())
    os.kill(second, signal.SIGKILL)
    assert int(engines.stage(tmp_path, program)) not in (first, second, os.getpid())
