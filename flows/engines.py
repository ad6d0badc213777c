"""Engines of flow runs, forked from a process that has loaded Prefect already, because loading it is half of what a run costs.

A worker forks this server before it starts anything else. flows/engine_client.py asks it for an engine. Engines outlive their
worker, as those that a worker starts itself do; the server ends when its worker is gone and its last engine has ended.
"""

import ctypes
import json
import os
import runpy
import select
import shlex
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

CLIENT = Path(__file__).with_name("engine_client.py")
OWN = ("flows", "model", "tasks")  # a clone's code may change while its worker runs
LOOK_SECONDS = 0.2


def start() -> tuple[int, str]:
    """Forks the server: its process and the command that stands for an engine. Call it before there are threads."""
    folder = tempfile.mkdtemp(prefix="unmask-engines-")
    address = f"{folder}/socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        worker = os.getpid()
        process = os.fork()
        if process == 0:
            _serve(listener, worker)
            Path(address).unlink()
            Path(folder).rmdir()
            os._exit(0)
    return process, shlex.join([sys.executable, "-S", "-E", str(CLIENT), address])


def _serve(listener: socket.socket, worker: int) -> None:
    """Forks an engine for every request, and tells who asked for it how it ended."""
    import prefect.deployments.steps.core
    import prefect.engine
    import prefect.flow_engine  # noqa: F401

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # engines hear it themselves; when they have ended, so does this
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    engines: dict[int, socket.socket] = {}
    while engines or os.getppid() == worker:
        readable, _, _ = select.select([listener, *engines.values()], [], [], LOOK_SECONDS)
        if listener in readable:
            connection, _ = listener.accept()
            if request := _read(connection):
                engine = os.fork()
                if engine == 0:
                    for each in (listener, connection, *engines.values()):
                        each.close()
                    _become(*request)
                for descriptor in request[1]:
                    os.close(descriptor)
                engines[engine] = connection
                _tell(connection, engine)
        for engine, connection in engines.items():
            if connection in readable:  # whoever stands for it was killed, so it has no worker any more
                with suppress(ProcessLookupError):
                    os.kill(engine, signal.SIGKILL)
        _reap(engines)


def _read(connection: socket.socket) -> tuple[dict, list[int]] | None:
    header, descriptors, _, _ = socket.recv_fds(connection, 8, 2)
    with connection.makefile("rb") as stream:
        body = stream.read(int.from_bytes(header, "big"))
    if len(descriptors) == 2 and body:
        return json.loads(body), descriptors
    connection.close()
    return None


def _tell(connection: socket.socket, number: int) -> None:
    with suppress(OSError):
        connection.sendall(f"{number}\n".encode())


def _reap(engines: dict[int, socket.socket]) -> None:
    while engines:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if not ended:
            return
        code = os.waitstatus_to_exitcode(status)
        connection = engines.pop(ended)
        _tell(connection, code if code >= 0 else 128 - code)
        connection.close()


def _die_with_server() -> None:
    """Linux only."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _become(request: dict, descriptors: list[int]) -> NoReturn:
    """This process goes on as `python -m prefect.engine` would in the folder and environment of the request."""
    for number, descriptor in enumerate(descriptors, start=1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.default_int_handler if name == signal.SIGINT else signal.SIG_DFL)
    os.setpgid(0, 0)  # signals come from who stands for it, and only once
    _die_with_server()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv, sys.path[0] = ["prefect.engine"], request["folder"]
    for name in [name for name in sys.modules if name.partition(".")[0] in OWN or name == "prefect.engine"]:
        del sys.modules[name]
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
    sys.exit(0)
