"""Forks a process that has loaded libraries into programs for those who ask for them, as flows/fork_client.py does.

Engines (flows/engines.py) and stages (flows/fork_server.py) are such programs. Only where a fork does not differ from a fresh
start; whoever is refused starts afresh.
"""

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from flows.guard import die_with_parent

OWN = ("bench", "flows", "model", "tasks", "tests")  # a clone's code may change while its server lives
# Libraries read these while they are loaded: a program whose values differ from the server's is started afresh.
READ_WHILE_LOADING = (
    "PYTHON", "LD_", "LC_", "LANG", "HOME", "XDG_", "TMPDIR", "TZ",
    "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "TOKENIZERS_", "ACCELERATE_", "MLFLOW_", "DVC_", "GIT_", "GX_", "MPL", "ARROW_",
    "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "TORCH", "PYTORCH_", "ATEN_",
)  # fmt: skip
READ_LATER = ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE")
LOOK_SECONDS = 1.0


class Forks:
    """Forks whoever is asked for on `listener` and tells who asked how it ended.

    `begin` is what a fork does: it gets the request and its streams, and never returns. Who asked and has gone takes the fork
    along: it gets `on_loss`.
    """

    def __init__(self, listener: socket.socket, begin: Callable[[Any, list[int]], NoReturn], on_loss: int, group: str):
        self.listener, self.begin, self.on_loss, self.group = listener, begin, on_loss, group
        self.children: dict[int, socket.socket | None] = {}
        self.ended: dict[int, int] = {}
        self.is_alone = self.is_closed = False
        self._woken, self._wakes = socket.socketpair()
        self._wakes.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)

    def turn(self, seconds: float, *others: socket.socket) -> list[socket.socket]:
        """Waits that long for something to do, and does it. Returns the sockets that had something, `others` among them.

        `ended` then has the exit codes of children that have ended meanwhile.
        """
        asking = {connection: child for child, connection in self.children.items() if connection}
        readable, _, _ = select.select([self.listener, self._woken, *others, *asking], [], [], seconds)
        if self._woken in readable:
            self._woken.recv(4096)
        if self.listener in readable:
            self._answer(self.listener.accept()[0])
        for connection, child in asking.items():
            if connection in readable:  # it says nothing more: it is gone
                self.children[child] = None
                connection.close()
                with suppress(ProcessLookupError):
                    os.kill(child, self.on_loss)
        self._reap()
        return readable

    def close(self) -> None:
        """From now on everybody is refused."""
        self.is_closed = True

    def fork(self, request: Mapping[str, Any], descriptors: list[int], connection: socket.socket | None = None) -> int:
        """The new process, which has `begun`."""
        child = os.fork()
        if child == 0:
            signal.set_wakeup_fd(-1)
            for each in (self.listener, self._woken, self._wakes, connection, *self.children.values()):
                if each is not None:
                    each.close()
            self.begin(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        self.children[child] = connection
        return child

    def _answer(self, connection: socket.socket) -> None:
        header, descriptors, _, _ = socket.recv_fds(connection, 8, 3)
        with connection.makefile("rb") as stream:
            body = stream.read(int.from_bytes(header, "big"))
        request = json.loads(body) if body and len(descriptors) == 3 else None
        if request is None or self.is_closed or not same_settings(request["environment"]):
            for descriptor in descriptors:
                os.close(descriptor)
            connection.close()  # it starts its program afresh
            return
        child = self.fork(request, descriptors, connection)
        _tell(connection, f"{child} {self.group}")

    def _reap(self) -> None:
        self.ended.clear()
        self.is_alone = False
        while not self.is_alone:
            try:
                ended, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.is_alone = True
                return
            if not ended:
                return
            code = os.waitstatus_to_exitcode(status)
            self.ended[ended] = code = code if code >= 0 else 128 - code
            if connection := self.children.pop(ended, None):
                _tell(connection, str(code))
                connection.close()


def _tell(connection: socket.socket, what: str) -> None:
    with suppress(OSError):
        connection.sendall(f"{what}\n".encode())


_LOADED_WITH: dict[str, str] = {}


def same_settings(environment: Mapping[str, str]) -> bool:
    """True when libraries loaded in that environment would be as they are here."""
    return _read_while_loading(environment) == _LOADED_WITH


def _read_while_loading(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_WHILE_LOADING) and name not in READ_LATER
    }


def remember_settings() -> None:
    """Call it before libraries are loaded."""
    _LOADED_WITH.clear()
    _LOADED_WITH.update(_read_while_loading(os.environ))


def why_unfit() -> str:
    """What makes forks of this process differ from processes started afresh; empty where they would not."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        return f"{threads - 1} threads of it would be missing in a fork"
    if "libcuda.so" in Path("/proc/self/maps").read_text():
        return "CUDA's driver is loaded, which does not survive a fork"
    return ""


def become(request: Mapping[str, Any], descriptors: list[int]) -> NoReturn:
    """This process goes on as `python -m MODULE ARGUMENTS` would in the folder and environment of the request."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    for each, handler in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        signal.signal(each, handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    die_with_parent(signal.SIGKILL)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    _, module, *arguments = request["arguments"]
    sys.argv, sys.path[0] = [module, *arguments], request["folder"]
    Path("/proc/self/comm").write_text(module.rpartition(".")[2][:15])  # what `top` shows
    for name in [name for name in sys.modules if name.partition(".")[0] in OWN or name == module]:
        del sys.modules[name]
    importlib.invalidate_caches()
    if "numpy" in sys.modules:  # global generators begin anywhere; Python's own one does so by itself
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
    os._exit(_run(module))


def _run(module: str) -> int:
    """Runs it to the end of its threads and exit handlers; freeing what it has loaded would take longer than loading it did."""
    code: Any = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    return (code or 0) & 0xFF
