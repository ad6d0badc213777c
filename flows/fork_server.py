"""Forks stages: python -m flows.fork_server DESCRIPTOR IDLE_SECONDS LIBRARY... (flows/forks.py starts it)

A stage is forked as a guard, like flows/guard.py, that leads a process group of its own and forks what runs in it: DVC, and
through the `python` that it puts first on DVC's PATH, the stage's program.
"""

import gc
import os
import pkgutil
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from flows.forking import LOOK_SECONDS, Forks, become, remember_settings, why_unfit
from flows.forks import CLIENT, address_in, listening
from flows.guard import GRACE_SECONDS, die_with_parent

# Threads do not survive a fork, so libraries that start some while they are loaded are told not to.
WITHOUT_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
UNFIT = 3
END_SECONDS = GRACE_SECONDS - 1  # before who stands for the guard is killed


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
