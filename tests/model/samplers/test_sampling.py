"""Drawing tokens: the right distribution, from a counter and from nothing else; confidence from before it."""

import math
from dataclasses import replace

import pytest
import torch

from model.samplers.block_loop import BlockDecoder
from model.samplers.policies import BlockView, EntropyThreshold, Factor, FixedSteps, Threshold, UniformTime
from model.samplers.sampling import Asked, Proposer, Sampling, gumbel_noise
from model.samplers.token_editing import TokenEditing
from tests.model.samplers.table_network import MASK, TableNetwork

LOGITS = torch.tensor([2.0, 0.5, 1.5, -1.0, 0.0, 9.0])  # the last is the mask token's
DRAWS = 20_000


def drawn(sampling: Sampling, count: int = DRAWS) -> torch.Tensor:
    """Proposals for the same logits under `count` different counters."""
    counters = torch.stack(
        [torch.arange(count) // 7, torch.arange(count) % 7, torch.zeros(count), torch.arange(count) * 3]
    )
    nothing = torch.zeros(count, dtype=torch.long)
    asked = Asked(nothing, nothing, nothing, counters.long())
    return Proposer(sampling, 5).propose(LOGITS.double().repeat(count, 1), asked)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_from_the_tempered_distribution_and_never_the_mask(temperature):
    frequency = torch.bincount(drawn(Sampling(temperature))[0].long(), minlength=6) / DRAWS
    expected = (LOGITS[:5] / temperature).softmax(0)
    assert frequency[5] == 0
    assert (frequency[:5] - expected).abs().max() < 4 * math.sqrt(0.25 / DRAWS)


def test_temperature_0_is_greedy_and_confidence_comes_before_temperature_and_top_k():
    greedy = drawn(Sampling(top_k=2, top_p=0.1), 5)
    assert (greedy[0] == 0).all()
    probability = LOGITS[:5].double().softmax(0)
    for sampling in (Sampling(2.0), Sampling(0.5, top_k=3)):
        token, doubt, gap, _ = drawn(sampling, 200)
        assert torch.allclose(1 / (1 + doubt), probability[token.long()])
        assert token.unique().numel() > 1 and (gap >= 0).all()


def test_top_k_and_top_p_keep_the_likeliest_tokens_only():
    assert set(drawn(Sampling(3.0, top_k=2))[0].tolist()) == {0, 2}
    probability = LOGITS[:5].softmax(0)  # 0.53, 0.12, 0.32, 0.03, 0.07
    assert set(drawn(Sampling(1.0, top_p=float(probability[0]) - 0.01))[0].tolist()) == {0}
    assert set(drawn(Sampling(1.0, top_p=float(probability[0]) + 0.01))[0].tolist()) == {0, 2}


def test_noise_is_a_function_of_its_counters():
    counters = torch.arange(4 * 50).view(4, 50)
    noise = gumbel_noise(3, counters, 11)
    assert torch.equal(noise[7:9], gumbel_noise(3, counters[:, 7:9], 20)[:, :11])
    for other in (gumbel_noise(4, counters, 11), gumbel_noise(3, counters + torch.tensor([[0], [0], [1], [0]]), 11)):
        assert (noise != other).all()
    assert abs(noise.mean() - 0.5772) < 0.2 and noise.isfinite().all()


def test_a_drawn_answer_depends_on_seed_and_sample_and_not_on_the_batch():
    net, asked = TableNetwork(), [[2, 3, 4], [5, 6, 7, 8, 9], [2, 3, 4], [2, 3, 4]]
    for policy in (Threshold(0.4), TokenEditing(0.4, 0.5)):
        alone = BlockDecoder(net, policy, 1, sampling=Sampling(1.0, seed=3))(asked, 9)
        together = BlockDecoder(net, policy, 4, sampling=Sampling(1.0, seed=3))(asked, 9)
        assert alone == together
        assert len({tuple(alone[row].tokens) for row in (0, 2, 3)}) > 1, "samples of one prompt differ"
        other = BlockDecoder(net, policy, 4, sampling=Sampling(1.0, seed=4))(asked, 9)
        assert [a.tokens for a in other] != [a.tokens for a in alone]


def view(confidence: list[float], step: int = 0, **changes) -> BlockView:
    """One row's block; confidence 0 stands for a shown position."""
    values = torch.tensor([confidence], dtype=torch.float64)
    hidden = values > 0
    shown = BlockView(hidden, torch.where(hidden, 1 / values - 1, torch.inf), torch.tensor([step]), hidden.sum(1))
    return replace(shown, **changes)


def chosen(policy, shown: BlockView) -> list[int]:
    return policy.choose(shown)[0].nonzero()[:, 0].tolist()


def test_policies_choose_what_their_papers_say():
    confidences = [0.5, 0.0, 0.9, 0.6, 0.95]
    assert chosen(FixedSteps(3), view(confidences)) == [2, 4]  # 4 hidden over 3 steps: 2, 1, 1
    assert chosen(FixedSteps(3), view(confidences, step=1)) == [4]
    assert chosen(Threshold(0.9), view(confidences)) == [4]
    assert chosen(Threshold(0.9, inclusive=True), view(confidences)) == [2, 4]
    assert chosen(Threshold(1.0), view(confidences)) == [4]
    assert chosen(Factor(0.35), view(confidences)) == [2, 4]  # 2 * 0.05, 3 * 0.1, then 4 * 0.4
    assert chosen(Factor(0.01), view(confidences)) == [4]
    assert chosen(UniformTime(2), view(confidences)) == [2, 4]
    assert chosen(UniformTime(2), view(confidences, step=1)) == [0, 2, 3, 4]
    entropy = torch.tensor([[0.3, 0.0, 0.6, 0.2, 0.9]])
    assert chosen(EntropyThreshold(0.4), view(confidences, entropy=entropy)) == [0, 3]
    assert chosen(EntropyThreshold(0.1), view(confidences, entropy=entropy)) == [3]
    differs = torch.tensor([[False, True, False, False, False]])
    sure = torch.where(differs, 0.1, view(confidences).doubt)
    assert chosen(TokenEditing(0.99, 0.8), view(confidences, differs=differs, doubt=sure)) == [1, 4]
    assert chosen(TokenEditing(0.99, 0.95), view(confidences, differs=differs, doubt=sure)) == [4]


def test_the_mask_token_of_a_prompt_is_refused_and_none_is_ever_drawn():
    for answer in BlockDecoder(TableNetwork(), FixedSteps(2), sampling=Sampling(3.0))([[2, 3]] * 3, 11):
        assert MASK not in answer.tokens
