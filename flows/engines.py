"""The server of a worker's engines: they are forked from a process that has loaded Prefect, which is half of what a run costs.

A worker forks it before it starts anything else. Engines outlive their worker, as those that a worker starts itself do; the
server ends when its worker is gone and its last engine has ended. It also starts the server of stages (flows/forks.py) when the
first engine asks for one, and again when it is wanted after it has ended for want of work.
"""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from flows.fork_server import UNFIT
from flows.forking import LOOK_SECONDS, Forks, become, remember_settings
from flows.forks import ADDRESS, CLIENT, address_in, listening, start_server

IDLE_SECONDS = 60.0  # a run's stages follow each other faster


def start() -> tuple[int, str]:
    """Forks the server: its process and the command that stands for an engine. Call it before there are threads."""
    folder = tempfile.mkdtemp(prefix="unmask-engines-")
    listeners = [listening(folder)]
    if sys.platform == "linux":
        stages = f"{folder}/stages"
        Path(stages).mkdir(mode=0o700)
        listeners.append(listening(stages))
        os.environ[ADDRESS] = address_in(stages)
    worker = os.getpid()
    process = os.fork()
    if process == 0:
        _serve(worker, *listeners)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
    for each in listeners:
        each.close()
    return process, shlex.join([sys.executable, "-S", "-E", str(CLIENT), address_in(folder), "-m", "prefect.engine"])


def _serve(worker: int, listener: socket.socket, stages: socket.socket | None = None) -> None:
    remember_settings()
    import prefect.deployments.steps.core
    import prefect.engine
    import prefect.flow_engine  # noqa: F401

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # engines hear it themselves; when they have ended, so does this
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    engines = Forks(listener, partial(_become_engine, stages), signal.SIGKILL, "own")
    server: subprocess.Popen[bytes] | None = None
    while engines.children or os.getppid() == worker:
        readable = engines.turn(LOOK_SECONDS, *([stages] if stages and not server else []))
        if stages in readable:
            server = start_server(stages, Path.cwd(), IDLE_SECONDS)
        if server and server.pid in engines.ended:
            if engines.ended[server.pid] == UNFIT:
                stages.close()  # whoever asks from now on starts afresh
                stages = None
            server = None


def _become_engine(stages: socket.socket | None, request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    if stages:
        stages.close()
    os.setpgid(0, 0)  # signals come from who stands for it, and only once
    become(request, descriptors)
