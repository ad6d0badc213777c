"""Training rows of a model's own right answers: CAP's data in the manner of dParallel (arXiv:2509.26488).

Where several answers are right (orders of steps, wordings), the truth draws one at random and a model must stay unsure of it.
Its own answers always make the same choice: certainty costs nothing there. Questions come from the training rows of
data/tokens/instructions, never from a benchmark; an answer counts as right when it ends as the row's own answer does
(`SandboxJudge.ends_alike`). In which forward each token was revealed is kept beside the rows: CAP can train on the states
that the decoder passed through. Work is kept chunk by chunk, and what is drawn depends on the seed alone.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from model.atomic import write_json
from model.benchmarks.judge import open_judge
from model.checkpoints.store import Checkpoint
from model.objectives.visited_states import NEVER
from model.samplers.decode import make_decoder
from model.samplers.results import Decoded
from model.text.packers import ConversationPacker
from model.text.packing import Layout, RowWriter, TokenRows
from model.text.tokenizer import load_tokenizer
from model.text.unpacking import Asked, asked_in
from model.training.loader import RowLoader
from tasks.stage import Stage
from tasks.training import training_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

STATES = ("drawn", "visited")
REVEALED_AT = "revealed_at.bin"  # [rows, row_tokens] uint16, beside the rows
CHUNK = 256  # questions whose answers are kept at once; a kill loses at most these


@dataclass(frozen=True)
class OwnAnswers:
    """`questions` are asked, `batch_rows` at a time, and decoded under `policy` (None: one token per forward).

    `states`: what is hidden while CAP trains, what `hiding` draws or the decoder's own states.
    """

    questions: int = 2000
    policy: dict[str, Any] | None = None
    batch_rows: int = 64
    states: str = "drawn"

    def __post_init__(self) -> None:
        for name in ("questions", "batch_rows"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"own_answers.{name} is {value!r}; it must be a whole number of at least 1")
        if self.states not in STATES:
            raise ValueError(f"own_answers.states is {self.states!r}; it must be one of {', '.join(STATES)}")

    @classmethod
    def from_section(cls, section: dict[str, Any]) -> "OwnAnswers":
        """The options of `own_answers`; unknown keys are refused by name."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(section) - set(known)):
            raise ValueError(f"own_answers.{unknown[0]} is unknown; it may hold {', '.join(known)}")
        return cls(**section)


def own_answers(stage: Stage, parent: Checkpoint, options: OwnAnswers) -> tuple[Path, dict[str, Any]]:
    """Folder of packed rows with the right ones of `parent`'s answers, and what became of the questions.

    The facts: asked, right, kept (right ones that fit a row), rows, tokens, tokens_per_forward. ValueError where the
    references mark no final answer, or nothing was right.
    """
    made, facts = stage.work / "own_answers", stage.work / "own_answers.json"
    if not facts.exists():
        tokenizer = load_tokenizer(str(parent.folder))
        loader = training_rows(stage, "instructions", options.batch_rows)
        questions = draw(loader, options.questions, tokenizer.eos_token_id)
        answers = answer(stage, parent, options, questions, loader.layout)
        shutil.rmtree(made, ignore_errors=True)
        write_json(facts, pack(tokenizer, questions, answers, loader.layout, made))
    return made, json.loads(facts.read_text())


def draw(loader: RowLoader, count: int, eos_id: int) -> list[Asked]:
    """`count` different questions in the order of the loader, or all there are."""
    found: dict[tuple[int, ...], Asked] = {}
    for step in range(-(-loader.num_rows // loader.batch_rows)):
        for asked in asked_in(loader.batch(step), eos_id):
            found.setdefault(tuple(asked.prompt), asked)
            if len(found) == count:
                return list(found.values())
    return list(found.values())


def answer(
    stage: Stage, parent: Checkpoint, options: OwnAnswers, questions: list[Asked], layout: Layout
) -> list[dict[str, Any]]:
    """{tokens, revealed_at, forwards} for each question. Chunks that an earlier start has finished are taken up."""
    longest = max(len(asked.prompt) for asked in questions)
    room = min(layout.row_tokens, parent.config.maximum_positions - longest)
    decoder = make_decoder(parent.network, options.policy or {"name": "one_token"}, batch_rows=options.batch_rows)
    answers: list[dict[str, Any]] = []
    with tqdm(total=len(questions), desc=f"{stage.address} answers", unit="question", mininterval=2.0) as bar:
        for begin in range(0, len(questions), CHUNK):
            kept, chunk = stage.work / f"answers-{begin}.json", questions[begin : begin + CHUNK]
            if not kept.exists():
                decoded = decoder([asked.prompt for asked in chunk], room)
                write_json(kept, [plain(one) for one in decoded])
            answers += json.loads(kept.read_text())
            bar.update(len(chunk))
    return answers


def plain(decoded: Decoded) -> dict[str, Any]:
    """What is kept of an answer."""
    return {"tokens": decoded.tokens, "revealed_at": decoded.revealed_at, "forwards": decoded.target_forwards}


def pack(
    tokenizer: "PreTrainedTokenizerFast",
    questions: list[Asked],
    answers: list[dict[str, Any]],
    layout: Layout,
    folder: Path,
) -> dict[str, Any]:
    """Writes the right answers as rows into `folder`; the facts."""
    right = list(right_ones(tokenizer, questions, answers))
    if not right:
        raise ValueError(
            f"tune_cap.answers is own, and none of {len(questions)} answers ends as its reference does after a mark (####): the "
            "model must be able to answer, and references must mark what is to be checked. Set tune_cap.answers: truth"
        )
    writer = RowWriter(folder, layout)
    packer = ConversationPacker(writer)
    times: dict[tuple[int, ...], list[int]] = {}
    for prompt, one, num_bytes in right:
        graded = np.arange(len(prompt) + len(one["tokens"])) >= len(prompt)
        packer.add(np.array(prompt + one["tokens"], np.uint32), np.array([len(graded)]), graded, np.array([num_bytes]))
        times[tuple(prompt)] = one["revealed_at"]
    packer.finish()
    meta = writer.close(kind="instructions", corpus="own_answers", weight=1.0, split="train")
    write_times(folder, times, layout.eos_id)
    return {
        "asked": len(questions),
        "right": len(right),
        "kept": meta["documents"],
        "rows": meta["rows"],
        "tokens": meta["tokens"],
        "tokens_per_forward": round(
            sum(len(one["tokens"]) for one in answers) / sum(one["forwards"] for one in answers), 4
        ),
    }


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


def right_ones(
    tokenizer: "PreTrainedTokenizerFast", questions: list[Asked], answers: list[dict[str, Any]]
) -> Iterator[tuple[list[int], dict[str, Any], int]]:
    """(prompt, answer, bytes of its text) of every finished answer that ends as its reference does."""
    with open_judge() as judge:
        for asked, one in zip(questions, answers, strict=True):
            if one["tokens"][-1:] != [tokenizer.eos_token_id]:
                continue
            text, reference = (
                tokenizer.decode(ids, skip_special_tokens=True) for ids in (one["tokens"], asked.reference)
            )
            if judge.ends_alike(reference, text):
                yield asked.prompt, one, len(text.encode())
