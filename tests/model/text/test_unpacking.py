"""Conversations come back out of packed rows as they went in."""

from pathlib import Path

import numpy as np

from model.text.packers import ConversationPacker
from model.text.packing import Layout, RowWriter, TokenRows
from model.text.unpacking import Asked, asked_in

EOS = 1
LAYOUT = Layout(row_tokens=16, block_tokens=4, vocabulary_size=50, eos_id=EOS, pad_id=0)


def packed(folder: Path, *conversations: tuple[list[int], list[bool]]) -> TokenRows:
    writer = RowWriter(folder, LAYOUT)
    packer = ConversationPacker(writer)
    for ids, graded in conversations:
        packer.add(np.array(ids), np.array([len(ids)]), np.array(graded), np.array([1]))
    packer.finish()
    writer.close()
    return TokenRows(folder)


def test_a_conversation_comes_back_as_its_prompt_and_its_last_answer_without_what_fills_the_block(tmp_path: Path):
    one = ([7, 8, 9, 20, 21, EOS], [False] * 3 + [True] * 3)  # two more EOS fill its second block
    two = ([7, 30, EOS, 8, 9, 31, EOS], [False, True, True, False, False, True, True])
    rows = packed(tmp_path, one, two)
    assert rows.num_rows == 1
    found = list(asked_in(rows.read([0]), EOS))
    assert found == [Asked([7, 8, 9], [20, 21], 0, 3), Asked([7, 30, EOS, 8, 9], [31], 0, 13)]


def test_what_was_not_asked_or_is_not_answered_gives_no_question(tmp_path: Path):
    opens = ([20, 21, 22, EOS], [True] * 4)
    empty = ([7, 8, EOS], [False, False, True])
    rows = packed(tmp_path, opens, empty)
    assert not list(asked_in(rows.read(range(rows.num_rows)), EOS))
