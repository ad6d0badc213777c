import json

import numpy as np
import pytest
import torch

from model.text.packers import ConversationPacker, DocumentPacker
from model.text.packing import Layout, RowWriter, TokenRows

LAYOUT = Layout(row_tokens=32, block_tokens=8, vocabulary_size=300, eos_id=0, pad_id=1)


def numbers(seed: int, count: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` texts of 0..longest made-up ids, end to end, and their lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, longest + 1, count)
    return rng.integers(2, 300, lengths.sum()).astype(np.uint32), lengths


def split(ids: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


def pack_documents(folder, ids, lengths, layout=LAYOUT, batch=7) -> dict:
    writer = RowWriter(folder, layout)
    packer = DocumentPacker(writer)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    for begin in range(0, len(lengths), batch):
        part = lengths[begin : begin + batch]
        packer.add(ids[ends[begin] : ends[begin + len(part)]], part, num_bytes=int(part.sum()))
    packer.finish()
    return writer.close()


def pack_conversations(folder, ids, lengths, graded, layout=LAYOUT) -> dict:
    writer = RowWriter(folder, layout)
    packer = ConversationPacker(writer)
    packer.add(ids, lengths, graded, num_bytes=lengths)
    packer.finish()
    return writer.close()


def chunks(rows: TokenRows) -> list[tuple[list[int], list[bool]]]:
    """(tokens, graded) of every document of every row, in order."""
    batch, found = rows.read(range(rows.num_rows)), []
    for tokens, documents, graded in zip(batch.tokens, batch.documents, batch.graded, strict=True):
        for number in range(int(documents.max()) + 1):
            here = documents == number
            found.append((tokens[here].tolist(), graded[here].tolist()))
    return found


def test_packed_documents_read_back_as_they_were_each_ended_by_eos(tmp_path):
    ids, lengths = numbers(0, 60, 70)
    pack_documents(tmp_path, ids, lengths)
    stream = [token for tokens, _ in chunks(TokenRows(tmp_path)) for token in tokens]
    assert stream == [token for text in split(ids, lengths) for token in [*text, LAYOUT.eos_id]]


def test_documents_start_on_the_block_grid_with_position_0_and_positions_count_up(tmp_path):
    pack_documents(tmp_path, *numbers(1, 60, 70))
    rows = TokenRows(tmp_path)
    batch = rows.read(range(rows.num_rows))
    for documents, positions in zip(batch.documents.tolist(), batch.positions.tolist(), strict=True):
        last, count = -1, 0
        for column, (number, position) in enumerate(zip(documents, positions, strict=True)):
            if number == -1:
                assert position == 0
                continue
            if number != last:
                assert number == last + 1 and column % LAYOUT.block_tokens == 0
                last, count = number, 0
            assert position == count
            count += 1


def test_padding_is_ungraded_and_every_real_pretraining_token_is_graded(tmp_path):
    meta = pack_documents(tmp_path, *numbers(2, 40, 50))
    rows = TokenRows(tmp_path)
    batch = rows.read(range(rows.num_rows))
    assert torch.equal(batch.graded, batch.documents >= 0)
    assert (batch.tokens[batch.documents < 0] == LAYOUT.pad_id).all()
    assert meta["tokens"] == meta["graded_tokens"] == rows.num_graded_tokens == int(batch.graded.sum())


def test_a_document_longer_than_the_row_goes_on_in_the_next_as_a_new_document(tmp_path):
    pack_documents(tmp_path, np.arange(2, 82, dtype=np.uint32), np.array([80]))
    rows = TokenRows(tmp_path)
    batch = rows.read([0, 1, 2])
    assert rows.num_rows == 3
    assert batch.positions[:2].tolist() == [list(range(32))] * 2
    assert batch.tokens[2, :17].tolist() == [*range(66, 82), 0]
    assert batch.documents[2].tolist() == [0] * 17 + [-1] * 15


def test_how_documents_arrive_in_batches_does_not_show_in_the_files(tmp_path):
    ids, lengths = numbers(3, 50, 60)
    pack_documents(tmp_path / "a", ids, lengths, batch=3)
    pack_documents(tmp_path / "b", ids, lengths, batch=50)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_conversations_are_whole_and_filled_with_graded_eos_to_the_end_of_their_block(tmp_path):
    lengths = np.random.default_rng(4).integers(1, 33, 3000)
    ids = np.random.default_rng(5).integers(2, 300, lengths.sum()).astype(np.uint32)
    graded = np.random.default_rng(4).random(len(ids)) < 0.5
    pack_conversations(tmp_path, ids, lengths, graded)
    expected = []
    for text, flags in zip(split(ids, lengths), np.split(graded, np.cumsum(lengths)[:-1]), strict=True):
        fill = -len(text) % LAYOUT.block_tokens
        expected.append((text + [LAYOUT.eos_id] * fill, flags.tolist() + [True] * fill))
    assert sorted(chunks(TokenRows(tmp_path))) == sorted(expected)


def test_conversations_longer_than_a_row_are_counted_with_the_longest(tmp_path):
    meta = pack_conversations(
        tmp_path, np.full(32 + 33 + 40 + 5, 7, np.uint32), np.array([32, 33, 40, 5]), np.ones(110, bool)
    )
    assert (meta["documents"], meta["too_long"], meta["longest_too_long_tokens"]) == (2, 2, 40)
    assert meta["bytes"] == 37


def test_conversations_fill_rows_well(tmp_path):
    rng = np.random.default_rng(5)
    lengths = rng.integers(20, 129, 5000)
    layout = Layout(256, 16, 300, 0, 1)
    meta = pack_conversations(
        tmp_path, np.full(lengths.sum(), 7, np.uint32), lengths, np.ones(lengths.sum(), bool), layout
    )
    assert meta["fill_fraction"] > 0.97


def test_large_vocabularies_keep_their_ids(tmp_path):
    layout = Layout(8, 4, 157_184, 157_000, 157_001)
    pack_documents(tmp_path, np.array([150_000, 65_536, 3], np.uint32), np.array([3]), layout)
    assert TokenRows(tmp_path).read([0]).tokens[0].tolist() == [150_000, 65_536, 3, 157_000] + [157_001] * 4


def test_rows_that_are_not_whole_blocks_are_refused():
    with pytest.raises(ValueError, match="row_tokens is 100 and"):
        Layout(100, 16, 300, 0, 1)


def test_several_folders_read_as_an_even_interleaving(tmp_path):
    for name, token, count in (("a", 5, 30), ("b", 6, 10)):
        pack_documents(tmp_path / name, np.full(31 * count, token, np.uint32), np.full(count, 31))
    rows = TokenRows(tmp_path / "a", tmp_path / "b")
    first = rows.read(range(40)).tokens[:, 0]
    assert rows.num_rows == 40 and rows.num_bytes == 31 * 40
    assert [int((first[begin : begin + 8] == 6).sum()) for begin in range(0, 40, 8)] == [2] * 5


def test_a_row_that_does_not_exist_is_refused(tmp_path):
    pack_documents(tmp_path, *numbers(6, 5, 20))
    rows = TokenRows(tmp_path)
    with pytest.raises(IndexError):
        rows.read([rows.num_rows])
    with pytest.raises(IndexError):
        rows.read([-1])


def test_an_empty_split_reads_as_no_rows(tmp_path):
    RowWriter(tmp_path, LAYOUT).close()
    rows = TokenRows(tmp_path)
    assert rows.num_rows == 0 and rows.read([]).tokens.shape == (0, 32)


def test_restoring_cuts_off_what_came_after(tmp_path):
    ids, lengths = numbers(7, 30, 40)
    writer = RowWriter(tmp_path / "a", LAYOUT)
    packer = DocumentPacker(writer)
    packer.add(ids, lengths, 100)
    packer.finish()
    position = json.loads(json.dumps(writer.position()))
    packer.add(ids, lengths, 100)
    packer.finish()
    writer.position()
    again = RowWriter(tmp_path / "a", LAYOUT)
    again.restore(position)
    once = pack_documents(tmp_path / "b", ids, lengths, batch=30)
    assert again.close() | {"bytes": once["bytes"]} == once
    assert (tmp_path / "a/tokens.bin").read_bytes() == (tmp_path / "b/tokens.bin").read_bytes()
