"""Measurements of registered versions: score and tokens per forward, speculation, finite weights, bits per byte."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from model.benchmarks.settings import EvaluateConfig, main_points, operating_points
from model.checkpoints.store import Checkpoint, load_checkpoint
from tasks.evaluate import decode_split, open_suite
from tasks.guessing import DRAFT, SpeculateConfig
from tasks.promotion.rules import Point
from tasks.speculate import Decoding, Setting, benchmark_prompts, check_identical
from tasks.stage import Stage

LIKELIHOOD_DRAWS, MOST_TOKENS = 4, 512


def measure_points(stage: Stage, folder: Path, name: str, judge: Callable[..., Any]) -> dict[str, Point]:
    """The main operating points of a checkpoint over the test split of `evaluate.tasks`; `name` keeps its passes apart."""
    from model.benchmarks.records import correctness, summarise
    from model.benchmarks.subject import Subject

    config = EvaluateConfig.from_section(stage.params["evaluate"])
    subject = Subject(folder, config, stage.seed)
    policies = operating_points(config, subject.attention)
    suite = open_suite(stage, config, judge, "test", config.test_items)
    points = {}
    for point in main_points(config, subject.attention):
        records = decode_split(stage, subject, policies[point], f"{name}-{point}", suite, config.test_items)
        figures = summarise(records, subject.eos, resamples=1, seed=stage.seed)
        questions = tuple(f"{record['benchmark']} {record['id']} {_short(record['question'])}" for record in records)
        per_forward = figures.get("tokens_per_forward", {}).get("value")
        points[point] = Point(correctness(records), questions, per_forward)
    return points


def _short(text: Any) -> str:
    return hashlib.sha256(str(text).encode()).hexdigest()[:16]


def speculation_problems(stage: Stage, folder: Path, draft_folder: Path) -> list[str]:
    """Where decoding with the draft's guesses does not give the tokens of plain decoding; empty when it always does.

    Every policy and source of section `speculate` at its greatest depth, on the prompts that the stage speculate takes.
    """
    config = SpeculateConfig.from_section(stage.params["speculate"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = {"target": load_checkpoint(folder, device), DRAFT: load_checkpoint(draft_folder, device)}
    decoding = Decoding(models, benchmark_prompts(stage, models["target"], config), config)
    problems = []
    for policy in config.policies:
        plain, _ = decoding.run("target", policy)
        for source in config.sources:
            setting = Setting("target", policy, source, max(config.depths))
            found, _ = decoding.run("target", policy, source, setting.depth)
            try:
                check_identical(decoding, setting, plain, found)
            except RuntimeError as error:
                problems.append(str(error))
    return problems


def not_finite(folder: Path) -> list[str]:
    """Names of the checkpoint's weights that hold a NaN or an infinite value."""
    network = load_checkpoint(folder, "cpu").network
    return [name for name, value in network.state_dict().items() if not bool(torch.isfinite(value).all())]


def bits_per_byte(folder: Path, rows: Sequence[Mapping[str, Any]], seed: int) -> float | None:
    """The likelihood bound of rows under a checkpoint, in bits per UTF-8 byte of what is to be predicted; None without rows.

    A document counts from its second token on, a conversation by its last answer; both up to MOST_TOKENS tokens.
    """
    from model.benchmarks.likelihood import make_likelihood
    from model.text.tokenizer import load_tokenizer

    checkpoint = load_checkpoint(folder, "cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(str(checkpoint.folder))
    pairs = [pair for row in rows if (pair := _pair(tokenizer, row, checkpoint))]
    if not pairs:
        return None
    likelihoods = make_likelihood(checkpoint.network, LIKELIHOOD_DRAWS, seed)(pairs)
    num_bytes = sum(len(tokenizer.decode(continuation, skip_special_tokens=True).encode()) for _, continuation in pairs)
    return -sum(value for value, _ in likelihoods) / math.log(2) / max(num_bytes, 1)


def _pair(tokenizer: Any, row: Mapping[str, Any], checkpoint: Checkpoint) -> tuple[list[int], list[int]] | None:
    """(what is given, what is to be predicted) of a row; None where nothing is left to predict."""
    from model.text.tokenizer import encode_conversation, encode_texts

    most = min(checkpoint.config.maximum_positions, MOST_TOKENS)
    if "text" in row:
        ids = encode_texts(tokenizer, [row["text"]])[0].tolist()[:most]
        return (ids[:1], ids[1:]) if len(ids) > 1 else None
    encoded, graded = encode_conversation(tokenizer, row["conversations"])
    ids, flags = encoded.tolist(), graded.tolist()
    end = max((place + 1 for place, flag in enumerate(flags) if flag), default=0)
    begin = end
    while begin and flags[begin - 1]:
        begin -= 1
    context, answer = ids[:begin], ids[begin:end][: most - begin]
    return (context, answer) if context and answer and begin < most else None
