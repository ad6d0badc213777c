"""Likelihoods against direct computation, and the Monte-Carlo bound against the enumeration of all masks."""

import itertools

import pytest
import torch

from model.benchmarks.likelihood import bounded_likelihood, exact_likelihood, make_likelihood
from model.network.config import NetworkConfig
from model.network.masks import AttentionPattern
from model.network.transformer import Transformer

MASK, BLOCK = 11, 4


def network(attention):
    config = NetworkConfig(
        vocabulary_size=12, hidden_size=16, num_layers=2, num_heads=2, feed_forward_size=32,
        attention=attention, block_tokens=BLOCK, mask_token_id=None if attention == "causal" else MASK,
    )  # fmt: skip
    made = Transformer(config)
    made.initialise(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(6.0 if parameter.dim() > 1 else 1.0)  # far from uniform
    return made.double().eval()


@torch.inference_mode()
def log_probabilities(model, tokens, kind):
    """[length, vocabulary] with plain rows, one document."""
    row = torch.tensor([tokens])
    positions = torch.arange(len(tokens))[None]
    logits = model.head(model(row, positions, AttentionPattern(kind, torch.zeros_like(row), positions, BLOCK)))[0]
    if model.config.mask_token_id is not None:
        logits[:, MASK] = -torch.inf
    return logits.log_softmax(-1)


def enumerated_bound(model, before, segment, after, kind):
    """Sum over k and over all k-subsets of (1/n) / C(n, k) * (n/k) * log-probability of the hidden tokens."""
    total, n = 0.0, len(segment)
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(range(n), k))
        for hidden in subsets:
            noisy = [MASK if index in hidden else token for index, token in enumerate(segment)]
            found = log_probabilities(model, [*before, *noisy, *after], kind)
            total += sum(float(found[len(before) + index, segment[index]]) for index in hidden) / k / len(subsets)
    return total


def test_a_causal_network_is_scored_exactly_and_in_order():
    model = network("causal")
    pairs = [([1, 2, 3], [4, 5]), ([6], [7, 8, 9, 1]), ([1, 2, 3, 4, 5], [6])]
    for (context, continuation), (found, _) in zip(pairs, exact_likelihood(model, batch_rows=2)(pairs), strict=True):
        rows = log_probabilities(model, [*context, *continuation], "causal")
        wanted = sum(float(rows[len(context) - 1 + index, token]) for index, token in enumerate(continuation))
        assert found == pytest.approx(wanted, abs=1e-9)


def test_greedy_means_every_token_is_the_most_probable():
    model = network("causal")
    first = int(log_probabilities(model, [1, 2], "causal")[-1].argmax())
    (_, yes), (_, no) = exact_likelihood(model)([([1, 2], [first]), ([1, 2], [(first + 1) % 12])])
    assert yes and not no


@pytest.mark.parametrize("attention", ["bidirectional", "block_causal"])
def test_a_single_token_is_exact(attention):
    model = network(attention)
    context, token = [1, 2, 3, 4, 5], 6
    rest = [MASK] * 2 if attention == "block_causal" else []
    wanted = float(log_probabilities(model, [*context, MASK, *rest], attention)[5, token])
    ((found, _),) = bounded_likelihood(model, draws=3)([(context, [token])])
    assert found == pytest.approx(wanted, abs=1e-9)


def test_the_bidirectional_bound_is_the_enumerated_one():
    model = network("bidirectional")
    ((found, _),) = bounded_likelihood(model, draws=1200, batch_rows=600)([([1, 2], [3, 4, 5])])
    assert found == pytest.approx(enumerated_bound(model, [1, 2], [3, 4, 5], [], "bidirectional"), abs=0.03)


def test_the_block_bound_is_the_sum_over_blocks_given_the_clean_ones_before():
    model = network("block_causal")
    context, continuation = [1, 2, 3], [4, 5, 6, 7, 8, 9]  # blocks: [1 2 3 4] [5 6 7 8] [9 . . .]
    wanted = (
        enumerated_bound(model, [1, 2, 3], [4], [], "block_causal")
        + enumerated_bound(model, [1, 2, 3, 4], [5, 6, 7, 8], [], "block_causal")
        + enumerated_bound(model, [1, 2, 3, 4, 5, 6, 7, 8], [9], [MASK] * 3, "block_causal")
    )
    ((found, _),) = bounded_likelihood(model, draws=2400, batch_rows=600)([(context, continuation)])
    assert found == pytest.approx(wanted, abs=0.1)  # about four standard errors of the draws


@pytest.mark.parametrize("attention", ["causal", "bidirectional", "block_causal"])
def test_neither_batch_nor_neighbours_nor_order_change_a_likelihood(attention):
    pairs = [([1, 2, 3], [4, 5]), ([6], [7, 8, 9, 1]), ([1, 2, 3, 4, 5], [6]), ([2] * 9, [3] * 7)]
    model = network(attention)
    together = make_likelihood(model, draws=4, batch_rows=64)(pairs)
    alone = [make_likelihood(model, draws=4, batch_rows=1)([pair])[0] for pair in reversed(pairs)][::-1]
    assert [found for found, _ in together] == pytest.approx([found for found, _ in alone], abs=1e-9)
    assert [greedy for _, greedy in together] == [greedy for _, greedy in alone]


def test_an_empty_continuation_has_probability_one_and_a_missing_mask_is_refused():
    for attention in ("causal", "block_causal"):
        assert make_likelihood(network(attention), draws=2)([([1, 2], [])]) == [(0.0, True)]
    with pytest.raises(ValueError, match="no mask token"):
        bounded_likelihood(network("causal"))
