"""The rows of data/own_answers, of stage own_answers: a model's own right answers, and when it revealed each token."""

from pathlib import Path

import numpy as np

from model.checkpoints.store import Checkpoint
from model.objectives.objective import Objective
from model.objectives.visited_states import NEVER, VisitedStates
from model.text.packing import TokenRows
from model.text.unpacking import asked_in
from tasks.stage import Stage
from tasks.training_answers import FOLDER, TrainingAnswers

REVEALED_AT = "revealed_at.bin"  # [rows, row_tokens] uint16, beside the rows
CHUNK = 256  # rows in memory at once


def write_times(folder: Path, times: dict[tuple[int, ...], list[int]], eos_id: int) -> None:
    """Writes REVEALED_AT for the rows of `folder`; `times` by prompt."""
    rows = TokenRows(folder)
    with (folder / REVEALED_AT).open("wb") as file:
        for begin in range(0, rows.num_rows, CHUNK):
            batch = rows.read(range(begin, min(begin + CHUNK, rows.num_rows)))
            values = np.full(batch.tokens.shape, NEVER, np.uint16)
            for asked in asked_in(batch, eos_id):
                own = times[tuple(asked.prompt)]
                values[asked.row, asked.column : asked.column + len(own)] = own
            file.write(values.data)


def read_times(folder: Path) -> np.ndarray:
    """REVEALED_AT of a folder, memory-mapped."""
    rows = TokenRows(folder)
    return np.memmap(folder / REVEALED_AT, np.uint16, "r", shape=(rows.num_rows, rows.row_tokens))


def rows_for(stage: Stage, parent: Checkpoint) -> Path | None:
    """The folder of rows that the section asks to train on in the place of the corpus'; None: the corpus'.

    ValueError where there are none, or where their states are not states of a block of `parent`.
    """
    wanted = TrainingAnswers.from_section(stage.name, stage.section)
    if wanted.answers != "own":
        return None
    folder = stage.root / FOLDER
    if not (folder / REVEALED_AT).exists():
        raise ValueError(
            f"{stage.name}.answers is own, and {FOLDER} holds no answers: set own_answers.questions and run stage own_answers, "
            f"or set {stage.name}.answers: truth"
        )
    block_tokens = TokenRows(folder).layout.block_tokens
    config = parent.config
    if wanted.states == "visited" and (config.attention, config.block_tokens) != ("block_causal", block_tokens):
        raise ValueError(
            f"{stage.name}.states: visited needs a block-causal model with the blocks of the rows ({block_tokens} tokens); this "
            f"one is {config.attention} with blocks of {config.block_tokens}. Set {stage.name}.states: drawn"
        )
    return folder


def hidden_as_asked(stage: Stage, rows: Path | None, base: Objective) -> Objective:
    """The base, or the base on the states that the decoder passed through."""
    if rows is None or TrainingAnswers.from_section(stage.name, stage.section).states == "drawn":
        return base
    return VisitedStates(base, read_times(rows))
