"""Runs a command that cannot outlive whoever started it: python -S -E flows/guard.py COMMAND...

When this process is told to stop, or its parent dies in any way, the whole process group gets SIGTERM, and what is left after a
grace period SIGKILL. Standard library only, so that it starts in milliseconds.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

GRACE_SECONDS = 15.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main(command: list[str]) -> int:
    """The command's exit code (128 + signal when it was killed), or 143 when this guard was told to stop it."""
    parent = os.getppid()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started us hears the keyboard and tells us
    if os.getpgid(0) != os.getpid():
        os.setpgid(0, 0)
    die_with_parent(signal.SIGTERM, adopts=True)
    child = subprocess.Popen(command)
    while child.poll() is None:
        if stopping.is_set() or os.getppid() != parent:  # the second also covers systems without the signal
            _end_group(child)
            return 128 + signal.SIGTERM
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=0.2)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def die_with_parent(number: int, adopts: bool = False) -> None:
    """Linux only: this signal here when the parent dies; `adopts`: orphans of our children become ours, so that we can wait for
    them."""
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return
    prctl(PR_SET_PDEATHSIG, number)
    if adopts:
        prctl(PR_SET_CHILD_SUBREAPER, 1)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline:
        child.poll()
        if not _has_children():
            return
        time.sleep(0.05)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.killpg(0, signal.SIGKILL)  # takes this process along, too


def _has_children() -> bool:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python flows/guard.py COMMAND [ARGUMENT ...]")
    sys.exit(main(sys.argv[1:]))
