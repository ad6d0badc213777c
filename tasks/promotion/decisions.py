"""The append-only log of everything that was decided about champions: mlruns/promotions.jsonl, one JSON object a line."""

import json
import os
import time
from pathlib import Path
from typing import Any

LOG = "mlruns/promotions.jsonl"
PROMOTED, REFUSED, ROLLED_BACK, FIRST, STOPPED = "promoted", "refused", "rolled_back", "first", "stopped"


def append(root: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """Adds one line in a single write and waits until it is on disk; returns the line with its time (UTC)."""
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **entry}
    file = root / LOG
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = (
            size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        )  # a crash cut the last line: leave it, begin anew
        os.write(descriptor, b"\n" * torn + json.dumps(line, sort_keys=True, ensure_ascii=False).encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return line


def read(root: Path) -> list[dict[str, Any]]:
    """Every whole line, oldest first."""
    file = root / LOG
    entries = []
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            entries.append(json.loads(line))
        except ValueError:  # cut by a crash while it was written
            continue
    return entries


def champion_before(entries: list[dict[str, Any]], model: str, current: str) -> str | None:
    """The version that `current` replaced, past what was rolled back; None when the log does not know."""
    moves: list[tuple[str, str]] = []
    for entry in entries:
        if entry.get("model") != model:
            continue
        if entry["action"] == PROMOTED:
            moves.append((entry["from"], entry["to"]))
        elif entry["action"] == ROLLED_BACK and moves and moves[-1][1] == entry["from"]:
            moves.pop()
    return moves[-1][0] if moves and moves[-1][1] == current else None
