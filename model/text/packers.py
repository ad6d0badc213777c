"""Places documents and conversations into rows: documents run on into the next row, conversations are never split.

Both start everything on a multiple of the block length, write to a RowWriter as rows fill up and hold a bounded number of rows.
"""

from bisect import bisect_left, insort

import numpy as np

from model.text.packing import EMPTY, RowWriter

OPEN_ROWS = 256  # 64 -> 256 lifts the fill of toy conversations by about a percent; beyond that nothing is gained


class DocumentPacker:
    """Pretraining: one stream of documents, each ended by EOS, cut into rows. Every real token is graded.

    What does not fit continues in the next row as a new document, its positions from 0.
    """

    def __init__(self, writer: RowWriter) -> None:
        self.writer, self.layout = writer, writer.layout
        self._tokens = np.zeros(0, np.uint32)  # the begun row: a whole number of blocks
        self._real = np.zeros(0, bool)
        self._starts = np.zeros(0, bool)  # per block: a document starts here

    def add(self, ids: np.ndarray, lengths: np.ndarray, num_bytes: int) -> None:
        """Adds documents laid end to end in `ids`; `lengths` tokens each, EOS not included."""
        layout = self.layout
        padded = -(-(lengths + 1) // layout.block_tokens) * layout.block_tokens
        begins = np.cumsum(padded) - padded + len(self._tokens)
        stream = np.full(len(self._tokens) + padded.sum(), layout.pad_id, np.uint32)
        real = np.zeros(len(stream), bool)
        starts = np.zeros(len(stream) // layout.block_tokens, bool)
        stream[: len(self._tokens)], real[: len(self._real)], starts[: len(self._starts)] = (
            self._tokens,
            self._real,
            self._starts,
        )
        shifts = np.repeat(begins - (np.cumsum(lengths) - lengths), lengths)
        places = np.arange(len(ids)) + shifts
        stream[places], real[places] = ids, True
        ends = begins + lengths
        stream[ends], real[ends] = layout.eos_id, True
        starts[begins // layout.block_tokens] = True
        self.writer.counts.documents += len(lengths)
        self.writer.counts.bytes += num_bytes
        whole = len(stream) // layout.row_tokens * layout.row_tokens
        self._write(stream[:whole], real[:whole], starts[: whole // layout.block_tokens])
        self._tokens, self._real = stream[whole:], real[whole:]
        self._starts = starts[whole // layout.block_tokens :]

    def finish(self) -> None:
        """Pads the begun row and writes it."""
        missing = -len(self._tokens) % self.layout.row_tokens
        tokens = np.pad(self._tokens, (0, missing), constant_values=self.layout.pad_id)
        self._write(
            tokens, np.pad(self._real, (0, missing)), np.pad(self._starts, (0, missing // self.layout.block_tokens))
        )
        self._tokens, self._real, self._starts = self._tokens[:0], self._real[:0], self._starts[:0]

    def _write(self, stream: np.ndarray, real: np.ndarray, starts: np.ndarray) -> None:
        rows = (-1, self.layout.row_tokens)
        tokens, real, starts = stream.reshape(rows), real.reshape(rows), starts.reshape(-1, self.layout.blocks)
        if len(tokens) == 0:
            return
        # The first block of a row opens a document even where it continues one of the row before.
        starts = starts.copy()
        starts[:, 0] = True
        used = real.reshape(len(tokens), self.layout.blocks, -1)[:, :, 0]
        documents = np.where(used, np.cumsum(starts, axis=1) - 1, EMPTY)
        self.writer.append(tokens, documents, real, real)


class ConversationPacker:
    """Instructions: whole conversations, filled with graded EOS to the end of their last block, each into the fullest open row
    that still holds it (best fit). Conversations longer than a row are counted, with the longest length, and left out.
    """

    def __init__(self, writer: RowWriter) -> None:
        self.writer, self.layout = writer, writer.layout
        self._spare: list[tuple[int, int]] = []  # (free blocks, slot), sorted; slots not in use are not listed
        self._free_slots = list(range(OPEN_ROWS))[::-1]
        shape = (OPEN_ROWS, self.layout.row_tokens)
        self._tokens = np.full(shape, self.layout.pad_id, np.uint32)
        self._graded = np.zeros(shape, bool)
        self._documents = np.full((OPEN_ROWS, self.layout.blocks), EMPTY, np.uint16)
        self._next_document = [0] * OPEN_ROWS
        self._closed: list[int] = []

    def add(self, ids: np.ndarray, lengths: np.ndarray, graded: np.ndarray, num_bytes: np.ndarray) -> None:
        """Adds conversations laid end to end in `ids`; num_bytes: UTF-8 bytes of graded text of each."""
        begin, counts, block = 0, self.writer.counts, self.layout.block_tokens
        for length, size in zip(lengths.tolist(), num_bytes.tolist(), strict=True):
            blocks = -(-length // block)
            if blocks > self.layout.blocks:
                counts.too_long += 1
                counts.longest_too_long_tokens = max(counts.longest_too_long_tokens, length)
            else:
                self._place(ids[begin : begin + length], graded[begin : begin + length], blocks)
                counts.documents += 1
                counts.bytes += size
            begin += length

    def _place(self, ids: np.ndarray, graded: np.ndarray, blocks: int) -> None:
        fitting = bisect_left(self._spare, (blocks, -1))
        if fitting == len(self._spare):
            if not self._free_slots:
                self._close(self._spare.pop(0)[1])
            free, slot = self.layout.blocks, self._free_slots.pop()
        else:
            free, slot = self._spare.pop(fitting)
        block = self.layout.block_tokens
        first = self.layout.blocks - free
        begin, end, stop = first * block, first * block + len(ids), (first + blocks) * block
        self._tokens[slot, begin:end], self._graded[slot, begin:end] = ids, graded
        self._tokens[slot, end:stop], self._graded[slot, end:stop] = self.layout.eos_id, True
        self._documents[slot, first : first + blocks] = self._next_document[slot]
        self._next_document[slot] += 1
        if free == blocks:
            self._close(slot)
        else:
            insort(self._spare, (free - blocks, slot))

    def _close(self, slot: int) -> None:
        self._closed.append(slot)
        if len(self._closed) * 4 >= OPEN_ROWS or not self._free_slots:
            self._write()

    def _write(self) -> None:
        slots = self._closed
        documents = self._documents[slots]
        real = np.repeat(documents != EMPTY, self.layout.block_tokens, axis=1)
        self.writer.append(self._tokens[slots], documents, real, self._graded[slots])
        self._tokens[slots], self._graded[slots], self._documents[slots] = self.layout.pad_id, False, EMPTY
        for slot in slots:
            self._next_document[slot] = 0
        self._free_slots += slots[::-1]
        self._closed = []

    def finish(self) -> None:
        """Writes every open row, the fullest first."""
        self._closed += [slot for _, slot in self._spare]
        self._spare = []
        if self._closed:
            self._write()
        self._free_slots = list(range(OPEN_ROWS))[::-1]


class PairPacker:
    """Preferences: a row holds one pair, the chosen conversation as document 0 and the rejected one as document 1, each filled
    with graded EOS to the end of its last block. Only the last answer is graded: what comes before is the same in both.
    A row of pairs is two rows long, one for each answer; a pair of which one does not fit is counted and left out. Training
    reads no padding, so a row that is half empty costs only disk.
    """

    def __init__(self, writer: RowWriter) -> None:
        self.writer, self.layout = writer, writer.layout

    def add(self, ids: np.ndarray, lengths: np.ndarray, graded: np.ndarray, num_bytes: np.ndarray) -> None:
        """Adds conversations laid end to end in `ids`, chosen and rejected in turn."""
        layout, counts = self.layout, self.writer.counts
        blocks = -(-lengths // layout.block_tokens)
        begins = np.cumsum(lengths) - lengths
        for first in range(0, len(lengths), 2):
            if blocks[first : first + 2].max() > layout.blocks // 2:
                counts.too_long += 1
                counts.longest_too_long_tokens = max(
                    counts.longest_too_long_tokens, int(lengths[first : first + 2].max())
                )
                continue
            tokens = np.full(layout.row_tokens, layout.pad_id, np.uint32)
            last = np.zeros(layout.row_tokens, bool)
            documents = np.full(layout.blocks, EMPTY, np.uint16)
            at = 0
            for document, number in enumerate((first, first + 1)):
                piece = slice(begins[number], begins[number] + lengths[number])
                end, stop = at + lengths[number], at + blocks[number] * layout.block_tokens
                tokens[at:end], last[at:end] = ids[piece], _last_run(graded[piece])
                tokens[end:stop], last[end:stop] = layout.eos_id, True
                documents[at // layout.block_tokens : stop // layout.block_tokens] = document
                at = stop
            real = np.repeat(documents != EMPTY, layout.block_tokens)
            self.writer.append(tokens[None], documents[None], real[None], last[None])
            counts.documents += 2
            counts.bytes += int(num_bytes[first : first + 2].sum())

    def finish(self) -> None:
        """Nothing waits."""


def _last_run(flags: np.ndarray) -> np.ndarray:
    """The flags with all runs of True but the last cleared."""
    places = np.flatnonzero(flags)
    breaks = np.flatnonzero(np.diff(places) > 1)
    kept = np.zeros_like(flags)
    kept[places[breaks[-1] + 1 :] if len(breaks) else places] = True
    return kept
