"""Corpus `files`: folders, files or globs of jsonl, json lines, txt and parquet, plain or .gz/.zst, carried byte for byte.

    download: {pretrain: {books: {source: files, paths: [texts/**/*.txt.gz], weight: 0.7}}}

Files are copied, not hard-linked: DVC makes the files of its cache read-only and shares their inodes with data/raw, so a link
would write-protect the person's own file, and an edit of it would damage the cache. Where the file system can, the copy shares
its blocks with the original and costs no space.
"""

import glob
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.corpora.manifest import CorpusContext, Source, sha256_of
from model.corpora.options import RowOptions, read_options

COMPRESSIONS = ("", ".gz", ".zst")
SUFFIXES = (*(kind + packed for kind in (".jsonl", ".json", ".txt") for packed in COMPRESSIONS), ".parquet")


@dataclass(frozen=True)
class FilesOptions(RowOptions):
    """Options of a `files` corpus. A path starts at the repository root unless it is absolute; ~ is understood."""

    paths: tuple[str, ...] = ()


class FilesCorpus:
    """Files on this machine, under names that keep their place below their common folder."""

    def __init__(self, kind: str, name: str, options: Mapping[str, Any], context: CorpusContext) -> None:
        self.where = f"download.{kind}.{name}" if kind != "benchmarks" else "download.benchmarks"
        self.options = read_options(FilesOptions, options, self.where)
        self.context = context
        self.left_out: list[str] = []
        if not self.options.paths:
            raise ValueError(
                f"{self.where}.paths is empty: list at least one file, folder or glob, as in [texts/*.jsonl]."
            )

    def described(self) -> dict[str, Any]:
        """The options as the manifest records them."""
        return {**asdict(self.options), "paths": list(self.options.paths), "roles": dict(self.options.roles)}

    def look(self) -> list[Source]:
        """One source per file, identity its SHA-256. ValueError for a path without a match, or a file of unknown kind."""
        self.left_out = []
        files = sorted({path for pattern in self.options.paths for path in self._matches(pattern)})
        common = Path(os.path.commonpath([path.parent for path in files]))
        self._origin = {path.relative_to(common).as_posix(): path for path in files}
        return [
            Source(name, self.context.sha256(path), path.stat().st_size) for name, path in sorted(self._origin.items())
        ]

    def fetch(self, source: Source, folder: Path) -> None:
        """Copy one file; ValueError when it changed since `look`."""
        target = folder / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._origin[source.name], target)
        if sha256_of(target) != source.identity:
            raise ValueError(
                f"{self._origin[source.name]} changed while it was copied: start again once it is complete."
            )

    def _matches(self, pattern: str) -> list[Path]:
        full = Path(os.path.abspath(self.context.root / Path(pattern).expanduser()))  # noqa: PTH100 - a link keeps its own name
        where = f"{self.where}.paths"
        if full.is_dir():
            return self._inside(full, pattern)
        found = [full] if full.is_file() else sorted(map(Path, glob.glob(str(full), recursive=True)))  # noqa: PTH207 - absolute pattern
        if not found:
            rule = "matches no file" if glob.has_magic(pattern) else "does not exist"
            raise ValueError(
                f"{where}: '{pattern}' {rule} (looked in {self.context.root}). Correct it or remove the line."
            )
        files = []
        for path in found:
            if path.is_dir():
                files += self._inside(path, pattern)
            elif path.name.lower().endswith(SUFFIXES):
                files.append(path)
            else:
                raise ValueError(
                    f"{where}: '{pattern}' matches {path.name}, whose kind is unknown. "
                    f"Known endings: {', '.join(SUFFIXES)}. Narrow the glob or convert the file."
                )
        return files

    def _inside(self, folder: Path, pattern: str) -> list[Path]:
        """Files of known kind anywhere below a folder; hidden ones and other kinds are listed in `left_out`."""
        inside = sorted(path for path in folder.rglob("*") if path.is_file())
        visible = [path for path in inside if not any(p.startswith(".") for p in path.relative_to(folder).parts)]
        known = [path for path in visible if path.name.lower().endswith(SUFFIXES)]
        self.left_out += [p.relative_to(folder).as_posix() for p in inside if p not in set(known)]
        if not known:
            raise ValueError(
                f"{self.where}.paths: the folder '{pattern}' holds no file of a known kind ({', '.join(SUFFIXES)}). "
                "Correct the path or convert the files."
            )
        return known
