"""A validated corpus (jsonl) becomes packed rows, split into training and validation: constant memory, resumable after a kill.

Work goes in parts. After each part the packers are emptied and a journal notes how far the input was read and how long every
output file was; a later start cuts the files back to that and goes on, so that the bytes equal those of an uninterrupted run.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.atomic import write_json
from model.text.encoder import TextEncoder
from model.text.packers import ConversationPacker, DocumentPacker, PairPacker
from model.text.packing import Layout, RowWriter
from model.text.tokenizer import encode_conversations

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PACKERS = {"pretrain": DocumentPacker, "instructions": ConversationPacker, "preferences": PairPacker}
SPLITS = ("train", "validation")
BATCH_BYTES = 2 * 2**20
PART_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Corpus:
    """One validated file; rows of pretrain hold text, of instructions conversations, of preferences chosen and rejected."""

    kind: str
    name: str
    path: Path
    weight: float


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


def read_lines(
    path: Path, offset: int = 0, batch_bytes: int = BATCH_BYTES
) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """(rows, offset after them) in batches of about `batch_bytes`, from a line that starts at `offset`."""
    with path.open("rb") as file:
        file.seek(offset)
        while lines := file.readlines(batch_bytes):
            yield [json.loads(line) for line in lines], file.tell()


class CorpusTokeniser:
    """Writes `folder`/<kind>/<split>/<corpus>/ for one corpus at a time; `work` keeps the journals."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerFast", layout: Layout, validation_fraction: float, folder: Path, work: Path
    ) -> None:
        self.tokenizer, self.layout, self.validation_fraction = tokenizer, layout, validation_fraction
        self.folder, self.work = folder, work
        self.encoder = TextEncoder(tokenizer)

    def run(
        self, corpus: Corpus, advance: Callable[[int], None] = lambda size: None, part_bytes: int = PART_BYTES
    ) -> dict[str, dict[str, Any]]:
        """meta.json of both splits. `advance` is told bytes of input as they are done, those of earlier starts included."""
        folders = {split: self.folder / corpus.kind / split / corpus.name for split in SPLITS}
        journal = self.work / f"{corpus.kind}-{corpus.name}.json"
        noted = json.loads(journal.read_text()) if journal.exists() else {"offset": 0, "lines": 0, "positions": {}}
        layout = self.layout
        if corpus.kind == "preferences":  # both answers of a pair share a row
            layout = replace(layout, row_tokens=2 * layout.row_tokens)
        writers = {split: RowWriter(folder, layout) for split, folder in folders.items()}
        for split, writer in writers.items():
            writer.restore(noted["positions"].get(split))
        packer = PACKERS[corpus.kind]
        packers = {split: packer(writer) for split, writer in writers.items()}
        advance(noted["offset"])
        part_began = before = noted["offset"]
        done = noted["lines"]
        for rows, offset in read_lines(corpus.path, noted["offset"]):
            held_out = [is_validation(row, self.validation_fraction) for row in rows]
            for split, wanted in zip(SPLITS, (False, True), strict=True):
                mine = [number for number, held in enumerate(held_out) if held == wanted]
                self._add(packers[split], [rows[number] for number in mine], [done + number + 1 for number in mine])
            done += len(rows)
            advance(offset - before)
            before = offset
            if offset - part_began >= part_bytes:
                part_began = offset
                for each in packers.values():
                    each.finish()
                positions = {split: writer.position() for split, writer in writers.items()}
                write_json(journal, {"offset": offset, "lines": done, "positions": positions})
        for each in packers.values():
            each.finish()
        facts = {"kind": corpus.kind, "corpus": corpus.name, "weight": corpus.weight}
        return {split: writer.close(**facts, split=split) for split, writer in writers.items()}

    def _add(
        self, packer: DocumentPacker | ConversationPacker | PairPacker, rows: list[dict[str, Any]], lines: list[int]
    ) -> None:
        if not rows:
            return
        if isinstance(packer, DocumentPacker):
            texts = [row["text"] for row in rows]
            packer.add(*self.encoder(texts), sum(len(text.encode()) for text in texts))
            return
        if isinstance(packer, PairPacker):  # chosen and rejected in turn
            conversations = [row[side] for row in rows for side in ("chosen", "rejected")]
        else:
            kept = [(answered(row["conversations"]), line) for row, line in zip(rows, lines, strict=True)]
            packer.writer.counts.without_answer += sum(not turns for turns, _ in kept)
            conversations, lines = [turns for turns, _ in kept if turns], [line for turns, line in kept if turns]
        if not conversations:
            return
        ids, lengths, graded = encode_conversations(self.tokenizer, conversations, self.encoder)
        sizes = [sum(len(m["content"].encode()) for m in turns if m["role"] == "assistant") for turns in conversations]
        longest = packer.writer.counts.longest_too_long_tokens
        packer.add(ids, lengths, graded, np.array(sizes, np.int64))
        if packer.writer.counts.longest_too_long_tokens > longest:
            of_a_line = lengths.reshape(len(lines), -1).max(1)  # of a pair, the longer one
            packer.writer.counts.longest_too_long_line = lines[int(of_a_line.argmax())]


def answered(conversation: list[dict[str, str]]) -> list[dict[str, str]]:
    """The conversation up to its last answer, [] if there is none: what follows would teach the model to end on a question."""
    last = max((place for place, message in enumerate(conversation) if message["role"] == "assistant"), default=-1)
    return conversation[: last + 1]
