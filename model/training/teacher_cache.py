"""Asks a teacher once about every row that training will read, under masks that depend on (seed, row, epoch) alone.

What it says goes to disk as its top k tokens and one class for all others (model/objectives/stored_answers.py). Killed, the next
start goes on behind the last mark and writes the same bytes; the key of a folder covers all that they depend on.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model.atomic import locked
from model.network.transformer import Transformer
from model.objectives.match_teacher import MatchTeacher, with_tail
from model.objectives.objective import Drawing, View
from model.objectives.stored_answers import AnswerWriter, Shape, StoredAnswers
from model.text.batch import Batch
from model.training.loader import RowLoader
from model.training.loop import seeded
from model.training.sharding import processes

KEPT = 2  # folders of other keys that stay
MARK_EVERY = 50  # batches
PIECE = 1024  # hidden tokens whose logits are held at a time


@dataclass(frozen=True)
class TeacherCache:
    """A section's `teacher_cache`. `folder` (from the root) may be shared by clones: every key has its own below it."""

    top_k: int = 64
    masks: int = 1  # of a row; later epochs go through them again
    folder: str = ".work/teacher_cache"

    @classmethod
    def from_section(cls, values: Any) -> "TeacherCache":
        """ValueError that names an unknown key or a value that is no number."""
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) - known:
            raise ValueError(f"teacher_cache is {values!r}: it must map {', '.join(sorted(known))} to values")
        made = cls(**values)
        for name in ("top_k", "masks"):
            if not isinstance(getattr(made, name), int) or getattr(made, name) < 1:
                raise ValueError(
                    f"teacher_cache.{name} is {getattr(made, name)!r}; it must be a whole number from 1 on"
                )
        return made


def stored_answers(
    root: Path,
    settings: TeacherCache,
    teacher: Transformer,
    base: Drawing,
    loader: RowLoader,
    steps: int,
    precision: str,
) -> StoredAnswers:
    """The teacher's answers to everything that `steps` of the loader read, asked now where no folder has them."""
    shape = Shape(loader.layout.row_tokens, teacher.config.embedding_rows, settings.top_k, settings.masks)
    facts = {
        "teacher": weights_hash(teacher),
        "data": files_hash(loader),
        "hiding": repr(base),
        "seed": loader.seed,
        "rows": [steps, loader.batch_rows],
        "precision": precision,
        "threads": torch.get_num_threads(),
        "answers": asdict(shape),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / settings.folder / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock")):
        if not (folder / "meta.json").exists():
            if processes().num_processes > 1:
                raise ValueError(
                    "teacher_cache is written by one process: run this stage once with processes: 1 and read it with more "
                    "afterwards, or leave teacher_cache out"
                )
            asked = MatchTeacher(base, teacher)
            write_answers(folder, shape, facts, asked, loader, steps, precision)
        os.utime(folder)
    _bound(folder.parent)
    return StoredAnswers(folder, facts)


def write_answers(
    folder: Path,
    shape: Shape,
    facts: dict[str, Any],
    asked: MatchTeacher,
    loader: RowLoader,
    steps: int,
    precision: str,
) -> None:
    """Every (row, mask) of the run once, in batches of `batch_rows`."""
    wanted = loader.samples(np.arange(steps * loader.batch_rows))
    wanted[:, 1] %= shape.masks
    wanted = np.unique(wanted, axis=0)
    device = next(asked.teacher.parameters()).device
    writer = AnswerWriter(folder, shape)
    starts = range(writer.num_records, len(wanted), loader.batch_rows)
    with tqdm(desc="teacher", total=len(wanted), initial=writer.num_records, unit="row", mininterval=2.0) as bar:
        for turn, start in enumerate(starts):
            samples = wanted[start : start + loader.batch_rows]
            batch = loader.read(samples)
            hidden, weights = counted_draw(asked.base, batch, loader.seed)
            view = asked.base.view(batch.to(device), hidden.to(device), weights.to(device))
            assert view.source is not None
            places = view.source.remainder(batch.tokens.numel())  # a complementary copy may be a row of its own
            counts = torch.bincount(places // batch.tokens.shape[1], minlength=len(samples))
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                ids, answers = top_answers(asked.teacher, view, shape.top_k, places.argsort())
            missing = (0, shape.row_tokens - batch.tokens.shape[1])
            padded = [torch.nn.functional.pad(each, missing).numpy() for each in (hidden, weights)]
            writer.append(samples, padded, counts.cpu().numpy(), ids.cpu(), answers.cpu())
            bar.update(len(samples))
            if turn % MARK_EVERY == MARK_EVERY - 1:
                writer.mark()
    writer.close(facts)


def counted_draw(base: Drawing, batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
    """(hidden, weights) [batch, length]; a row's depend on seed, number and epoch, not on its neighbours or its padding."""
    assert batch.samples is not None
    hidden, weights = torch.zeros_like(batch.graded), torch.zeros(batch.graded.shape)
    for row, (number, epoch) in enumerate(batch.samples.tolist()):
        used = int((batch.documents[row] >= 0).nonzero().max()) + 1
        alone = Batch(*(value[row : row + 1, :used] for value in batch.tensors()))
        hidden[row, :used], weights[row, :used] = (
            each[0] for each in base.draw(alone, seeded(seed, 2**41, number, epoch))
        )
    return hidden, weights


def top_answers(teacher: Transformer, view: View, top_k: int, order: Tensor) -> tuple[Tensor, Tensor]:
    """The k likeliest ids of every hidden token in that order, and log-probabilities with the tail's."""
    states = teacher(view.tokens, view.positions, view.pattern, view.embedding_noise, view.graded)[order]
    found = []
    for part in states.split(PIECE):
        log_p = teacher.head(part).float().log_softmax(-1)
        ids = log_p.topk(top_k, -1).indices
        found.append((ids, with_tail(log_p, ids)))
    ids, answers = (torch.cat(parts) for parts in zip(*found, strict=True))
    return ids, answers


def weights_hash(network: Transformer) -> str:
    """Of the names, types and bytes of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def files_hash(loader: RowLoader) -> str:
    """Of the bytes of all rows, and the corpora's weights."""
    digest = hashlib.sha256()
    for folder, weight in loader.folders_with_weights:
        digest.update(f"{weight}".encode())
        for path in sorted(folder.glob("*.bin")):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _bound(parent: Path) -> None:
    """The newest folders stay: this run's, and KEPT more."""
    folders = sorted((path for path in parent.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for folder in folders[: -KEPT - 1]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".lock").unlink(missing_ok=True)
