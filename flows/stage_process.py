"""One pipeline stage as a child process (flows/stage_program.py, guarded), its lines, and what its end means."""

import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from flows import forks
from flows.slots import needs_gpu, the_gpu

GUARD = Path(__file__).with_name("guard.py")
DVC = (sys.executable, "-m", "dvc", "--wait-for-lock")  # the flag stands before the command, or DVC refuses it
STATUS = {
    "^Running stage '": "ran",
    "is cached - skipping run": "restored",
    "didn't change, skipping": "unchanged",
}
ADVICE = re.compile(  # DVC says this after every stage; here there is nothing to add to git
    r"To track the changes with git|^\s*git add |To enable auto staging|dvc config core.autostage|Use `dvc push`"
    r"|(Updat|Generat)ing lock file 'dvc.lock'"
)
EXIT_CODE = re.compile(r"failed to run: .*, exited with (-?\d+)")
HELD = re.compile(r"Unable to acquire lock|is busy, it is being blocked by")  # said before DVC begins a stage
BUSY = re.compile(r"database is locked")
WAITS = "another stage holds what it needs"
WAIT_SECONDS, LONGEST_WAIT_SECONDS = 5.0, 60.0
BAD_INPUT, TEMPORARY = 2, 75
SAYS_WHY = 78  # of flows/stage_program.py: its last line is the reason
PROGRESS_SECONDS = 15.0


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: `status` is ran, restored, unchanged or failed; `reason` is empty unless it failed."""

    status: str
    seconds: float
    reason: str = ""
    can_be_retried: bool = False
    lines: list[str] = field(default_factory=list, repr=False)


class StageProcesses:
    """Starts stages and, when told to stop, ends all of them and starts no more."""

    def __init__(self, root: Path):
        self.root = root
        self.environment: dict[str, str] = {}
        self.stopped = threading.Event()
        self._live: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()

    def run(self, stage: str, on_line: Callable[[str], None]) -> Outcome:
        """Runs a stage to its end, handing over each line it prints."""
        with self.turn(stage):
            return self.run_command(stage_program(stage), on_line)

    def turn(self, stage: str) -> AbstractContextManager[None]:
        """Holds the GPU while the body runs, where the stage needs one."""
        return the_gpu(self.stopped) if needs_gpu(self.root, stage) else nullcontext()

    def run_command(self, command: Sequence[str], on_line: Callable[[str], None]) -> Outcome:
        """The same for any command. While another stage holds what DVC needs for it, it waits: that may take hours, not tries."""
        pause = WAIT_SECONDS
        while True:
            outcome = self._run_once(command, on_line)
            if outcome.reason != WAITS or self.stopped.wait(pause):
                return outcome
            pause = min(2 * pause, LONGEST_WAIT_SECONDS)

    def _run_once(self, command: Sequence[str], on_line: Callable[[str], None]) -> Outcome:
        started = time.monotonic()
        with self._lock:
            if self.stopped.is_set():
                return Outcome("failed", 0.0, "stopped before it began")
            process = subprocess.Popen(
                [sys.executable, "-S", "-E", str(GUARD), *command],
                cwd=self.root,
                env=environment() | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._live.add(process)
        lines: list[str] = []
        for shown in _lines_of(process):
            lines.append(shown)
            on_line(shown)
        code = process.wait()
        with self._lock:
            self._live.discard(process)
        return judge(code, lines, time.monotonic() - started, self.stopped.is_set())

    def stop(self, grace_seconds: float = 20.0) -> None:
        """Tells every guard to end its stage and waits until all are gone."""
        self.stopped.set()
        with self._lock:
            live = list(self._live)
        for process in live:
            process.terminate()
        deadline = time.monotonic() + grace_seconds
        for process in live:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()


def _lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    """What the process prints, line by line; of a progress bar, which rewrites its line, one state in PROGRESS_SECONDS."""
    stream = process.stdout
    assert isinstance(stream, io.TextIOWrapper)
    stream.reconfigure(newline="")  # lines may end in a carriage return, and say so
    shown_at = 0.0
    for line in stream:
        text = line.rstrip()
        if not text or ADVICE.search(text):
            continue
        if line.endswith("\r"):
            if time.monotonic() - shown_at < PROGRESS_SECONDS:
                continue
            shown_at = time.monotonic()
        yield text


def stage_program(*arguments: str) -> list[str]:
    """The command of flows/stage_program.py."""
    return forks.command("-m", "flows.stage_program", *arguments)


def environment() -> dict[str, str]:
    """`python` in dvc.yaml is to be the Python that runs this, whether or not its environment is activated."""
    return os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}


def judge(code: int, lines: list[str], seconds: float, stopped: bool = False) -> Outcome:
    """What an exit code and the printed lines mean, and whether another try could end differently.

    A signal (somebody killed it, memory ran out), a held lock and a failing disk or network may pass; what a person
    wrote and a bug in the code do not.
    """
    if code == 0:
        statuses = [status for pattern, status in STATUS.items() for line in lines if re.search(pattern, line)]
        return Outcome(statuses[0] if statuses else "ran", seconds, lines=lines)
    if stopped:
        return Outcome("failed", seconds, "stopped", lines=lines)
    exits = [int(match[1]) for line in lines if (match := EXIT_CODE.search(line))]
    stage_code = exits[-1] if exits else code  # DVC's own code is 255 whatever happened
    killed_by = -stage_code if stage_code < 0 else stage_code - 128
    if not exits and any(HELD.search(line) for line in lines):
        reason, can_be_retried = WAITS, True
    elif any(BUSY.search(line) for line in lines):
        reason, can_be_retried = "a database was locked", True
    elif 0 < killed_by < 65:
        reason, can_be_retried = f"killed by signal {killed_by}", True
    elif stage_code == TEMPORARY:
        reason, can_be_retried = "the operating system refused something", True
    elif code == SAYS_WHY and lines:
        complaint = next((line for line in reversed(lines) if line.startswith("ERROR:")), "")  # in DVC's own words
        reason, can_be_retried = f"{lines[-1]} {complaint}".rstrip(), False
    elif stage_code == BAD_INPUT:
        reason, can_be_retried = "its input or its parameters are wrong, see its last lines", False
    else:
        reason, can_be_retried = f"exit code {stage_code}", False
    return Outcome("failed", seconds, reason, can_be_retried, lines)
