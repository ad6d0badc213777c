"""Packed rows of token ids on disk: `RowWriter` appends them, `TokenRows` reads them back without loading the file.

A folder holds
    tokens.bin     [rows, row_tokens] uint16, or uint32 for vocabularies of 65,536 and more
    documents.bin  [rows, row_tokens / block_tokens] uint16, number of the document in its row, EMPTY for none: documents start
                   on the block grid, so one number per block says it all
    flags.bin      [rows, 2, ceil(row_tokens / 8)] bits: token is real, token is graded
    meta.json      shapes and counts
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from model.text.batch import Batch

EMPTY = 65535
FILES = ("tokens.bin", "documents.bin", "flags.bin")


@dataclass(frozen=True)
class Layout:
    """The shape of a packed row and the ids it needs."""

    row_tokens: int
    block_tokens: int
    vocabulary_size: int
    eos_id: int
    pad_id: int

    def __post_init__(self) -> None:
        if self.block_tokens < 1 or self.row_tokens < 1 or self.row_tokens % self.block_tokens:
            raise ValueError(
                f"tokenize.row_tokens is {self.row_tokens} and tokenize.block_tokens {self.block_tokens}: a row must be a whole "
                "number of blocks, e.g. row_tokens 128 with block_tokens 16"
            )
        if self.blocks >= EMPTY:
            raise ValueError(
                f"tokenize.row_tokens / block_tokens is {self.blocks}; at most {EMPTY - 1} blocks fit a row"
            )

    @property
    def blocks(self) -> int:
        """Blocks in a row."""
        return self.row_tokens // self.block_tokens

    @property
    def token_type(self) -> np.dtype:
        """The narrowest type that holds every id."""
        return np.dtype(np.uint16 if self.vocabulary_size <= 65536 else np.uint32)


@dataclass
class Counts:
    """What went into the rows. Tokens are real ones (no padding); bytes are UTF-8 bytes of graded text."""

    rows: int = 0
    documents: int = 0
    tokens: int = 0
    graded_tokens: int = 0
    bytes: int = 0
    too_long: int = 0
    longest_too_long_tokens: int = 0
    longest_too_long_line: int = 0  # of the corpus, from 1
    without_answer: int = 0


@dataclass
class RowWriter:
    """Appends rows to a folder. `position` and `restore` make it resumable: whatever came after a position is cut off."""

    folder: Path
    layout: Layout
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files: list[IO[bytes]] = [(self.folder / name).open("ab") for name in FILES]

    def append(self, tokens: np.ndarray, documents: np.ndarray, real: np.ndarray, graded: np.ndarray) -> None:
        """Adds rows: tokens, real and graded are [rows, row_tokens], documents [rows, blocks] with EMPTY for none."""
        flags = np.packbits(np.stack([real, graded], axis=1), axis=2)
        for file, values in zip(
            self._files, (tokens.astype(self.layout.token_type), documents.astype(np.uint16), flags), strict=True
        ):
            file.write(np.ascontiguousarray(values).data)
        self.counts.rows += len(tokens)
        self.counts.tokens += int(real.sum())
        self.counts.graded_tokens += int(graded.sum())

    def position(self) -> dict[str, Any]:
        """Everything written so far, safe on disk, as plain data."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        return {"counts": asdict(self.counts), "bytes": [file.tell() for file in self._files]}

    def restore(self, position: dict[str, Any] | None) -> None:
        """Back to `position` (None: to the beginning)."""
        sizes = position["bytes"] if position else [0] * len(FILES)
        for file, size in zip(self._files, sizes, strict=True):
            file.truncate(size)
            file.seek(size)
        self.counts = Counts(**position["counts"]) if position else Counts()

    def close(self, **facts: Any) -> dict[str, Any]:
        """Writes meta.json (layout, counts, fill fraction and `facts`) and returns it."""
        self.position()
        for file in self._files:
            file.close()
        slots = self.counts.rows * self.layout.row_tokens
        fill = round(self.counts.tokens / slots, 6) if slots else 0.0
        meta = {**facts, **asdict(self.layout), **asdict(self.counts), "fill_fraction": fill}
        (self.folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
        return meta


class TokenRows:
    """Packed rows of one or several folders, memory-mapped. Several are interleaved evenly, so that any first n rows hold a
    fair share of each; they must have the same layout."""

    def __init__(self, *folders: Path) -> None:
        self.folders = [Path(folder) for folder in folders]
        metas = [json.loads((folder / "meta.json").read_text()) for folder in self.folders]
        layouts = [Layout(**{name: meta[name] for name in Layout.__dataclass_fields__}) for meta in metas]
        if len(set(layouts)) != 1:
            raise ValueError(
                f"rows of different layouts cannot be read together: {dict(zip(map(str, folders), layouts, strict=True))}"
            )
        self.layout = layouts[0]
        self.row_tokens, self.block_tokens = self.layout.row_tokens, self.layout.block_tokens
        self.num_rows = sum(meta["rows"] for meta in metas)
        self.num_bytes = sum(meta["bytes"] for meta in metas)
        self.num_graded_tokens = sum(meta["graded_tokens"] for meta in metas)
        self._maps = [self._open(folder, meta["rows"]) for folder, meta in zip(self.folders, metas, strict=True)]
        self._order = None if len(metas) == 1 else _interleave([meta["rows"] for meta in metas])

    def _open(self, folder: Path, rows: int) -> list[np.ndarray]:
        layout = self.layout
        widths = [(layout.row_tokens,), (layout.blocks,), (2, -(-layout.row_tokens // 8))]
        types = [layout.token_type, np.dtype(np.uint16), np.dtype(np.uint8)]
        if rows == 0:  # an empty file cannot be mapped
            return [np.zeros((0, *width), kind) for width, kind in zip(widths, types, strict=True)]
        return [
            np.memmap(folder / name, kind, "r", shape=(rows, *width))
            for name, kind, width in zip(FILES, types, widths, strict=True)
        ]

    def read(self, indices: Iterable[int]) -> Batch:
        """The rows at `indices`, in that order, at full length."""
        tokens, documents, flags = (self._gather(kind, np.asarray(list(indices), np.int64)) for kind in range(3))
        return unpack(tokens, documents, flags, self.layout)

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Tokens up to the end of the last block in use, per row: a multiple of block_tokens."""
        used = self._gather(1, indices) != EMPTY
        return (self.layout.blocks - np.argmax(used[:, ::-1], axis=1)) * used.any(axis=1) * self.block_tokens

    def _gather(self, kind: int, indices: np.ndarray) -> np.ndarray:
        if len(indices) and (indices.min() < 0 or indices.max() >= self.num_rows):
            raise IndexError(f"rows {indices.min()}..{indices.max()} asked for, rows 0..{self.num_rows - 1} exist")
        if self._order is None:
            return np.asarray(self._maps[0][kind][indices])
        places = self._order[indices]
        out = np.empty((len(indices), *self._maps[0][kind].shape[1:]), self._maps[0][kind].dtype)
        for folder, maps in enumerate(self._maps):
            here = places[:, 0] == folder
            out[here] = maps[kind][places[here, 1]]
        return out


def unpack(tokens: np.ndarray, documents: np.ndarray, flags: np.ndarray, layout: Layout) -> Batch:
    """Stored rows as a Batch; positions are counted from the first token of each document."""
    real, graded = np.unpackbits(flags, axis=2, count=layout.row_tokens).view(bool).swapaxes(0, 1)
    number = np.repeat(documents.astype(np.int64), layout.block_tokens, axis=1)
    number[~real] = -1
    column = np.broadcast_to(np.arange(layout.row_tokens), number.shape)
    starts = np.diff(number, axis=1, prepend=-2) != 0
    positions = column - np.maximum.accumulate(np.where(starts, column, 0), axis=1)
    positions[~real] = 0
    values = (tokens.astype(np.int64), number, positions, np.ascontiguousarray(graded))
    return Batch(*(torch.from_numpy(value) for value in values))


def _interleave(rows: list[int]) -> np.ndarray:
    """[total rows, 2]: (folder, row) such that every stretch holds each folder in proportion to its size."""
    pairs = np.concatenate([np.stack([np.full(n, folder), np.arange(n)], axis=1) for folder, n in enumerate(rows)])
    shares = np.concatenate([(np.arange(n) + 0.5) / max(n, 1) for n in rows])
    return pairs[np.argsort(shares, kind="stable")]
