"""Lines of a validated corpus become token ids, batch by batch, in this process or in several, always in the file's order.

Looking words up is Python's work, so a second core needs a second process. Ids do not depend on how many there are.
"""

import ctypes
import json
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.text.encoder import TextEncoder
from model.text.tokenizer import encode_conversations

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BATCH_BYTES = 2 * 2**20
AHEAD = 2  # batches that each process may have finished before their turn: memory stays bounded


@dataclass(frozen=True)
class EncodedRows:
    """Texts of one split end to end: documents, or conversations with what is graded in them."""

    ids: np.ndarray  # [tokens] uint32
    lengths: np.ndarray  # [texts] tokens of each
    graded: np.ndarray | None  # [tokens]; None for documents
    num_bytes: np.ndarray  # [texts] UTF-8 bytes of what is graded
    lines: np.ndarray  # [rows] numbers in the file, from 1; a pair is one row of two texts
    without_answer: int  # conversations left out


@dataclass(frozen=True)
class EncodedBatch:
    """Some lines of the file, by split, and the offset after them."""

    train: EncodedRows
    validation: EncodedRows
    num_lines: int
    offset: int


def is_validation(row: dict[str, Any], fraction: float) -> bool:
    """Whether a row is held out: decided by its text alone, so by neither its place nor its neighbours."""
    if "text" in row:
        text = row["text"]
    else:  # a pair is held out by its prompt and chosen answer
        turns = row["conversations"] if "conversations" in row else row["chosen"]
        text = json.dumps([[m["role"], m["content"]] for m in turns])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) < fraction * 2.0**64


def texts_of(row: dict[str, Any]) -> list[str]:
    """Every text of a canonical row, once."""
    if "text" in row:
        return [row["text"]]
    turns = row["conversations"] if "conversations" in row else [*row["chosen"], row["rejected"][-1]]
    return [message["content"] for message in turns]


def read_lines(path: Path, offset: int = 0, batch_bytes: int = BATCH_BYTES) -> Iterator[tuple[list[bytes], int]]:
    """(lines, offset after them) in batches of about `batch_bytes`, from a line that starts at `offset`."""
    with path.open("rb") as file:
        file.seek(offset)
        while lines := file.readlines(batch_bytes):
            yield lines, file.tell()


class BatchEncoder:
    """Encodes batches of lines of one kind of corpus, in `processes` processes of their own where there are more than one.

    Processes are forked: they hold the tokenizer already. Without fork (Windows), and on macOS, whose libraries do not survive
    it, the work stays in this process.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", validation_fraction: float, processes: int = 1) -> None:
        self.tokenizer, self.validation_fraction = tokenizer, validation_fraction
        self.processes = processes if sys.platform == "linux" else 1
        self._encoder = TextEncoder(tokenizer)

    def batches(self, kind: str, path: Path, offset: int = 0, done: int = 0) -> Iterator[EncodedBatch]:
        """The file from `offset` on, `done` lines being before it, in order."""
        jobs = self._jobs(path, offset, done)
        if self.processes == 1:
            yield from (self.encode(kind, *job) for job in jobs)
            return
        context = multiprocessing.get_context("fork")
        pool = ProcessPoolExecutor(self.processes, context, _begin, (self, os.getpid()))
        waiting: deque[Future[EncodedBatch]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(_encode, kind, *job))
                if len(waiting) > AHEAD * self.processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _jobs(self, path: Path, offset: int, done: int) -> Iterator[tuple[list[bytes], int, int]]:
        for lines, after in read_lines(path, offset):
            yield lines, done, after
            done += len(lines)

    def encode(self, kind: str, lines: list[bytes], done: int, offset: int) -> EncodedBatch:
        """Both splits of `lines`, the first of which is number `done` + 1."""
        rows = [json.loads(line) for line in lines]
        held_out = np.array([is_validation(row, self.validation_fraction) for row in rows])
        splits = [
            self._encode([rows[number] for number in mine], mine + done + 1, kind)
            for mine in (np.flatnonzero(~held_out), np.flatnonzero(held_out))
        ]
        return EncodedBatch(*splits, len(lines), offset)

    def _encode(self, rows: list[dict[str, Any]], lines: np.ndarray, kind: str) -> EncodedRows:
        if kind == "pretrain":
            texts = [row["text"] for row in rows]
            ids, lengths = self._encoder(texts)
            return EncodedRows(ids, lengths, None, _sizes(len(text.encode()) for text in texts), lines, 0)
        if kind == "preferences":  # chosen and rejected in turn
            conversations, answerless = [row[side] for row in rows for side in ("chosen", "rejected")], 0
        else:
            cut = [answered(row["conversations"]) for row in rows]
            conversations, answerless = [turns for turns in cut if turns], sum(not turns for turns in cut)
            lines = lines[[bool(turns) for turns in cut]]
        ids, lengths, graded = encode_conversations(self.tokenizer, conversations, self._encoder)
        sizes = _sizes(
            sum(len(m["content"].encode()) for m in turns if m["role"] == "assistant") for turns in conversations
        )
        return EncodedRows(ids, lengths, graded, sizes, lines, answerless)


def answered(conversation: list[dict[str, str]]) -> list[dict[str, str]]:
    """The conversation up to its last answer, [] if there is none: what follows would teach the model to end on a question."""
    last = max((place for place, message in enumerate(conversation) if message["role"] == "assistant"), default=-1)
    return conversation[: last + 1]


def _sizes(numbers: Iterator[int]) -> np.ndarray:
    return np.fromiter(numbers, np.int64)


_mine: BatchEncoder  # of a process that encodes


def _begin(encoder: BatchEncoder, parent: int) -> None:
    """A process that ends with its parent, whatever ends that. Rust's threads were left behind by the fork: it may use one."""
    global _mine
    _mine = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def _encode(kind: str, lines: list[bytes], done: int, offset: int) -> EncodedBatch:
    return _mine.encode(kind, lines, done, offset)
