"""Steps of one shape, which a GPU replays as a graph, decode what steps of any shape decode."""

import pytest
import torch

from model.network.cache import KeyValueCache
from model.samplers import cached_targets, causal_targets
from model.samplers.block_loop import Batch, BlockDecoder
from model.samplers.guesses import StaleGuesser
from model.samplers.policies import FixedSteps, LeftToRight
from model.samplers.rows import Entry
from model.samplers.sampling import Sampling
from model.samplers.static_steps import StaticSteps, static_steps
from model.samplers.token_editing import TokenEditing
from tests.model.samplers.test_block_loop import network, prompts
from tests.model.samplers.test_caches import same_to_rounding

CASES = {
    "fixed steps": ("block_causal", FixedSteps(4), {}),
    "editing": ("block_causal", TokenEditing(0.3, 0.3, refining_steps=2), {}),
    "dual cache": ("bidirectional", FixedSteps(4), {"cache": "dual"}),
    "guidance": ("bidirectional", FixedSteps(4), {"cache": "prefix", "sampling": Sampling(guidance_scale=1.0)}),
    "causal": ("causal", LeftToRight(), {}),
    "speculation": ("block_causal", FixedSteps(4), {"guesser": StaleGuesser(2)}),
}


@pytest.mark.parametrize("case", CASES)
def test_steps_of_one_shape_decode_the_same(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attention, policy, options = CASES[case]
    net, asked = network(attention), prompts(5)
    plain = BlockDecoder(net, policy, 2, **options)(asked, 21)
    made: list[StaticSteps] = []

    def always(net, cache) -> StaticSteps:
        made.append(StaticSteps(net, cache))
        return made[-1]

    for module in (cached_targets, causal_targets):
        monkeypatch.setattr(module, "static_steps", always)
    found = BlockDecoder(net, policy, 2, **options)(asked, 21)
    same_to_rounding(found, plain)
    assert [one.counters for one in found] == [one.counters for one in plain]
    (steps,) = made
    replayed = sum(steps.seen[shape] - 2 for shape in steps.steps)
    assert replayed >= 1  # forwards that a GPU would have replayed


def test_a_cpu_takes_shapes_as_they_come() -> None:
    net = network()
    assert static_steps(net, KeyValueCache(net.config, 2, 16)) is None


def take_steps(net, count: int) -> Batch:
    """A batch of two rows after some steps."""
    decoder = BlockDecoder(net, FixedSteps(4), 2)
    batch = decoder.open(64)
    batch.waiting.extend(Entry(index, prompt, 21) for index, prompt in enumerate(prompts(2)))
    for _ in range(count):
        decoder.step(batch)
    return batch


def test_a_batch_on_a_cpu_captures_nothing() -> None:
    assert take_steps(network(), 4).target.steps is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_replays_graphs() -> None:
    net, asked = network(), prompts(5)
    plain = BlockDecoder(net, FixedSteps(4), 2)(asked, 21)
    same_to_rounding(BlockDecoder(net.cuda(), FixedSteps(4), 2)(asked, 21), plain)
    assert any(step.graph is not None for step in take_steps(net, 4).target.steps.steps.values())
