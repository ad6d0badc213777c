"""Speculation prefetches logits and changes nothing: not a token, not a state, whatever the guesses are worth."""

from functools import cache

import pytest
import torch

from model.registry import names
from model.samplers import states
from model.samplers.adaptive_depth import AdaptiveDepth
from model.samplers.block_loop import BlockDecoder
from model.samplers.decode import make_policy
from model.samplers.guesses import BothGuesser, DraftGuesser, StaleGuesser
from model.samplers.results import flop_speed_up
from model.samplers.sampling import Sampling
from tests.model.samplers.table_network import BLOCK, TableNetwork
from tests.model.samplers.test_block_loop import network, noisy_copy

PROMPTS = [[2, 3, 4, 5, 6], [7, 8], [9, 10, 11]]
POLICIES = {
    "one_token": {"name": "one_token"},
    "two_steps": {"name": "fixed_steps", "steps": 2},
    "threshold": {"name": "threshold", "threshold": 0.4},
    "hybrid": {"name": "hybrid", "threshold": 0.5, "steps": 3},
    "factor": {"name": "factor", "factor": 1.2},
    "entropy": {"name": "entropy_threshold", "nats": 1.2},
    "uniform_time": {"name": "uniform_time", "steps": 3},
    "left_to_right": {"name": "left_to_right"},
    "editing": {"name": "token_editing", "threshold": 0.4, "edit_threshold": 0.5, "refining_steps": 3},
}
GUESSERS = {
    "stale": lambda net, depth: StaleGuesser(depth, width=2),
    "perfect": lambda net, depth: DraftGuesser(net, net, depth),
    "noisy": lambda net, depth: DraftGuesser(TableNetwork(7, 0.6), net, depth, width=3),
    "adversarial": lambda net, depth: DraftGuesser(TableNetwork(7, 0.0), net, depth),
    "both": lambda net, depth: BothGuesser(TableNetwork(7, 0.6), net, depth, width=2),
    "adaptive": lambda net, depth: DraftGuesser(TableNetwork(7, 0.6), net, AdaptiveDepth(4)),
}


def decode(net, policy, guesser=None, temperature=0.0, seed=0, new=7, **options):
    """Answers, and the states every row went through as the steps that an observer saw."""
    steps = {}
    sampling = Sampling(temperature, top_k=6 if temperature else None, seed=seed)
    made = make_policy(policy, BLOCK)
    decoder = BlockDecoder(net, made, batch_rows=2, guesser=guesser, sampling=sampling, **options)
    answers = decoder(PROMPTS, new, observer=lambda s: steps.setdefault(s.row, []).append((s.positions, s.tokens)))
    return answers, steps


def test_every_policy_that_has_a_name_is_speculated_with():
    assert {policy["name"] for policy in POLICIES.values()} >= set(names("policy"))


def check(plain, found) -> None:
    """The same answers through the same states, never with more forwards."""
    (before, states), (after, states_after) = plain, found
    assert states_after == states
    for one, other in zip(before, after, strict=True):
        assert (other.tokens, other.confidence) == (one.tokens, pytest.approx(one.confidence, abs=1e-12))
        assert other.target_forwards <= one.target_forwards == one.counters["steps"] == other.counters["steps"]


@cache
def plain_decode(policy, temperature, seed):
    """Without guesses, once for all sources of guesses."""
    return decode(TableNetwork(), POLICIES[policy], None, temperature, seed)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("source", GUESSERS)
def test_speculation_equals_plain_decoding_state_for_state(policy, source):
    net = TableNetwork()
    for temperature, depth, seed in ((0.0, 3, 0), (0.8, 2, 1)):
        plain = plain_decode(policy, temperature, seed)
        found = decode(net, POLICIES[policy], GUESSERS[source](net, depth), temperature, seed)
        check(plain, found)
        saved = sum(a.target_forwards for a in plain[0]) - sum(a.target_forwards for a in found[0])
        assert saved > 0 or source != "perfect"
        assert source != "adversarial" or saved <= 2


@pytest.mark.parametrize("cache", ["block_causal", "prefix", "dual"])
@pytest.mark.parametrize("source", ["stale", "draft"])
def test_speculation_over_a_cache_equals_plain_decoding_with_that_cache(cache, source):
    net = network("block_causal" if cache == "block_causal" else "bidirectional")
    options = {} if cache == "block_causal" else {"cache": cache}
    for policy in (
        POLICIES["threshold"] | {"threshold": 0.15},
        POLICIES["editing"] | {"threshold": 0.2, "edit_threshold": 0.3},
    ):
        guesser = StaleGuesser(2) if source == "stale" else DraftGuesser(noisy_copy(net, 0.05), net, 3, width=2)
        check(decode(net, policy, None, **options), decode(net, policy, guesser, **options))


