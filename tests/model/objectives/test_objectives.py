"""Losses against closed forms, and the contract every registered objective keeps."""

import itertools
import math

import pytest
import torch
from objective_example import BLOCK, MASK, batch, loss_of, network, packed

from model.hiding import SCHEDULES, HidingConfig
from model.network.masks import AttentionPattern
from model.noise import draw_hidden, hidden_share
from model.objectives.block_diffusion import BlockDiffusion
from model.objectives.confidence import Confidence
from model.objectives.masked_diffusion import MaskedDiffusion
from model.objectives.match_teacher import MatchTeacher
from model.objectives.next_token import NextToken
from model.text.batch import Batch


def objectives() -> dict:
    base = BlockDiffusion(MASK, BLOCK)
    return {
        "next_token": NextToken(),
        "masked_diffusion": MaskedDiffusion(MASK),
        "block_diffusion": base,
        "confidence": Confidence(base, 0.5, 1.0),
        "match_teacher": MatchTeacher(base, network(seed=5)),
    }


def test_every_registered_objective_is_under_contract():
    from model.registry import names

    assert set(objectives()) == set(names("objective"))


@pytest.mark.parametrize("name", list(objectives()))
def test_an_objective_repeats_ignores_ungraded_targets_and_learns(name):
    objective, net, data = objectives()[name], network(), batch()
    assert torch.equal(loss_of(net, objective, data, 3), loss_of(net, objective, data, 3))
    view = objective.corrupt(data, torch.Generator().manual_seed(3))
    wanted = torch.cat((data.graded[:, 1:], data.graded[:, :1] & False), 1) if name == "next_token" else data.graded
    columns = view.positions[view.graded]
    assert wanted[0][columns].all(), "only graded tokens may be costed"
    counts = objective.counts(view)
    if counts is not None:
        terms = objective.score(net(view.tokens, view.positions, view.pattern, None, view.graded), net.head, view)
        assert {k: float(v) for k, v in counts.items()} == {k: float(c) for k, (_, c) in terms.items()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    # CAP's entropy term starts at nothing (no guess is right yet), so learning is judged by what it wraps.
    judged = objective.base if name == "confidence" else objective
    with torch.no_grad():
        before = sum(float(loss_of(net, judged, data, s)) for s in range(4))
    for step in range(25):
        optimizer.zero_grad()
        loss_of(net, objective, data, step).backward()
        optimizer.step()
    with torch.no_grad():
        after = sum(float(loss_of(net, judged, data, s)) for s in range(4))
    assert math.isfinite(after) and after < 0.9 * before


def exact_bound(net, data: Batch, kind: str, block: int) -> float:
    """Expected exact_count loss per maskable token of one row, by enumeration of every count and every mask of each segment."""
    length = data.tokens.shape[1]
    size = block if kind == "block" else length
    total = 0.0
    for start in range(0, length, size):
        columns = range(start, start + size)
        for count in range(1, size + 1):
            chosen = list(itertools.combinations(columns, count))
            for hidden in chosen:
                tokens = data.tokens.clone()
                tokens[0, list(hidden)] = MASK
                window = tokens[:, : start + size]  # later blocks are not seen
                positions = data.positions[:, : start + size]
                rule = AttentionPattern("block_causal", torch.zeros_like(window), positions, size)
                logits = net.head(net(window, positions, rule))[0]
                losses = torch.nn.functional.cross_entropy(
                    logits[list(hidden)], data.tokens[0, list(hidden)], reduction="sum"
                )
                total += float(losses) * size / count / len(chosen) / size
    return total / length


@pytest.mark.parametrize("kind", ["masked", "block"])
def test_the_exact_count_loss_is_an_unbiased_estimate_of_the_bound(kind):
    net, data = network(), batch(rows=1, length=8, prompt=0)
    hiding = HidingConfig("exact_count")
    objective = MaskedDiffusion(MASK, hiding) if kind == "masked" else BlockDiffusion(MASK, BLOCK, hiding)
    many = Batch(*(value.expand(800, -1) for value in data.tensors()))
    with torch.no_grad():
        estimates = torch.stack([loss_of(net, objective, many, seed) for seed in range(4)])
        exact = exact_bound(net, data, kind, BLOCK)
    # the spread of the four means gives the standard error of their mean
    assert abs(float(estimates.mean()) - exact) < 5 * float(estimates.std()) / 2 + 1e-3 * exact


def test_block_size_one_is_the_autoregressive_likelihood_of_the_same_network():
    net, data = network(), batch(rows=2, length=8, prompt=0)
    objective = BlockDiffusion(MASK, 1, HidingConfig("exact_count"))
    total = 0.0
    for column in range(8):
        tokens = data.tokens[:, : column + 1].clone()
        tokens[:, column] = MASK
        positions = data.positions[:, : column + 1]
        logits = net.head(net(tokens, positions, AttentionPattern("causal", torch.zeros_like(tokens), positions)))[
            :, column
        ]
        total += float(torch.nn.functional.cross_entropy(logits, data.tokens[:, column], reduction="sum"))
    assert float(loss_of(net, objective, data, 0)) == pytest.approx(total / 16, rel=1e-6)


def test_a_block_as_long_as_the_row_is_plain_masked_diffusion():
    net, data = network(), batch(length=8, prompt=0)
    hiding = HidingConfig("iid_t", 0.1, 0.9)
    whole, plain = BlockDiffusion(MASK, 8, hiding), MaskedDiffusion(MASK, hiding)
    assert float(loss_of(net, whole, data, 2)) == pytest.approx(float(loss_of(net, plain, data, 2)), rel=1e-6)


def dense_sum(net, data: Batch, hidden, weights) -> torch.Tensor:
    """Weighted cross-entropy of block diffusion as it is published: [x_t ; x_0] of the whole padded row, one dense mask."""
    length = data.tokens.shape[1]
    tokens = torch.cat((torch.where(hidden, MASK, data.tokens), data.tokens), 1)
    noisy = (torch.arange(2 * length) < length).expand(len(tokens), -1)
    positions = data.positions.repeat(1, 2)
    pattern = AttentionPattern("block_diffusion", data.documents.repeat(1, 2), positions, BLOCK, noisy)
    logits = net.head(net(tokens, positions, pattern)[:, :length][hidden]).float()
    losses = torch.nn.functional.cross_entropy(logits, data.tokens[hidden], reduction="none")
    return (losses * weights[hidden]).sum()


@pytest.mark.parametrize("data", [batch(length=16, prompt=6), packed()], ids=["one document a row", "packed"])
@pytest.mark.parametrize("complementary", [False, True])
def test_reading_only_what_matters_changes_neither_loss_nor_gradient(data, complementary):
    objective = BlockDiffusion(MASK, BLOCK, HidingConfig("iid_t", 0.2, 0.8, complementary))
    net, full = network(), network()
    blocks = torch.arange(data.tokens.shape[1]).div(BLOCK, rounding_mode="floor").expand(len(data.tokens), -1)
    hidden, weights = draw_hidden(blocks, data.graded, objective.hiding, torch.Generator().manual_seed(4))
    reference = dense_sum(full, data, hidden, weights) / data.graded.sum()
    if complementary:
        inverse = dense_sum(full, data, data.graded & ~hidden, 1 / (1 - 1 / weights)) / data.graded.sum()
        reference = (reference + inverse) / 2
    found = loss_of(net, objective, data, 4)
    found.backward()
    reference.backward()
    assert float(found) == pytest.approx(float(reference), rel=1e-6)
    for ours, theirs in zip(net.parameters(), full.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


def test_rows_that_nothing_looks_at_are_not_read():
    view = BlockDiffusion(MASK, BLOCK).corrupt(batch(length=16, prompt=6), torch.Generator().manual_seed(4))
    # The first block is all prompt and needs no noisy copy, nothing looks at a clean copy of the last; padded to 32 rows each.
    assert int(view.pattern.real.sum()) == 3 * (12 + 12) and view.tokens.shape[1] == 3 * 32


@pytest.mark.parametrize("name", ["masked", "block"])
def test_complementary_copies_hide_every_graded_token_exactly_once(name):
    hiding, data = HidingConfig("iid_t", 0.05, 0.95, complementary=True), packed()
    objective = MaskedDiffusion(MASK, hiding) if name == "masked" else BlockDiffusion(MASK, BLOCK, hiding)
    view = objective.corrupt(data, torch.Generator().manual_seed(7))
    assert torch.equal(view.targets.sort().values, data.tokens[data.graded].sort().values)
    assert int(view.maskable) == 2 * int(data.graded.sum()) and (view.tokens[view.graded] == MASK).all()
    assert (view.weights >= 1 / 0.951).all() and (view.weights <= 1 / 0.049).all()


def test_right_guesses_carry_no_gradient_only_their_entropy_does():
    net, data = network(), batch()
    objective = Confidence(BlockDiffusion(MASK, BLOCK), 2.0, 0.5)
    view = objective.corrupt(data, torch.Generator().manual_seed(0))
    hidden = net(view.tokens, view.positions, view.pattern, None, view.graded)
    logits = net.head(hidden)
    right = logits.argmax(-1) == view.targets
    probabilities = (logits / 0.5).softmax(-1)
    by_hand = -(probabilities * probabilities.log()).sum(-1)[right].sum()
    total, count = objective.score(hidden, net.head, view)["entropy"]
    assert float(total) == pytest.approx(float(by_hand), rel=1e-5) and int(count) == int(right.sum())


def test_no_right_guess_costs_nothing_and_stays_in_the_graph():
    net = network()
    objective = Confidence(MaskedDiffusion(MASK), 2.0, 0.5)
    data = batch()
    view = objective.corrupt(data, torch.Generator().manual_seed(0))
    hidden = net(view.tokens, view.positions, view.pattern, None, view.graded)
    wrong = net.head(hidden).argmin(-1)
    total, count = objective.score(hidden, net.head, type(view)(**{**view.__dict__, "targets": wrong}))["entropy"]
    assert float(total) == 0.0 and float(count) == 0.0 and total.requires_grad


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_student_equal_to_its_teacher_has_no_divergence(direction):
    net, data = network(seed=5), batch()
    objective = MatchTeacher(BlockDiffusion(MASK, BLOCK), network(seed=5), 1.0, direction)
    assert float(loss_of(net, objective, data, 0)) == pytest.approx(0.0, abs=1e-6)
    assert float(loss_of(network(seed=6), objective, data, 0)) > 0.01


def test_each_direction_is_the_divergence_that_it_is_named_for():
    student, teacher, base = network(seed=6), network(seed=5), BlockDiffusion(MASK, BLOCK)
    view = base.corrupt(batch(), torch.Generator().manual_seed(0))
    ours, theirs = (
        each.head(each(view.tokens, view.positions, view.pattern, None, view.graded)).float().log_softmax(-1)
        for each in (student, teacher)
    )
    for direction, reference, other in (("forward", theirs, ours), ("reverse", ours, theirs)):
        expected = torch.nn.functional.kl_div(other, reference, reduction="batchmean", log_target=True)
        loss = loss_of(student, MatchTeacher(base, teacher, 1.0, direction), batch(), 0)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5), direction


@pytest.mark.parametrize("draw", ["iid_t", "exact_count"])
def test_every_segment_hides_something_and_nothing_unmaskable(draw):
    segments = torch.arange(32).div(4, rounding_mode="floor").expand(50, -1)
    maskable = torch.rand(50, 32, generator=torch.Generator().manual_seed(0)) < 0.5
    hidden, weights = draw_hidden(segments, maskable, HidingConfig(draw), torch.Generator().manual_seed(1))
    assert not (hidden & ~maskable).any()
    for segment in range(8):
        inside = segments == segment
        assert torch.equal((hidden & inside).any(1), (maskable & inside).any(1))
    if draw == "exact_count":
        counts = torch.zeros(50, 8).scatter_add_(1, segments, maskable.float())
        shown = torch.zeros(50, 8).scatter_add_(1, segments, hidden.float())
        assert torch.allclose((counts / shown).gather(1, segments)[hidden], weights[hidden])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.1, 0.8)])
