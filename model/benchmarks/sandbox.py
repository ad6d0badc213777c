"""Runs Python written by a model, with no files, no network, no processes, and limits on memory, time and output.

The program runs in a process of its own that is confined before the first line (see sandbox_guest.py for the layers). Where the
kernel cannot confine it, nothing is run: SandboxUnavailable says why.
"""

from __future__ import annotations

import json
import platform
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SUPPORTED_MACHINES = ("x86_64", "aarch64")
GUEST = Path(__file__).with_name("sandbox_guest.py")


class SandboxUnavailable(RuntimeError):
    """This machine cannot confine a program, so none was run."""


@dataclass(frozen=True)
class SandboxLimits:
    seconds: float = 2.0  # wall clock; processor time is limited to the next whole second above it
    memory_megabytes: int = 256  # beyond what the interpreter itself maps
    output_bytes: int = 65_536  # of stdout and of stderr; a program that writes more is stopped

    def __post_init__(self) -> None:
        for name in ("seconds", "memory_megabytes", "output_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"sandbox limit {name} is {getattr(self, name)}; it must be above 0")


@dataclass(frozen=True)
class SandboxResult:
    stdout: str
    stderr: str
    exit_code: int  # negative: ended by that signal
    timed_out: bool
    output_exceeded: bool
    layers: tuple[str, ...]  # what confined the program

    @property
    def succeeded(self) -> bool:
        return self.exit_code == 0 and not self.timed_out and not self.output_exceeded


class Sandbox:
    """One server process that forks a confined child per program (about 5 ms each). Use as a context manager."""

    def __init__(self, limits: SandboxLimits = SandboxLimits()) -> None:
        if sys.platform != "linux" or platform.machine() not in SUPPORTED_MACHINES:
            raise SandboxUnavailable(
                f"generated code is not run on {sys.platform} {platform.machine()}: only Linux on "
                f"{' or '.join(SUPPORTED_MACHINES)} can confine it. "
                "Evaluate there (a virtual machine will do), or name benchmarks without programs in evaluate.tasks."
            )
        self.limits = limits
        self._lock = threading.Lock()
        # The hash seed is fixed so that a program that prints a set prints the same on every run.
        self._server = subprocess.Popen(
            [sys.executable, "-s", "-S", "-P", "-B", str(GUEST)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PYTHONHASHSEED": "0"}, cwd="/", start_new_session=True,
        )  # fmt: skip

    def run(self, code: str, stdin: str = "") -> SandboxResult:
        """What the program printed and how it ended. Raises SandboxUnavailable when it could not be confined."""
        request = {
            "code": code,
            "stdin": stdin,
            "seconds": self.limits.seconds,
            "memory_bytes": self.limits.memory_megabytes << 20,
            "output_bytes": self.limits.output_bytes,
        }
        payload = json.dumps(request).encode()
        with self._lock:
            try:
                self._server.stdin.write(struct.pack("<I", len(payload)) + payload)
                self._server.stdin.flush()
                header = self._server.stdout.read(4)
                reply = json.loads(self._server.stdout.read(struct.unpack("<I", header)[0]))
            except (OSError, struct.error, ValueError) as error:
                raise SandboxUnavailable(f"the sandbox server ended (exit code {self._server.poll()})") from error
        if not reply["ready"]:
            raise SandboxUnavailable(
                f"this kernel could not confine the program, so it was not run: {reply['stderr'].strip() or reply['exit_code']}. "
                "It needs seccomp filters (allowed by the default profiles of Docker and Podman)."
            )
        stopped_by = reply["stopped_by"]
        layers = tuple(json.loads(reply["ready"]))
        return SandboxResult(
            reply["stdout"], reply["stderr"], reply["exit_code"], stopped_by == "time", stopped_by == "output", layers
        )

    def close(self) -> None:
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(timeout=10)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_python(code: str, stdin: str = "", seconds: float = 2.0, memory_megabytes: int = 256) -> SandboxResult:
    """The result of one program; `run_many` shares the start-up cost between programs."""
    with Sandbox(SandboxLimits(seconds, memory_megabytes)) as sandbox:
        return sandbox.run(code, stdin)


def run_many(
    programs: Sequence[tuple[str, str]], limits: SandboxLimits = SandboxLimits(), workers: int = 2
) -> list[SandboxResult]:
    """Results of (code, stdin) pairs in the same order, each in its own confined process, `workers` at a time."""
    if not programs:
        return []
    servers = [Sandbox(limits) for _ in range(min(workers, len(programs)))]
    try:
        with ThreadPoolExecutor(len(servers)) as pool:
            jobs = [pool.submit(servers[index % len(servers)].run, *program) for index, program in enumerate(programs)]
            return [job.result() for job in jobs]
    finally:
        for server in servers:
            server.close()
