"""Caches and batches change the cost of an answer and nothing else; what is approximate says so."""

import random
import subprocess
import sys

import pytest
import torch

from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.samplers.block_loop import BlockDecoder
from model.samplers.policies import FixedSteps, Threshold
from model.samplers.token_editing import TokenEditing
from tests.model.samplers.test_block_loop import BLOCK, network, prompts

POLICIES = [Threshold(0.2), TokenEditing(0.3, 0.3, refining_steps=2)]


def same_to_rounding(found, expected) -> None:
    """Tokens and steps equal, confidences and logit gaps to the rounding of float64."""
    for one, other in zip(found, expected, strict=True):
        assert (one.tokens, one.revealed_at) == (other.tokens, other.revealed_at)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-12)
        assert one.smallest_gap == pytest.approx(other.smallest_gap, abs=1e-10)


@pytest.mark.parametrize("policy", POLICIES, ids=["threshold", "editing"])
def test_a_block_causal_network_decodes_the_same_with_and_without_its_cache(policy):
    net, asked = network(), prompts(3)
    cached, plain = (BlockDecoder(net, policy, 2, cache=kind)(asked, 13) for kind in ("prefix", "none"))
    same_to_rounding(cached, plain)
    assert {one.cache for one in (*cached, *plain)} == {"exact"}
    tokens = [sum(one.counters["target_tokens"] for one in found) for found in (cached, plain)]
    assert tokens[0] < tokens[1]


def test_shared_key_heads_read_the_cache_as_they_read_a_whole_window():
    config = NetworkConfig(
        31, 24, 2, 4, 32, num_key_value_heads=2, head_size=6, attention="block_causal", block_tokens=BLOCK,
        mask_token_id=30, eos_token_id=1,
    )  # fmt: skip
    net = Transformer(config)
    net.initialise(torch.Generator().manual_seed(0))
    net = net.double().eval()
    same_to_rounding(*(BlockDecoder(net, FixedSteps(3), 2, cache=kind)(prompts(3), 10) for kind in ("prefix", "none")))


@pytest.mark.parametrize(
    "attention, cache", [("block_causal", "prefix"), ("bidirectional", "none"), ("bidirectional", "dual")]
)
def test_a_row_does_not_depend_on_its_neighbours(attention, cache):
    net, asked = network(attention), prompts(4)
    alone = [BlockDecoder(net, POLICIES[0], cache=cache)([prompt], 11)[0] for prompt in asked]
    for batch_rows in (2, 4):
        same_to_rounding(BlockDecoder(net, POLICIES[0], batch_rows, cache=cache)(asked, 11), alone)
    same_to_rounding(BlockDecoder(net, POLICIES[0], 3, cache=cache)(asked[::-1], 11)[::-1], alone)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_bidirectional_cache_is_an_approximation_and_is_called_one(cache):
    net, asked = network("bidirectional"), prompts(3)
    exact = BlockDecoder(net, FixedSteps(8))(asked, 24)
    found = BlockDecoder(net, FixedSteps(8), cache=cache)(asked, 24)
    assert {one.cache for one in exact} == {"exact"} and {one.cache for one in found} == {f"{cache} (approximate)"}
    assert [one.confidence for one in found] != [one.confidence for one in exact]
    tokens = [sum(one.counters["target_tokens"] for one in answers) for answers in (found, exact)]
    assert tokens[0] < tokens[1]


def test_no_forward_is_spent_on_storing_a_block():
    (found,) = BlockDecoder(network(), FixedSteps(2), eos_early_stop=False)([[2] * 8], 24)
    blocks = -(-len(found.tokens) // BLOCK)
    assert found.target_forwards == 2 * blocks and found.counters["prefill_forwards"] == 1
    # the prompt's block, two forwards a block, and every block but the last once more beside its successor
    assert found.counters["target_tokens"] == 8 + 2 * 8 * blocks + 8 * (blocks - 1)


LONG = """
import resource, sys, torch
from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.samplers.block_loop import BlockDecoder
from model.samplers.policies import FixedSteps
torch.set_num_threads(1)
length = int(sys.argv[1])
config = NetworkConfig(31, 32, 2, 2, 64, attention="block_causal", block_tokens=64, maximum_positions=32_768,
                       mask_token_id=30, query_key_norm=True,
                       rotary_scaling={"kind": "yarn", "factor": 4.0, "original_maximum_positions": 8192})
net = Transformer(config)
net.initialise(torch.Generator().manual_seed(0))
with torch.no_grad():
    [parameter.mul_(9) for parameter in net.parameters() if parameter.dim() > 1]
prompt = [(7 * place * place + 3 * place) % 30 for place in range(2048)]
decode = BlockDecoder(net.eval(), FixedSteps(1))
start = decode([prompt], 64)[0].tokens
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(found,) = decode([prompt], length - len(prompt))
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
short = BlockDecoder(net, FixedSteps(1), cache="none")([prompt], 256)[0].tokens
print(len(found.tokens), int(found.tokens[:256] == short), grown)
"""


@pytest.mark.slow
def test_a_context_of_32768_tokens_takes_memory_in_proportion_and_starts_as_without_a_cache():
    """Prompt 2,048, the rest is output, YaRN beyond 8,192; kibibytes of growth, measured in processes of their own."""
    grown = {}
    for length in (16_384, 32_768):
        done = subprocess.run([sys.executable, "-c", LONG, str(length)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        tokens, same, kibibytes = map(int, done.stdout.split())
        assert tokens == length - 2048 and same == 1
        grown[length] = kibibytes
    # The first decode's own peak hides a part of the smaller growth. A mask of length x length would take 1 GiB.
    assert grown[32_768] < 2 * grown[16_384] + 40_000
    assert grown[32_768] < 120_000


def test_bad_options_are_refused_with_the_way_out():
    net, both = network(), network("bidirectional")
    for options, message in (
        ({"cache": "magic"}, "none, prefix, dual"),
        ({"cache": "dual"}, "prefix cache is exact"),
        ({"block_tokens": 0}, "block_tokens 0"),
        ({"batch_rows": 0}, "batch_rows 0"),
    ):
        with pytest.raises(ValueError, match=message):
            BlockDecoder(net, FixedSteps(2), **options)
    with pytest.raises(ValueError, match="policy left_to_right"):
        BlockDecoder(network("causal"), FixedSteps(2))
    rng = random.Random(0)
    assert len(BlockDecoder(both, FixedSteps(2), block_tokens=5)([[rng.randrange(2, 9)] * 3], 7)[0].tokens) <= 7
