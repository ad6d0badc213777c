"""An open batch: rows come and go between forwards, and nothing about a row depends on when it came or who stood beside it."""

import random

import pytest
import torch

from model.samplers.adaptive_depth import AdaptiveDepth
from model.samplers.block_loop import BlockDecoder
from model.samplers.guesses import DraftGuesser, StaleGuesser
from model.samplers.policies import LeftToRight, Threshold
from model.samplers.rows import Entry
from model.samplers.sampling import Draws, Sampling
from tests.model.samplers.test_block_loop import BLOCK, EOS, MASK, network, noisy_copy, prompts

CAPACITY = 64
DRAWS = [Sampling(), Sampling(0.7, seed=5), Sampling(1.3, top_p=0.8, seed=5), Sampling(0.7, seed=6)]


def entries(count: int = 8) -> list[Entry]:
    rng = random.Random(3)
    asked = prompts(count, seed=4)
    return [Entry(i, asked[i], rng.randrange(1, 33), DRAWS[i % len(DRAWS)]) for i in range(count)]


def policy_of(net):
    return LeftToRight() if net.config.attention == "causal" else Threshold(0.2)


def alone(net, entry: Entry) -> list[int]:
    """The answer of a decoder made for this row, with nobody beside it."""
    decode = BlockDecoder(net, policy_of(net), sampling=entry.sampling)
    return decode([entry.prompt], entry.max_new_tokens)[0].tokens


@pytest.mark.parametrize(
    ("attention", "guesses"),
    [
        ("block_causal", "none"),
        ("block_causal", "stale"),
        ("block_causal", "draft"),
        ("bidirectional", "stale"),
        ("causal", "none"),
    ],
)
def test_rows_that_come_and_go_get_the_answer_they_would_get_alone(attention, guesses):
    net, rng = network(attention), random.Random(1)
    made = {
        "none": lambda: None,
        "stale": lambda: StaleGuesser(2),
        "draft": lambda: DraftGuesser(noisy_copy(net, 0.1), net, AdaptiveDepth(2)),
    }
    decoder = BlockDecoder(net, policy_of(net), batch_rows=3, guesser=made[guesses]())
    batch, found, coming = decoder.open(CAPACITY), {}, entries()
    expected = {entry.index: alone(net, entry) for entry in entries()}
    longest, gone = max(expected, key=lambda index: len(expected[index])), None
    while coming or batch.waiting or batch.rows.num_live:
        if coming and rng.random() < 0.4:
            batch.waiting.append(coming.pop(0))
        if batch.waiting or batch.rows.num_live:
            found.update(decoder.step(batch))
        gone = gone or decoder.drop(batch, longest)
    assert gone.tokens == expected.pop(longest)[: len(gone.tokens)]
    assert {index: decoded.tokens for index, decoded in found.items()} == expected


def test_a_dropped_row_frees_its_slot_and_what_is_settled_never_changes():
    net = network()
    with torch.no_grad():
        net.unembedding.weight[EOS] = 0  # answers are as long as they may be
    decoder = BlockDecoder(net, Threshold(0.2), batch_rows=1)
    batch = decoder.open(CAPACITY)
    first, second = Entry(0, [2, 3, 4], 40), Entry(1, [5, 6], 12)
    batch.waiting.extend([first, second])
    seen: list[int] = []
    while len(seen) < 2 * BLOCK - 3:
        assert decoder.step(batch) == []
        settled = batch.rows.settled(0)
        assert settled[: len(seen)] == seen and MASK not in settled
        seen = settled
    dropped = decoder.drop(batch, 0)
    assert dropped.cancelled and dropped.tokens[: len(seen)] == seen and batch.rows.num_live == 0
    found = {}
    while 1 not in found:
        found.update(decoder.step(batch))
    assert found[1].tokens == alone(net, Entry(1, second.prompt, 12, Sampling()))


def test_equal_seeds_draw_alike_in_any_slot_and_settings_that_a_batch_shares_are_refused():
    decoder = BlockDecoder(network(), Threshold(0.2), batch_rows=4)
    batch, found = decoder.open(CAPACITY), {}
    batch.waiting.extend(Entry(i, [2, 3, 4], 12, Sampling(2.0, seed=s)) for i, s in enumerate((1, 2, 1)))
    while batch.waiting or batch.rows.num_live:
        found.update(decoder.step(batch))
    assert found[0].tokens == found[2].tokens != found[1].tokens
    with pytest.raises(ValueError, match="differ in temperature, top_p and seed"):
        Draws.greedy(1).put(0, Sampling(top_k=4))


def test_the_depth_follows_the_costs_at_the_number_of_live_rows():
    depth = AdaptiveDepth(4, by_rows={1: (0.1, 0.05), 16: (0.6, 0.9)})
    depth.record(100, 90)
    assert depth.best(1) > 0 == depth.best(2) == depth.best(40)