def test_guidance_and_repeat_penalty_speculate_as_well():
    net, policy = network("block_causal"), make_policy({"name": "threshold", "threshold": 0.2}, 8)
    sampling = Sampling(guidance_scale=0.7, repeat_penalty=1.3)
    plain = BlockDecoder(net, policy, batch_rows=2, sampling=sampling)(PROMPTS, 12)
    uncached = BlockDecoder(net, policy, batch_rows=2, sampling=sampling, cache="none")(PROMPTS, 12)
    found = BlockDecoder(net, policy, batch_rows=2, sampling=sampling, guesser=DraftGuesser(net, net, 3))(PROMPTS, 12)
    assert [a.tokens for a in plain] == [a.tokens for a in uncached] == [a.tokens for a in found]
    assert sum(a.target_forwards for a in found) < sum(a.target_forwards for a in plain)
    greedy = BlockDecoder(net, policy, batch_rows=2)(PROMPTS, 12)
    assert [a.tokens for a in plain] != [a.tokens for a in greedy]


@pytest.mark.parametrize("careless", ["subset", "step_alone"])
def test_a_match_of_less_than_the_whole_state_is_caught(careless, monkeypatch):
    """Negative control: the comparison above must fail when the walk follows guesses that only resemble the state."""
    net, policy = TableNetwork(), POLICIES["threshold"]
    plain = decode(net, policy)

    def resembles(self, other):
        same = (self.tokens == other.tokens) | (self.tokens == 13) | (careless == "step_alone")
        return same.all(-1) & (self.step == other.step)

    monkeypatch.setattr(states.State, "equals", resembles)
    found = decode(net, policy, DraftGuesser(TableNetwork(7, 0.6), net, 3, width=3))
    with pytest.raises(AssertionError):
        check(plain, found)


def test_counters_add_up():
    net = TableNetwork()
    draft = DraftGuesser(TableNetwork(7, 0.6), net, 3, width=2)
    plain, found = decode(net, POLICIES["one_token"])[0], decode(net, POLICIES["one_token"], draft)[0]
    for answer in found:
        counts = answer.counters
        matched = sum(value for name, value in counts.items() if name.startswith("matched_"))
        assert counts["steps"] == counts["target_forwards"] + matched
        assert counts["rows_verified"] >= counts["target_forwards"] and counts["draft_forwards"] > 0
        assert counts["commit_forwards"] == counts["wasted_forwards"] == 0
        assert set(answer.acceptance) <= {1, 2, 3} and all(0 <= share <= 1 for share in answer.acceptance.values())
        assert answer.seconds.keys() == {"target", "draft", "host"} and min(answer.seconds.values()) >= 0
    for answer in plain:
        assert answer.tokens_per_forward == len(answer.tokens) / answer.target_forwards
        assert answer.counters["draft_tokens"] == 0
    target, draft_tokens = (sum(a.counters[name] for a in found) for name in ("target_tokens", "draft_tokens"))
    before = sum(a.counters["target_tokens"] for a in plain)
    assert flop_speed_up(plain, found, 0.5) == before / (target + 0.5 * draft_tokens) < 1


def test_the_adaptive_depth_follows_acceptance():
    depth = AdaptiveDepth(maximum=6, draft_cost=0.3, row_cost=0.1)
    for _ in range(60):
        depth.record(4, 4)
    assert depth.now() >= 4
    for _ in range(300):
        depth.record(4, 0)
    assert [depth.now() for _ in range(32)].count(1) == 2 and depth.now() == 0  # a probe in sixteen
    assert AdaptiveDepth(6, draft_cost=0.0, row_cost=0.0).now() == 6
    assert AdaptiveDepth(6, draft_cost=9.0, row_cost=0.0, free_guesses=2).now() == 2


def test_a_draft_of_another_vocabulary_mask_or_grid_is_refused():
    net = TableNetwork()
    for changed in (TableNetwork(block=8), network("bidirectional")):
        with pytest.raises(ValueError, match="distilled from this target"):
            DraftGuesser(changed, net, 2)
    with pytest.raises(ValueError, match="at least 1"):
        StaleGuesser(0)
    with pytest.raises(ValueError, match="width 0"):
        StaleGuesser(1, width=0)


def test_the_first_edge_of_both_costs_no_draft_forward():
    net = TableNetwork()
    alone = decode(net, POLICIES["one_token"], DraftGuesser(net, net, 1))[0]
    both = decode(net, POLICIES["one_token"], BothGuesser(net, net, 1))[0]
    assert sum(a.counters["draft_forwards"] for a in both) < sum(a.counters["draft_forwards"] for a in alone)
    assert torch.tensor([a.target_forwards for a in both]).min() > 0
