"""DPO with the diffusion bound: one mask for both answers, the closed form, and that it learns what is preferred."""

import math

import pytest
import torch
from objective_example import BLOCK, MASK, network

from model.hiding import HidingConfig
from model.network.masks import AttentionPattern
from model.objectives.block_diffusion import BlockDiffusion
from model.objectives.masked_diffusion import MaskedDiffusion
from model.objectives.preference import Preference
from model.text.batch import Batch

BASES = {
    "masked": MaskedDiffusion(MASK, HidingConfig("iid_t", 0.2, 0.9)),
    "block": BlockDiffusion(MASK, BLOCK, HidingConfig("iid_t", 0.2, 0.9)),
}


def pairs(rows: int = 4, seed: int = 0) -> Batch:
    """A prompt of 5 tokens, a chosen answer of 7 and a rejected one of 3, on the grid."""
    tokens = torch.randint(0, MASK, (rows, 20), generator=torch.Generator().manual_seed(seed))
    tokens[:, 12:17] = tokens[:, :5]
    documents = torch.cat((torch.zeros(12), torch.ones(8))).long().expand(rows, -1)
    positions = torch.cat((torch.arange(12), torch.arange(8))).expand(rows, -1)
    return Batch(tokens, documents, positions, positions >= 5)


def terms_of(net, objective, data, seed=0):
    view = objective.corrupt(data, torch.Generator().manual_seed(seed))
    return view, objective.score(net(view.tokens, view.positions, view.pattern, None, view.graded), net.head, view)


@pytest.mark.parametrize("base", BASES)
def test_both_answers_hide_the_same_positions_with_the_same_weights_and_never_the_prompt(base):
    data = pairs(50)
    view = Preference(BASES[base], network()).corrupt(data, torch.Generator().manual_seed(1))
    drawn = torch.zeros(50, 20, dtype=torch.double)
    drawn.view(-1)[view.source] = view.weights.double()
    assert not drawn[~data.graded].any() and torch.equal(data.tokens.flatten()[view.source], view.targets)
    assert torch.equal(drawn[:, 5:8], drawn[:, 17:20])  # positions 5 to 7, which both have
    assert (drawn[:, 5:12] > 0).any(1).float().mean() > 0.9 and (drawn > 0).float().mean() < 0.4


@pytest.mark.parametrize("base", BASES)
def test_the_policy_it_starts_from_is_indifferent(base):
    _, terms = terms_of(network(), Preference(BASES[base], network()), pairs())
    total, count = terms["preference"]
    assert float(total.detach() / count) == pytest.approx(math.log(2.0), abs=1e-9)
    assert float(terms["margin"][0]) == pytest.approx(0, abs=1e-6)


def weighted_bound(net, tokens, hidden, weights, causal_blocks):
    """- sum over hidden tokens of weight x cross-entropy of one document, block by block where blocks are causal."""
    length = tokens.shape[1]
    size = BLOCK if causal_blocks else length
    total = 0.0
    for start in range(0, length, size):
        chosen = hidden[0, start : start + size]
        window = tokens[:, : start + size].clone()
        window[0, start : start + size][chosen] = MASK
        positions = torch.arange(window.shape[1])[None]
        pattern = AttentionPattern("block_causal", torch.zeros_like(window), positions, size)
        logits = net.head(net(window, positions, pattern))[0, start:][chosen]
        losses = torch.nn.functional.cross_entropy(logits, tokens[0, start : start + size][chosen], reduction="none")
        total -= float((losses * weights[0, start : start + size][chosen]).sum().detach())
    return total


@pytest.mark.parametrize("base", BASES)
def test_the_loss_is_the_closed_form_of_four_bounds(base):
    data, policy, reference = pairs(), network(seed=1), network(seed=2)
    objective = Preference(BASES[base], reference, beta=0.3)
    view, terms = terms_of(policy, objective, data, 3)
    weights = torch.zeros(4, 20)
    weights.view(-1)[view.source] = view.weights
    losses, wins = [], 0
    for row in range(4):
        drawn = weights[row : row + 1]
        bounds = [
            weighted_bound(net, data.tokens[row : row + 1, here], drawn[:, here] > 0, drawn[:, here], base == "block")
            for net in (policy, reference)
            for here in (slice(0, 12), slice(12, 20))
        ]
        margin = (bounds[0] - bounds[2]) - (bounds[1] - bounds[3])
        losses.append(-math.log(1 / (1 + math.exp(-0.3 * margin))))
        wins += margin > 0
    assert float(terms["preference"][0].detach()) == pytest.approx(sum(losses), rel=1e-5)
    assert int(terms["accuracy"][0]) == wins and float(terms["preference"][1]) == 4


def test_training_prefers_the_chosen_answers_and_leaves_the_reference_alone():
    policy, reference, data = network(), network(), pairs(8)
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    objective = Preference(BASES["block"], reference, 0.5)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=6e-3)
    for step in range(12):
        _, terms = terms_of(policy, objective, data, step)
        (terms["preference"][0] / terms["preference"][1]).backward()
        optimizer.step()
        optimizer.zero_grad()
    _, terms = terms_of(policy, objective, data, 99)
    assert float(terms["accuracy"][0]) >= 7 and float(terms["margin"][0]) > 0
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())


def test_a_mask_that_cannot_be_shared_is_refused():
    for wrong in (HidingConfig("exact_count"), HidingConfig(weighting="plain_mean"), HidingConfig(complementary=True)):
        with pytest.raises(ValueError, match=r"hiding\.draw iid_t"):
            Preference(MaskedDiffusion(MASK, wrong), network())
    with pytest.raises(ValueError, match="beta 0"):
        Preference(BASES["block"], network(), 0.0)
