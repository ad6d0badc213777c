"""Measurements of a checkpoint whose likelihood is known: every token but the mask is equally likely."""

import math
from pathlib import Path

import pytest
import torch

from model.checkpoints.store import save_checkpoint
from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.text.tokenizer import add_mask_token, encode_texts, load_tokenizer, train_tokenizer
from tasks.promotion.measure import bits_per_byte, not_finite

ATTENTIONS = ("block_causal", "bidirectional")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(iter(["the red boat has nine lamps"] * 20), 300, folder / "plain")
    add_mask_token(load_tokenizer(folder / "plain"), folder / "masked")
    return folder / "masked"


def checkpoint(folder: Path, tokenizer: Path, attention: str, fill: float = 0.0) -> Path:
    known = load_tokenizer(tokenizer)
    config = NetworkConfig(
        vocabulary_size=len(known), hidden_size=8, num_layers=1, num_heads=2, feed_forward_size=8, attention=attention,
        block_tokens=4, mask_token_id=known.mask_token_id, eos_token_id=known.eos_token_id, maximum_positions=64,
    )  # fmt: skip
    network = Transformer(config)
    network.initialise(torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.head.weight.zero_() if hasattr(network.head, "weight") else network.embedding.weight.zero_()
        network.norm.weight[3] = fill if fill else 1.0
    save_checkpoint(folder, network, config, tokenizer)
    return folder


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_bits_per_byte_are_those_of_a_uniform_guess_over_what_is_to_be_predicted(
    tmp_path: Path, tokenizer: Path, attention: str
) -> None:
    folder, known = checkpoint(tmp_path / "model", tokenizer, attention), load_tokenizer(tokenizer)
    uniform = math.log2(len(known) - 1)  # the mask is never a proposal

    text = "the red boat has nine lamps and seven oars"
    ids = encode_texts(known, [text])[0].tolist()
    predicted = known.decode(ids[1:]).encode()
    found = bits_per_byte(folder, [{"text": text}], seed=0)
    assert found == pytest.approx(uniform * (len(ids) - 1) / len(predicted), rel=1e-6)

    answers = ["nine", "the red boat"]
    turns = [("user", "how many lamps?"), ("assistant", answers[0]), ("user", "which?"), ("assistant", answers[1])]
    conversation = {"conversations": [{"role": role, "content": content} for role, content in turns]}
    tokens = len(encode_texts(known, [answers[1]])[0]) + 1  # and EOS
    found = bits_per_byte(folder, [conversation], seed=0)
    assert found == pytest.approx(uniform * tokens / len(answers[1]), rel=1e-6)

    assert bits_per_byte(folder, [], seed=0) is None
    assert bits_per_byte(folder, [{"text": "t"}], seed=0) is None  # nothing is left to predict
    longer = bits_per_byte(folder, [{"text": text * 20}], seed=0)  # is cut at the context's end
    assert longer == pytest.approx(
        uniform * 63 / len(known.decode(encode_texts(known, [text * 20])[0][1:64])), rel=1e-6
    )


@pytest.mark.parametrize("fill", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_none_is_found_by_name(tmp_path: Path, tokenizer: Path, fill: float) -> None:
    assert not_finite(checkpoint(tmp_path / "sound", tokenizer, "block_causal")) == []
    assert not_finite(checkpoint(tmp_path / "broken", tokenizer, "block_causal", fill)) == ["norm.weight"]
