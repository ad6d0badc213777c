"""The draft is asked in the states that the target decoded in, about the tokens that it revealed there."""

import pytest
import torch

from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.samplers.decode import make_decoder
from model.samplers.results import Step
from tasks.draft_agreement import agreement, states_of

MASK, EOS, BLOCK = 30, 1, 4
PROMPTS = [[2, 3, 4], [5] * 6, [7, 8]]
POLICIES = {"one": {"name": "one_token"}, "many": {"name": "threshold", "threshold": 0.05}}


def network(attention: str, seed: int = 3) -> Transformer:
    config = NetworkConfig(
        31, 24, 2, 2, 32, attention=attention, block_tokens=BLOCK, mask_token_id=MASK, eos_token_id=EOS
    )
    net = Transformer(config)
    net.initialise(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    return net.eval()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("attention", ["block_causal", "bidirectional"])
def test_a_draft_that_is_the_target_agrees_always_and_another_one_does_not(attention: str, policy: str) -> None:
    net, steps = network(attention), []
    make_decoder(net, POLICIES[policy], 2)(PROMPTS, 10, observer=steps.append)
    same = agreement(net, PROMPTS, steps, 10, 2)
    assert (same["value"], same["low"], same["high"]) == (1.0, 1.0, 1.0)
    assert same["tokens"] == sum(len(step.positions) for step in steps) >= 3 * 4
    other = agreement(network(attention, seed=4), PROMPTS, steps, 10, 2)
    assert other["low"] <= other["value"] < 0.6


def test_a_state_shows_what_was_revealed_before_it_and_ends_with_its_block() -> None:
    def step(positions: list[int], tokens: list[int], edited: bool = False) -> Step:
        return Step(0, 1, positions, tokens, [1.0] * len(tokens), [edited] * len(tokens))

    steps = [step([3], [9]), step([5, 7], [8, 6]), step([5], [2], edited=True), step([4, 6], [1, 1])]
    states = list(states_of(network("block_causal"), [[2, 3, 4]], steps, 5))
    assert [state.tokens for state in states] == [
        [2, 3, 4, MASK],
        [2, 3, 4, 9, MASK, MASK, MASK, MASK],
        [2, 3, 4, 9, MASK, 2, MASK, 6],
    ]
    assert [(state.positions, state.revealed) for state in states] == [([3], [9]), ([5, 7], [8, 6]), ([4, 6], [1, 1])]
