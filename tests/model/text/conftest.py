"""A small tokenizer, learnt once for these tests."""

import pytest

from model.text.tokenizer import load_tokenizer, train_tokenizer
from tests.model.text.nonsense import sentences


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(sentences(0, 500), 330, folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(folder):
    return load_tokenizer(folder)
