"""Corpus `toy_world`: the embedded world of section `toy_world`, written out as documents, conversations or benchmarks.

download: {pretrain: {world: {source: toy_world, documents: 20000}}}
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from model.corpora.manifest import CorpusContext, Source, identity_of
from model.corpora.options import read_options
from model.corpora.toy_world import BENCHMARKS, WorldConfig, conversations, documents, questions

_NOT_GENERATING = ("toy_world_show.py",)
LICENSE = "Apache-2.0"  # of this repository, whose generator writes every word


@dataclass(frozen=True)
class ToyDocumentsOptions:
    """Options under download.pretrain. `language` overrides that of section `toy_world`; another `stream`, other draws."""

    documents: int = 20_000
    weight: float = 1.0
    language: str | None = None
    stream: int = 0


@dataclass(frozen=True)
class ToyConversationsOptions:
    """Options under download.instructions."""

    conversations: int = 30_000
    weight: float = 1.0
    language: str | None = None
    stream: int = 0


@dataclass(frozen=True)
class ToyPreferencesOptions:
    """Options under download.preferences: the right answer is chosen, the answer to another question rejected."""

    pairs: int = 2_000
    weight: float = 1.0
    language: str | None = None
    stream: int = 1  # others than the conversations of the default stream


@dataclass(frozen=True)
class ToyBenchmarksOptions:
    """Options under download.benchmarks: items of each benchmark."""

    validation_items: int = 40
    test_items: int = 50
    language: str | None = None


_OPTIONS: dict[str, type] = {
    "pretrain": ToyDocumentsOptions,
    "instructions": ToyConversationsOptions,
    "preferences": ToyPreferencesOptions,
    "benchmarks": ToyBenchmarksOptions,
}


class ToyWorldCorpus:
    """Rows generated here: nothing is fetched, and the identity is the parameters and the code that generates."""

    def __init__(self, kind: str, name: str, options: Mapping[str, Any], context: CorpusContext) -> None:
        where = "download.benchmarks" if kind == "benchmarks" else f"download.{kind}.{name}"
        self.kind, self.context = kind, context
        self.options: Any = read_options(_OPTIONS[kind], options, where)
        for key, value in asdict(self.options).items():
            if isinstance(value, int) and value < (0 if key == "stream" else 1):
                raise ValueError(f"{where}.{key} is {value}: it must be at least {0 if key == 'stream' else 1}.")
        world = read_options(WorldConfig, context.params.get("toy_world") or {}, "toy_world")
        self.world = replace(world, language=self.options.language) if self.options.language else world

    def described(self) -> dict[str, Any]:
        """The options and the parameters of the world, as the manifest records them."""
        return {**asdict(self.options), "license": LICENSE, "world": asdict(self.world)}

    def look(self) -> list[Source]:
        """One source, whose identity changes with a parameter or with the generator's code."""
        folder = Path(__file__).parent
        code = {p.name: self.context.sha256(p) for p in folder.glob("toy_world*.py") if p.name not in _NOT_GENERATING}
        parameters = {
            name: value for name, value in self.described().items() if name not in ("weight", "language", "license")
        }
        return [Source("generated", identity_of({"kind": self.kind, "code": code, **parameters}))]

    def fetch(self, source: Source, folder: Path) -> None:
        """Write documents.jsonl, conversations.jsonl, pairs.jsonl, or <benchmark>.validation.jsonl and <benchmark>.test.jsonl."""
        if self.kind == "pretrain":
            _write(folder / "documents.jsonl", documents(self.world, self.options.documents, self.options.stream))
        elif self.kind == "instructions":
            rows = conversations(self.world, self.options.conversations, self.options.stream)
            _write(folder / "conversations.jsonl", rows)
        elif self.kind == "preferences":
            rows = conversations(self.world, 2 * self.options.pairs, self.options.stream)
            _write(folder / "pairs.jsonl", _pairs(row["conversations"] for row in rows))
        else:
            items = {"validation": self.options.validation_items, "test": self.options.test_items}
            for benchmark in BENCHMARKS:
                for split, count in items.items():
                    _write(folder / f"{benchmark}.{split}.jsonl", questions(self.world, benchmark, split, count))


def _pairs(talks: Iterable[list[dict[str, str]]]) -> Iterator[dict[str, Any]]:
    """The first of every two conversations with its own last answer and with the other's, where they differ."""
    talks = iter(talks)
    for talk, other in zip(talks, talks, strict=False):
        if talk[-1] != other[-1]:
            yield {"chosen": talk, "rejected": [*talk[:-1], other[-1]]}


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
