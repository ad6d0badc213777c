"""Forks programs for those who ask: python -m flows.fork_server DESCRIPTOR IDLE_SECONDS LIBRARY... (flows/forks.py starts it)

Whoever asks is flows/fork_client.py, which stands for its program. A stage is forked as a guard, like flows/guard.py, that leads
a process group of its own and forks what runs in it: DVC, and through the `python` that it puts first on DVC's PATH, the stage's
program. Only where a fork does not differ from a fresh start; whoever is refused starts afresh.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from flows.forks import CLIENT, address_in, listening
from flows.guard import GRACE_SECONDS, die_with_parent

OWN = ("bench", "flows", "model", "tasks", "tests")  # a clone's code may change while its server lives
# Threads do not survive a fork, so libraries that start some while they are loaded are told not to.
WITHOUT_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
# Libraries read these while they are loaded: a program whose values differ from the server's is started afresh.
READ_WHILE_LOADING = (
    *("PYTHON", "LD_", "LC_", "LANG", "HOME", "XDG_", "TMPDIR", "TZ"),
    *(
        "HF_",
        "HUGGINGFACE_",
        "TRANSFORMERS_",
        "TOKENIZERS_",
        "ACCELERATE_",
        "MLFLOW_",
        "DVC_",
        "GIT_",
        "GX_",
        "MPL",
        "ARROW_",
    ),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "TORCH", "PYTORCH_", "ATEN_"),
)
READ_LATER = ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE")
UNFIT = 3
LOOK_SECONDS = 1.0
END_SECONDS = GRACE_SECONDS - 1  # before who stands for the guard is killed


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


def guard_stage(within: str, request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Runs a stage in a process group of its own: nothing of it outlives this process, its server, or who asked for it.

    `within` is the server's folder.
    """
    stopping, server = threading.Event(), os.getppid()
    os.setsid()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    die_with_parent(signal.SIGTERM, adopts=True)
    folder = tempfile.mkdtemp(
        dir=within
    )  # removed by hand: forks of this process would remove what is to go at its exit
    _put_python(Path(folder))
    variables = request["environment"]
    variables["PATH"] = os.pathsep.join([folder, variables.get("PATH", os.defpath)])
    inside = Forks(listening(folder), become, signal.SIGKILL, "shared")
    stage = inside.fork(request, descriptors)
    while stage not in inside.ended and not stopping.is_set() and os.getppid() == server:
        inside.turn(LOOK_SECONDS)
    code = inside.ended.get(stage, 128 + signal.SIGTERM)
    if code > 128:  # what it had started may be left
        _end_group(inside)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(code)


def _end_group(inside: Forks) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + END_SECONDS
    while not inside.is_alone and time.monotonic() < deadline:
        inside.turn(0.05)
    if not inside.is_alone:
        os.killpg(0, signal.SIGKILL)  # takes this process along, too


def _put_python(folder: Path) -> None:
    """A `python` that is forked here where it is to run a stage's program, and the real one otherwise."""
    python, client, socket_ = (shlex.quote(each) for each in (sys.executable, str(CLIENT), address_in(str(folder))))
    file = folder / "python"
    file.write_text(
        f'#!/bin/sh\ncase "$1 $2" in "-m tasks."*) exec {python} -S -E {client} {socket_} "$@" ;; esac\n'
        f'exec {python} "$@"\n'
    )
    file.chmod(0o700)


def main(descriptor: int, idle_seconds: float, libraries: list[str]) -> int:
    """Serves until its parent or its time is gone and the last stage has ended; UNFIT where forks would not be faithful."""
    parent, asked = os.getppid(), time.monotonic()
    remember_settings()
    os.environ.update(WITHOUT_THREADS | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"})  # looking for GPUs must not start CUDA
    listener = socket.socket(fileno=descriptor)
    forks = Forks(listener, partial(guard_stage, str(Path(listener.getsockname()).parent)), signal.SIGTERM, "own")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: forks.close() if forks.children else os._exit(0))
    waiting, unfit = list(libraries), ""
    while forks.children or not (
        forks.is_closed or os.getppid() != parent or 0 < idle_seconds < time.monotonic() - asked
    ):
        if forks.turn(0.0 if waiting else LOOK_SECONDS):
            asked = time.monotonic()
        elif waiting:
            with suppress(Exception):  # a stage that needs it says what is wrong
                pkgutil.resolve_name(waiting.pop(0))
            if unfit := why_unfit():
                print(f"stages are started afresh: {unfit}", file=sys.stderr, flush=True)
                forks.close()
                waiting.clear()
            if not waiting:
                gc.collect()
                gc.freeze()  # the collector would copy the pages that forks share
    return UNFIT if unfit else 0


if __name__ == "__main__":
    os._exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
