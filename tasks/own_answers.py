"""Collects a model's own right answers to train on, in the manner of dParallel (arXiv:2509.26488).

    python -m tasks.own_answers

Where several answers are right (orders of steps, wordings), the truth draws one at random and a model must stay unsure of it.
Its own answers always make the same choice: certainty costs nothing there, and a draft that learns them says what its target
says. Questions come from the training rows of data/tokens/instructions, never from a benchmark; an answer counts as right when
it ends as the row's own answer does (`SandboxJudge.ends_alike`). In which forward each token was revealed is kept beside the
rows of data/own_answers: training can hide what the decoder had not revealed yet. Work is kept chunk by chunk, and what is
drawn depends on the seed alone. `questions: 0` asks nothing, for pipelines in which every stage trains on the truth.
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
from model.samplers.decode import make_decoder
from model.samplers.results import Decoded
from model.text.packers import ConversationPacker
from model.text.packing import Layout, RowWriter
from model.text.tokenizer import load_tokenizer
from model.text.unpacking import Asked, asked_in
from model.training.loader import RowLoader
from tasks.own_rows import write_times
from tasks.stage import Stage, run_stage
from tasks.training import parent_checkpoint, publish_metrics, training_rows
from tasks.training_answers import FOLDER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHUNK = 256  # questions whose answers are kept at once; a kill loses at most these


@dataclass(frozen=True)
class OwnAnswers:
    """`questions` are asked, `batch_rows` at a time, and decoded under `policy` (None: one token per forward)."""

    questions: int
    policy: dict[str, Any] | None = None
    batch_rows: int = 64
    start_from: str | None = None  # the model that answers; None: data/models/finetune_diffusion
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("questions", 0), ("batch_rows", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"own_answers.{name} is {value!r}; it must be a whole number of at least {least}")

    @classmethod
    def from_section(cls, section: dict[str, Any]) -> "OwnAnswers":
        """The section; unknown keys are refused by name."""
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(section) - set(known)):
            raise ValueError(f"own_answers.{unknown[0]} is unknown; it may hold {', '.join(known)}")
        return cls(**{"questions": 0, **section})


def main(stage: Stage) -> None:
    """data/models/finetune_diffusion, data/tokens/instructions -> data/own_answers.

    ValueError where the references mark no final answer, or nothing was right.
    """
    options, made = OwnAnswers.from_section(stage.section), stage.work / "own_answers"
    shutil.rmtree(made, ignore_errors=True)  # half of it, where an earlier start was killed while packing
    if options.questions:
        facts = collect(stage, options, made)
        print(
            f"{stage.name}: asked {facts['asked']}, right {facts['right']}, kept {facts['kept']} answers, {facts['tokens']} "
            f"tokens in {facts['rows']} rows, {facts['tokens_per_forward']} tokens per forward",
            flush=True,
        )
    else:
        facts = {"asked": 0}
        made.mkdir()
        print(f"{stage.name}: questions is 0, nothing is asked", flush=True)
    write_json(made / "facts.json", facts)
    stage.publish(made, FOLDER)
    stage.tracker.log_metrics({f"own_answers/{key}": value for key, value in facts.items()}, step=0)
    publish_metrics(stage, stage.name, facts)


def collect(stage: Stage, options: OwnAnswers, made: Path) -> dict[str, Any]:
    """Asks, judges and packs into `made`; what became of the questions: asked, right, kept (right ones that fit a row), rows,
    tokens, tokens_per_forward."""
    parent = parent_checkpoint(stage, "finetune_diffusion")
    tokenizer = load_tokenizer(str(parent.folder))
    loader = training_rows(stage, "instructions", options.batch_rows)
    questions = draw(loader, options.questions, tokenizer.eos_token_id)
    answers = answer(stage, parent, options, questions, loader.layout)
    return pack(tokenizer, questions, answers, loader.layout, made)


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
    with tqdm(total=len(questions), desc=stage.address, unit="question", mininterval=2.0) as bar:
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
            f"none of {len(questions)} answers ends as its reference does after a mark (####): the model must be able to answer, "
            "and references must mark what is to be checked. Set own_answers.questions: 0, and answers: truth in tune_cap and "
            "distill_draft"
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


if __name__ == "__main__":
    run_stage(main, "own_answers")
