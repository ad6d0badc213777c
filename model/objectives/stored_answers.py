"""What a teacher said about hidden tokens, on disk: written once, read by memory map as often as a row comes again.

A record is one row of the data under one mask. A folder holds
    records.bin  [records, 3] int64: row, mask, answers up to its end; sorted by row and mask
    masks.bin    [records, row_tokens / 8] bits: hidden
    weights.bin  [records, row_tokens] float32: the weight of every place in the loss
    ids.bin      [answers, top_k] uint16, or uint32 for vocabularies of 65,536 and more: the likeliest tokens, best first
    answers.bin  [answers, top_k (+ 1)] float32: their log-probabilities, then the log-probability of all others together
    meta.json    shapes and what the answers depend on; the folder is whole when it is there
The answers of a record are those of its hidden places from left to right.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from model.atomic import write_json

FILES = ("records.bin", "masks.bin", "weights.bin", "ids.bin", "answers.bin")


@dataclass(frozen=True)
class Shape:
    """Of a record and an answer."""

    row_tokens: int
    vocabulary_size: int
    top_k: int
    masks: int  # different ones of a row; later epochs go through them again

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.vocabulary_size:
            raise ValueError(
                f"top_k {self.top_k} must lie between 1 and the vocabulary's {self.vocabulary_size} tokens"
            )
        if self.masks < 1:
            raise ValueError(f"masks {self.masks} must be at least 1")

    @property
    def columns(self) -> list[tuple[int, np.dtype]]:
        """Width and type of every file."""
        ids = np.dtype(np.uint16 if self.vocabulary_size <= 65536 else np.uint32)
        return [
            (3, np.dtype(np.int64)),
            (-(-self.row_tokens // 8), np.dtype(np.uint8)),
            (self.row_tokens, np.dtype(np.float32)),
            (self.top_k, ids),
            (self.top_k + (self.top_k < self.vocabulary_size), np.dtype(np.float32)),
        ]


class AnswerWriter:
    """Appends records to a folder; what came after the last `mark` is cut off by the next start."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.shape = folder, shape
        journal = folder / "journal.json"
        noted = json.loads(journal.read_text()) if journal.exists() else {"bytes": [0] * len(FILES), "answers": 0}
        self.num_answers = noted["answers"]
        self._files: list[IO[bytes]] = [(folder / name).open("ab") for name in FILES]
        for file, size in zip(self._files, noted["bytes"], strict=True):
            file.truncate(size)
            file.seek(size)
        self.num_records = noted["bytes"][0] // (3 * 8)

    def append(
        self, samples: np.ndarray, masks: list[np.ndarray], counts: np.ndarray, ids: Tensor, answers: Tensor
    ) -> None:
        """Records of `samples` [records, 2] with `masks` (hidden, weights) [records, row_tokens] and `counts` answers each."""
        ends = self.num_answers + counts.cumsum()
        hidden, weights = masks
        values = [np.concatenate((samples, ends[:, None]), 1), np.packbits(hidden, axis=1), weights, ids, answers]
        for file, value, (_, kind) in zip(self._files, values, self.shape.columns, strict=True):
            file.write(np.ascontiguousarray(np.asarray(value), kind).data)
        self.num_answers, self.num_records = int(ends[-1]), self.num_records + len(samples)

    def mark(self) -> None:
        """What is written so far outlives a kill."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
        sizes = [file.tell() for file in self._files]
        write_json(self.folder / "journal.json", {"bytes": sizes, "answers": self.num_answers})

    def close(self, facts: dict[str, Any]) -> None:
        """The folder is whole."""
        self.mark()
        for file in self._files:
            file.close()
        write_json(self.folder / "meta.json", {**vars(self.shape), "facts": facts})


class StoredAnswers:
    """Reads a whole folder; ValueError where it holds answers to something else than `facts`."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        if changed := sorted(name for name in {*facts, *meta["facts"]} if facts.get(name) != meta["facts"].get(name)):
            raise ValueError(
                f"{folder} holds a teacher's answers for another {', '.join(changed)}: delete the folder, or name another one"
            )
        self.shape = Shape(**{name: meta[name] for name in Shape.__dataclass_fields__})
        self._records, self._masks, self._weights, self._ids, self._answers = (
            np.memmap(folder / name, kind, "r").reshape(-1, width)
            for name, (width, kind) in zip(FILES, self.shape.columns, strict=True)
        )
        self._keys = self._records[:, 0] * self.shape.masks + self._records[:, 1]

    def find(self, samples: Tensor) -> np.ndarray:
        """The records of rows [rows, 2] (number, epoch)."""
        wanted = (samples[:, 0] * self.shape.masks + samples[:, 1] % self.shape.masks).numpy()
        records = np.searchsorted(self._keys, wanted).clip(max=len(self._keys) - 1)
        assert (self._keys[records] == wanted).all(), "every row that training reads was asked about"
        return records

    def masks(self, records: np.ndarray, width: int) -> tuple[Tensor, Tensor]:
        """(hidden, weights), both [records, width]."""
        hidden = np.unpackbits(self._masks[records], axis=1, count=width).astype(bool)
        return torch.from_numpy(hidden), torch.from_numpy(self._weights[records, :width])

    def answers(self, records: np.ndarray, order: Tensor) -> tuple[Tensor, Tensor]:
        """(ids, log-probabilities) of all answers of the records; place i of the result holds number order[i] of them."""
        ends = self._records[records, 2]
        begins = np.where(records > 0, self._records[records - 1, 2], 0)
        places = np.concatenate([np.arange(begin, end) for begin, end in zip(begins, ends, strict=True)])[order.numpy()]
        return torch.from_numpy(self._ids[places].astype(np.int64)), torch.from_numpy(self._answers[places])
