import threading
import time
from collections import Counter

import numpy as np
import pytest
import torch

from model.text.packers import DocumentPacker
from model.text.packing import Layout, RowWriter, TokenRows
from model.training.loader import PERIOD_ROWS, RowLoader, shuffled, timed

LAYOUT = Layout(row_tokens=16, block_tokens=4, vocabulary_size=70_000, eos_id=0, pad_id=1)


def corpus(folder, first: int, rows: int, length: int = 15):
    """Rows of one document each, whose first token is first, first + 1, ..."""
    writer = RowWriter(folder, LAYOUT)
    for row in range(rows):
        packer = DocumentPacker(writer)
        packer.add(np.full(length, first + row, np.uint32), np.array([length]), length)
        packer.finish()
    writer.close()
    return folder


def drawn(loader: RowLoader, steps) -> list[int]:
    return [int(token) for step in steps for token in loader.batch(step).tokens[:, 0]]


def same(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left.tensors(), right.tensors(), strict=True))


def test_every_epoch_has_each_row_once_in_another_order(tmp_path):
    loader = RowLoader([(corpus(tmp_path, 10, 24), 1.0)], batch_rows=6, seed=3)
    epochs = [drawn(loader, range(begin, begin + 4)) for begin in (0, 4, 8)]
    assert all(sorted(epoch) == list(range(10, 34)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    across_periods = PERIOD_ROWS // 24 * 4
    assert sorted(drawn(loader, range(across_periods, across_periods + 4))) == list(range(10, 34))


def test_a_batch_depends_on_seed_and_step_only(tmp_path):
    folder = corpus(tmp_path, 10, 50)
    walked = RowLoader([(folder, 1.0)], 8, seed=1)
    for step in range(9):
        walked.batch(step)
    assert same(walked.batch(9), RowLoader([(folder, 1.0)], 8, seed=1).batch(9))
    assert drawn(walked, [9]) != drawn(RowLoader([(folder, 1.0)], 8, seed=2), [9])


def test_the_order_of_rows_never_changes_between_versions(tmp_path):
    loader = RowLoader([(corpus(tmp_path / "a", 10, 12), 3.0), (corpus(tmp_path / "b", 50, 5), 1.0)], 4, seed=0)
    assert drawn(loader, range(3)) == [21, 18, 54, 10, 12, 16, 17, 15, 53, 14, 19, 13]


def test_ranks_and_accumulation_slices_put_together_are_the_whole_batch(tmp_path):
    folders = [(corpus(tmp_path / "a", 10, 40), 2.0), (corpus(tmp_path / "b", 100, 20, length=5), 1.0)]
    loader = RowLoader(folders, 12, seed=5)
    for step in (0, 7, 1000):
        pieces = [loader.fraction(rank, 2).fraction(piece, 3).batch(step) for rank in range(2) for piece in range(3)]
        joined = [torch.cat(values) for values in zip(*(piece.tensors() for piece in pieces), strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(joined, loader.batch(step).tensors(), strict=True))


def test_corpora_are_drawn_by_weight_and_each_goes_round_by_itself(tmp_path):
    folders = [(corpus(tmp_path / "a", 10, 30), 7.0), (corpus(tmp_path / "b", 100, 10), 3.0)]
    tokens = drawn(RowLoader(folders, 1000, seed=0), range(PERIOD_ROWS // 1000))
    small = [token for token in tokens if token >= 100]
    assert len(small) == 0.3 * PERIOD_ROWS
    assert set(Counter(small).values()) == {len(small) // 10}
    assert 230 < sum(token >= 100 for token in tokens[:1000]) < 370
    across = drawn(RowLoader(folders, 7, seed=0), range(PERIOD_ROWS // 7, PERIOD_ROWS // 7 + 2))
    assert across[4:] == drawn(RowLoader(folders, 1, seed=0), range(PERIOD_ROWS + 0, PERIOD_ROWS + 10))


def test_shares_that_are_not_whole_are_rounded_to_the_nearest(tmp_path):
    folders = [(corpus(tmp_path / "a", 10, 3), 1.0), (corpus(tmp_path / "b", 100, 3), 2.0)]
    tokens = drawn(RowLoader(folders, 1000, seed=0), range(PERIOD_ROWS // 1000))
    assert sum(token >= 100 for token in tokens) == 6667


def test_a_corpus_with_hardly_any_weight_is_still_seen(tmp_path):
    folders = [(corpus(tmp_path / "a", 10, 3), 2.0), (corpus(tmp_path / "b", 20, 3), 1.0)]
    folders += [(corpus(tmp_path / "c", 30, 3), 1e-9), (corpus(tmp_path / "d", 40, 3), 1e-9)]
    tokens = drawn(RowLoader(folders, 1000, seed=0), range(PERIOD_ROWS // 1000))
    assert Counter(token // 10 for token in tokens) == {1: 6665, 2: 3333, 3: 1, 4: 1}


def test_batches_are_cut_to_the_longest_row_in_whole_blocks(tmp_path):
    folders = [(corpus(tmp_path / "a", 10, 8, length=4), 1.0)]
    batch = RowLoader(folders, 4, seed=0).batch(0)
    assert batch.tokens.shape == (4, 8)
    assert (batch.documents >= 0).sum(1).tolist() == [5] * 4
    full = TokenRows(folders[0][0]).read(range(8))
    assert (full.documents[:, 8:] == -1).all()


def test_prefetch_gives_the_batches_in_order(tmp_path):
    loader = RowLoader([(corpus(tmp_path, 10, 20), 1.0)], 4, seed=0)
    for start, stop in ((0, 7), (3, 4), (5, 5)):
        ahead = list(loader.prefetch(start, stop))
        assert len(ahead) == stop - start
        assert all(same(batch, loader.batch(step)) for step, batch in zip(range(start, stop), ahead, strict=True))


def test_prefetch_passes_errors_on_and_leaves_no_thread_behind(tmp_path, monkeypatch):
    loader = RowLoader([(corpus(tmp_path, 10, 20), 1.0)], 4, seed=0)
    batches = loader.prefetch(0, 100)
    next(batches)
    batches.close()
    whole = RowLoader.batch

    def broken(self, step):
        if step == 2:
            raise OSError("disk gone")
        return whole(self, step)

    monkeypatch.setattr(RowLoader, "batch", broken)
    got = []
    with pytest.raises(OSError, match="disk gone"):
        for batch in loader.prefetch(0, 100):
            got.append(batch)
    assert len(got) == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


@pytest.mark.parametrize("size", [1, 2, 3, 17, 1000])
def test_shuffling_is_a_permutation_that_depends_on_the_key(size):
    orders = [shuffled(np.arange(size), size, np.uint64(key)).tolist() for key in range(20)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    if size > 3:
        assert len({tuple(order) for order in orders}) == 20


def test_shuffling_favours_no_place():
    places, keys = np.tile(np.arange(10), 4000), np.repeat(np.arange(4000, dtype=np.uint64), 10)
    counts = np.histogram2d(places, shuffled(places, 10, keys), bins=10)[0]
    assert ((counts - 400) ** 2 / 400).sum() < 160  # chi-square, 81 degrees of freedom: 99.99 % lie below 140


def test_what_cannot_be_loaded_is_refused(tmp_path):
    folder = corpus(tmp_path / "a", 10, 3)
    RowWriter(tmp_path / "b", LAYOUT).close()
    with pytest.raises(ValueError, match=r"no rows to train on in .*b:"):
        RowLoader([(folder, 1.0), (tmp_path / "b", 1.0)], 2, 0)
    with pytest.raises(ValueError, match="weights above 0"):
        RowLoader([(folder, 0.0)], 2, 0)
    with pytest.raises(ValueError, match="batch_rows 5 cannot be shared evenly by 2"):
        RowLoader([(folder, 1.0)], 5, 0).fraction(0, 2)


def test_the_time_that_a_step_waits_for_its_batch_is_told(tmp_path):
    loader = RowLoader([(corpus(tmp_path, 10, 24), 1.0)], batch_rows=6, seed=3)

    def slow():
        for number, batch in enumerate(loader.prefetch(0, 3)):
            time.sleep(0.1 if number == 1 else 0.0)
            yield batch

    waits = [waited for batch, waited in timed(slow()) if same(batch, batch)]
    assert len(waits) == 3 and waits[1] >= 0.1 and waits[1] > 3 * waits[2]
