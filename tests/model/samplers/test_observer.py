"""An observer sees every token appear, changes nothing, and can end decoding."""

import pytest
import torch

from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.samplers.block_loop import BlockDecoder
from model.samplers.guesses import DraftGuesser
from model.samplers.policies import LeftToRight, Threshold

MASK, EOS, BLOCK = 30, 1, 8
PROMPTS = [[2, 3, 4], [5] * 11, [7, 8]]


def network(attention: str = "block_causal") -> Transformer:
    config = NetworkConfig(
        31, 24, 2, 2, 32, attention=attention, block_tokens=BLOCK, mask_token_id=MASK, eos_token_id=EOS
    )
    net = Transformer(config)
    net.initialise(torch.Generator().manual_seed(3))
    return net.double().eval()


def decoder(kind: str):
    if kind == "causal":
        return BlockDecoder(network(kind), LeftToRight(), batch_rows=2)
    net = network("bidirectional" if kind == "bidirectional" else "block_causal")
    guesser = DraftGuesser(net, net, 2) if kind == "guesses" else None
    return BlockDecoder(net, Threshold(0.05), batch_rows=2, guesser=guesser)


@pytest.mark.parametrize("kind", ["block_causal", "bidirectional", "guesses", "causal"])
def test_the_steps_of_an_observer_add_up_to_the_answers(kind):
    plain, seen = decoder(kind)(PROMPTS, 12), []
    assert decoder(kind)(PROMPTS, 12, observer=seen.append) == plain
    for row, (prompt, answer) in enumerate(zip(PROMPTS, plain, strict=True)):
        canvas, when = {}, {}
        for step in (step for step in seen if step.row == row):
            assert len(step.positions) == len(step.tokens) == len(step.confidence) == len(step.edited) > 0
            canvas.update(zip(step.positions, step.tokens, strict=True))
            when.update(dict.fromkeys(step.positions, step.forward))
        own = range(len(prompt), len(prompt) + len(answer.tokens))
        assert [canvas[position] for position in own] == answer.tokens
        assert [when[position] for position in own] == answer.revealed_at
    assert any(step.accepted for step in seen) == (kind == "guesses")


@pytest.mark.parametrize("kind", ["block_causal", "bidirectional", "guesses", "causal"])
def test_an_observer_that_returns_true_ends_decoding_with_what_is_written(kind):
    plain, seen = decoder(kind)(PROMPTS, 12), []

    def stop_at_fifth(step) -> bool:
        seen.append(step)
        return len(seen) >= 5

    found = decoder(kind)(PROMPTS, 12, observer=stop_at_fifth)
    assert len(seen) <= 6 and len(found) == 3 and found[2].cancelled and found[2].tokens == []
    for whole, part in zip(plain, found, strict=True):
        assert part.tokens == whole.tokens[: len(part.tokens)]
        assert part.cancelled or part == whole


def test_an_exception_of_the_observer_passes_and_the_decoder_still_works():
    decode = decoder("block_causal")
    plain = decode(PROMPTS, 12)

    def fail(step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(PROMPTS, 12, observer=fail)
    assert decode(PROMPTS, 12) == plain
