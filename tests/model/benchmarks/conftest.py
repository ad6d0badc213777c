"""A small tokenizer and a few toy questions."""

import pytest

from model.corpora.toy_world import BENCHMARKS, WorldConfig, questions
from model.text.tokenizer import load_tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def toy_rows() -> dict[str, list[dict]]:
    return {name: questions(WorldConfig(), name, "test", 3) for name in BENCHMARKS}


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory, toy_rows):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(iter([row["question"] + row["answer"] for rows in toy_rows.values() for row in rows]), 400, folder)
    return load_tokenizer(folder)
