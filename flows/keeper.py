"""Keeps a command running and its log small: python -S -E flows/keeper.py LOG COMMAND...

What ends by itself is started again, at once after a long life and after growing pauses otherwise. SIGTERM ends both. The log is
cut into files of LOG_BYTES, of which LOG_FILES old ones are kept. Standard library only: it costs a few megabytes.
"""

import logging.handlers
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

LOG_BYTES, LOG_FILES = 5_000_000, 3
SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
LONG_LIFE_SECONDS = 30.0
GUARD = Path(__file__).with_name("guard.py")


def main(log: Path, command: list[str]) -> int:
    """Returns 0 after SIGTERM, when the command and all its children are gone."""
    stopping = threading.Event()
    running: list[subprocess.Popen[str]] = []

    def stop(*_: object) -> None:
        stopping.set()
        for process in running:
            process.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    write = _writer(log)
    pause = SHORTEST_PAUSE
    while not stopping.is_set():
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-S", "-E", str(GUARD), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        running[:] = [process]
        if stopping.is_set():
            process.terminate()
        threading.Thread(target=_copy, args=(process, write), daemon=True).start()
        code = process.wait()
        if stopping.is_set():
            break
        pause = SHORTEST_PAUSE if time.monotonic() - began > LONG_LIFE_SECONDS else min(pause * 2, LONGEST_PAUSE)
        write(f"keeper: {command[0]} ended with {code}; it starts again in {pause:.0f} s")
        stopping.wait(pause)
    return 0


def _copy(process: subprocess.Popen[str], write: object) -> None:
    for line in process.stdout or ():
        write(line.rstrip("\n"))  # type: ignore[operator]


def _writer(log: Path) -> object:
    """A function that appends a line to the log, which turns over when it is full."""
    handler = logging.handlers.RotatingFileHandler(log, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%m-%d %H:%M:%S"))
    logger = logging.Logger("kept")
    logger.addHandler(handler)
    return logger.info


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python flows/keeper.py LOG COMMAND [ARGUMENT ...]")
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
