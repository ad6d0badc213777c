"""A validated corpus (jsonl) becomes packed rows, split into training and validation: constant memory, resumable after a kill.

Work goes in parts. After each part the packers are emptied and a journal notes how far the input was read and how long every
output file was; a later start cuts the files back to that and goes on, so that the bytes equal those of an uninterrupted run.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.atomic import write_json
from model.text.encoding import BatchEncoder, EncodedRows
from model.text.packers import ConversationPacker, DocumentPacker, PairPacker
from model.text.packing import Layout, RowWriter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PACKERS = {"pretrain": DocumentPacker, "instructions": ConversationPacker, "preferences": PairPacker}
SPLITS = ("train", "validation")
PART_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Corpus:
    """One validated file; rows of pretrain hold text, of instructions conversations, of preferences chosen and rejected."""

    kind: str
    name: str
    path: Path
    weight: float


class CorpusTokeniser:
    """Writes `folder`/<kind>/<split>/<corpus>/ for one corpus at a time; `work` keeps the journals.

    `processes` of their own look the words up; what is written does not depend on their number.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        layout: Layout,
        validation_fraction: float,
        folder: Path,
        work: Path,
        processes: int = 1,
    ) -> None:
        self.layout, self.folder, self.work = layout, folder, work
        self.encoder = BatchEncoder(tokenizer, validation_fraction, processes)

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
        for batch in self.encoder.batches(corpus.kind, corpus.path, noted["offset"], done):
            for split in SPLITS:
                self._add(packers[split], getattr(batch, split))
            done += batch.num_lines
            advance(batch.offset - before)
            before = batch.offset
            if batch.offset - part_began >= part_bytes:
                part_began = batch.offset
                for each in packers.values():
                    each.finish()
                positions = {split: writer.position() for split, writer in writers.items()}
                write_json(journal, {"offset": batch.offset, "lines": done, "positions": positions})
        for each in packers.values():
            each.finish()
        facts = {"kind": corpus.kind, "corpus": corpus.name, "weight": corpus.weight}
        return {split: writer.close(**facts, split=split) for split, writer in writers.items()}

    def _add(self, packer: DocumentPacker | ConversationPacker | PairPacker, rows: EncodedRows) -> None:
        counts = packer.writer.counts
        counts.without_answer += rows.without_answer
        if not len(rows.lines):
            return
        if isinstance(packer, DocumentPacker):
            packer.add(rows.ids, rows.lengths, int(rows.num_bytes.sum()))
            return
        longest = counts.longest_too_long_tokens
        packer.add(rows.ids, rows.lengths, rows.graded, rows.num_bytes)
        if counts.longest_too_long_tokens > longest:
            of_a_line = rows.lengths.reshape(len(rows.lines), -1).max(1)  # of a pair, the longer one
            counts.longest_too_long_line = int(rows.lines[of_a_line.argmax()])
