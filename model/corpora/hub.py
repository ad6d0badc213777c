"""Corpus `hub`: a dataset of the Hugging Face hub at a pinned revision, streamed into jsonl.zst shards.

    download: {pretrain: {web: {source: hub, path: org/name, revision: <commit>, split: train, rows: 100000}}}

A revision that is a commit is taken at its word, so an unchanged corpus needs no network; the name of a branch or tag is looked
up each time and the manifest records the commit. Code that a dataset brings along is never run.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from model.corpora.manifest import CorpusContext, Source, identity_of
from model.corpora.options import RowOptions, read_options

SHARD_ROWS = 50_000


@dataclass(frozen=True)
class HubOptions(RowOptions):
    """Options of a `hub` corpus; `path` may also be a dataset folder on this machine, which then needs no revision."""

    path: str = ""
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    rows: int | None = None  # the first so many rows; nothing = all
    streaming: bool = True


class HubCorpus:
    """Rows of one split, only the columns that training reads."""

    def __init__(self, kind: str, name: str, options: Mapping[str, Any], context: CorpusContext) -> None:
        self.where, self.context = f"download.{kind}.{name}", context
        if kind == "benchmarks":
            raise ValueError("download.benchmarks.source is hub: benchmarks come from toy_world or files.")
        self.options = read_options(HubOptions, options, self.where)
        self.columns, self.optional = self.options.columns(kind)
        if not self.options.path:
            raise ValueError(f"{self.where}.path is missing: write the dataset's name on the hub, as in org/name.")
        if self.options.rows is not None and self.options.rows < 1:
            raise ValueError(
                f"{self.where}.rows is {self.options.rows}: it must be at least 1, or left out for all rows."
            )
        written = Path(self.options.path).expanduser()
        self.folder = written if written.is_absolute() else context.root / written
        if not self.folder.is_dir() and not self.options.revision:
            raise ValueError(
                f"{self.where}.revision is missing: a dataset of the hub changes under its name. "
                "Pin the commit shown under 'Files and versions' on the dataset's page."
            )

    def described(self) -> dict[str, Any]:
        """The options as the manifest records them."""
        return {**asdict(self.options), "roles": dict(self.options.roles)}

    def look(self) -> list[Source]:
        """One source; its identity is the commit (or the hashes of a local folder's files), the split and the rows taken."""
        if self.folder.is_dir():
            files = sorted(
                path for path in self.folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts
            )
            revision = identity_of({p.relative_to(self.folder).as_posix(): self.context.sha256(p) for p in files})
        else:
            revision = self._commit()
        details = {
            "revision": revision,
            "path": self.options.path,
            "name": self.options.name,
            "split": self.options.split,
        }
        asked = {
            **details,
            "rows": self.options.rows,
            "column": list(self.columns + self.optional),
            "shard_rows": SHARD_ROWS,
        }
        return [Source("rows", identity_of(asked), None, details)]

    def fetch(self, source: Source, folder: Path) -> None:
        """Write the rows as rows-00000.jsonl.zst and so on. ValueError when the hub cannot be reached or has no such rows."""
        from datasets import load_dataset

        place = str(self.folder) if self.folder.is_dir() else self.options.path
        revision = None if self.folder.is_dir() else source.details["revision"]
        try:
            rows = load_dataset(
                place, self.options.name, split=self.options.split, revision=revision, streaming=self.options.streaming
            )
            num_rows = _write_shards(self._chosen(islice(rows, self.options.rows)), folder)
        except Exception as error:  # datasets, pyarrow, fsspec and the HTTP client each have their own kinds
            raise self._failure(error) from error
        if num_rows == 0:
            raise ValueError(
                f"{self.where}: split '{self.options.split}' of {self.options.path} holds no rows. Name another."
            )

    def _chosen(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        for row in rows:
            if absent := [column for column in self.columns if column not in row]:
                raise ValueError(f"there is no column '{absent[0]}'; its columns are {', '.join(row)}")
            yield {column: row[column] for column in (*self.columns, *self.optional) if column in row}

    def _commit(self) -> str:
        revision = str(self.options.revision)
        if re.fullmatch(r"[0-9a-f]{40}", revision):
            return revision
        from huggingface_hub import HfApi

        try:
            return str(HfApi().dataset_info(self.options.path, revision=revision).sha)
        except Exception as error:  # the HTTP client's own kinds, which change with its version
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> ValueError:
        reason = " ".join(str(error).split())[:300]
        return ValueError(
            f"{self.where}: cannot read {self.options.path} (revision {self.options.revision}) from the hub: {reason}. "
            "Check the path, name, split, column and revision; without a network, give a dataset folder as `path`, or use "
            "`source: files` with files that you have fetched elsewhere (HF_ENDPOINT names another hub)."
        )


def _write_shards(rows: Iterator[dict[str, Any]], folder: Path) -> int:
    """Number of rows written; SHARD_ROWS to a shard."""
    import pyarrow

    total = 0
    for shard in range(10**5):
        first = next(rows, None)
        if first is None:
            return total
        with pyarrow.output_stream(str(folder / f"rows-{shard:05d}.jsonl.zst"), compression="zstd") as stream:
            for row in chain([first], islice(rows, SHARD_ROWS - 1)):
                stream.write(_line(row))
                total += 1
    raise ValueError(f"more than {10**5 * SHARD_ROWS} rows: set `rows`")


def _line(row: dict[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode(errors="surrogatepass")
