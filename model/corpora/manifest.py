"""What data/raw holds and where it came from, and the interface of a corpus that can fill it.

The manifest has neither times nor places of this machine: two downloads of the same input give the same bytes, so that DVC
skips everything behind an unchanged one.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from model.atomic import write_atomically

KINDS = ("pretrain", "instructions", "preferences", "benchmarks")
MANIFEST_NAME = "manifest.json"
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Source:
    """One thing a corpus can fetch: equal `identity` means equal bytes. `size` in bytes, None where unknown before fetching."""

    name: str
    identity: str
    size: int | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CorpusContext:
    """What a corpus may know of its surroundings: the folder that relative paths start from, params.yaml, a file hasher."""

    root: Path
    params: dict[str, Any]
    sha256: Callable[[Path], str]


class Corpus(Protocol):
    """A place text comes from. Built as `Class(kind, name, options, context)`; a wrong option is a ValueError."""

    def described(self) -> dict[str, Any]:
        """The options with their defaults, as the manifest records them."""
        ...

    def look(self) -> list[Source]:
        """What there is now, cheaply: no generation, no transfer of rows."""
        ...

    def fetch(self, source: Source, folder: Path) -> None:
        """Write the files of one source into the empty `folder`, the same bytes for the same identity."""
        ...


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def identity_of(value: Any) -> str:
    """Hexadecimal SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class HashCache:
    """SHA-256 of files, remembered by (size, mtime, inode) in a file outside the outputs.

    A file younger than two seconds is not remembered: it could change again within the clock's grain and keep its size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, list[Any]] = {}
        with suppress(OSError, ValueError):  # a lost or damaged cache costs one more reading of the files, nothing else
            self.known = json.loads(path.read_text())
        self.used: dict[str, list[Any]] = {}

    def sha256(self, path: Path) -> str:
        """Hash of the file now, from memory when its size, mtime and inode are as they were."""
        status = path.stat()
        key, stamp = str(path), [status.st_size, status.st_mtime_ns, status.st_ino]
        found = self.known.get(key)
        digest = found[3] if found and found[:3] == stamp else sha256_of(path)
        if time.time_ns() - status.st_mtime_ns > 2_000_000_000:
            self.known[key] = self.used[key] = [*stamp, digest]
        return digest

    def save(self) -> None:
        """Write back what was asked for since the start; entries of files nobody asks for any more are forgotten."""
        write_atomically(self.path, json.dumps(self.used, indent=0, sort_keys=True))


def read_manifest(raw: Path) -> dict[str, Any]:
    """The manifest of data/raw, or an empty one where there is none or it cannot be read (everything is then fetched)."""
    try:
        manifest = json.loads((raw / MANIFEST_NAME).read_text(encoding="utf-8"))
        return manifest if isinstance(manifest.get("corpora"), list) else {"corpora": []}
    except (OSError, ValueError, AttributeError):
        return {"corpora": []}


def write_manifest(raw: Path, corpora: Iterable[dict[str, Any]]) -> None:
    """Write the manifest atomically, entries in the order of kinds and then of names."""
    ordered = sorted(corpora, key=lambda entry: (KINDS.index(entry["kind"]), entry["name"]))
    text = json.dumps({"format": 1, "corpora": ordered}, indent=1, sort_keys=True, ensure_ascii=False)
    write_atomically(raw / MANIFEST_NAME, text + "\n")


def describe_file(path: Path, raw: Path, sha256: Callable[[Path], str]) -> dict[str, Any]:
    """The manifest's record of one file: path inside data/raw, bytes and sha256."""
    return {"path": path.relative_to(raw).as_posix(), "bytes": path.stat().st_size, "sha256": sha256(path)}


def is_intact(record: dict[str, Any], raw: Path, sha256: Callable[[Path], str]) -> bool:
    """Whether the recorded file is still there with the recorded bytes."""
    path = raw / record["path"]
    return path.is_file() and path.stat().st_size == record["bytes"] and sha256(path) == record["sha256"]


def recorded_files(manifest: dict[str, Any]) -> set[str]:
    """Paths inside data/raw of every file that the manifest names."""
    return {f["path"] for corpus in manifest["corpora"] for source in corpus["sources"] for f in source["files"]}