def test_every_schedule_has_the_expected_loss_of_the_linear_one(schedule, low, high):
    """For every mask of k out of 4 tokens: the mean over t of weight x P(mask) is 1 / (high - low) int s^(k-1) (1-s)^(4-k) ds."""
    uniform = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    share, weight = hidden_share(uniform, low, high, schedule)
    assert share.min() >= low and share.max() <= high
    exact = uniform * (high - low) + low
    for hidden in range(1, 5):
        found = (weight * share**hidden * (1 - share) ** (4 - hidden)).mean()
        wanted = (exact ** (hidden - 1) * (1 - exact) ** (4 - hidden)).mean()
        assert float(found) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("name", ["masked", "block"])
def test_the_plain_mean_is_the_unweighted_mean_over_hidden_tokens(name):
    hiding, net, data = HidingConfig(weighting="plain_mean"), network(), packed()
    objective = MaskedDiffusion(MASK, hiding) if name == "masked" else BlockDiffusion(MASK, BLOCK, hiding)
    view = objective.corrupt(data, torch.Generator().manual_seed(3))
    logits = net.head(net(view.tokens, view.positions, view.pattern)[view.graded])
    wanted = torch.nn.functional.cross_entropy(logits.float(), view.targets)
    assert float(loss_of(net, objective, data, 3)) == pytest.approx(float(wanted), rel=1e-6)


def test_wrong_settings_are_refused_with_the_rule():
    with pytest.raises(ValueError, match="minimum_fraction"):
        HidingConfig("iid_t", 0.9, 0.1)
    for draw, maximum in (("exact_count", 0.9), ("iid_t", 1.0)):
        with pytest.raises(ValueError, match="complementary"):
            HidingConfig(draw, 0.1, maximum, complementary=True)
    for wrong in ({"schedule": "sine"}, {"weighting": "none"}):
        with pytest.raises(ValueError, match="must be one of"):
            HidingConfig(**wrong)
    for wrong in ({"draw": "exact_count"}, {"complementary": True}):
        with pytest.raises(ValueError, match="schedule cosine"):
            HidingConfig(schedule="cosine", **wrong)
    with pytest.raises(ValueError, match="forward, reverse"):
        MatchTeacher(MaskedDiffusion(MASK), network(), 0.7, "sideways")
