"""A kept service's log turns over, and the keeper ends with what it keeps."""

import subprocess
import sys
import time
from pathlib import Path

from flows.keeper import LOG_BYTES, LOG_FILES
from flows.server import KEEPER

LINE_CHARACTERS = 10_000
# More than all files together may hold; says so at the end and goes on living.
TALKER = """
import sys, time
for number in range({lines}):
    print(f"{{number:08d}}", "x" * {characters})
print("the last line", flush=True)
time.sleep(300)
"""


def test_a_log_that_is_full_turns_over_and_the_oldest_lines_go(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    lines = (LOG_FILES + 2) * LOG_BYTES // LINE_CHARACTERS
    program = TALKER.format(lines=lines, characters=LINE_CHARACTERS)
    keeper = subprocess.Popen([sys.executable, "-S", "-E", str(KEEPER), str(log), sys.executable, "-c", program])
    try:
        deadline = time.monotonic() + 120
        while not (log.is_file() and b"the last line" in log.read_bytes()):
            assert time.monotonic() < deadline, sorted(tmp_path.iterdir())
            time.sleep(0.1)
    finally:
        keeper.terminate()
    assert keeper.wait(timeout=60) == 0
    files = sorted(tmp_path.iterdir())
    assert len(files) == 1 + LOG_FILES
    assert all(0 < file.stat().st_size <= LOG_BYTES for file in files)
    kept = [int(line.split()[2]) for file in files for line in file.read_text().splitlines() if " x" in line]
    assert sorted(kept) == list(range(min(kept), lines)) and min(kept) > 0
