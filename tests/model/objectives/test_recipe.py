"""The recipe's switches: curricula, noise on masks, variable length, penalties; each does what it says and nothing when off."""

from dataclasses import replace

import pytest
import torch
from objective_example import BLOCK, MASK, batch, loss_of, network, packed

from model.curricula import BlockCurriculum, RatioCurriculum, Recipe
from model.hiding import HidingConfig
from model.network.masks import AttentionPattern
from model.noise import draw_hidden
from model.objectives.block_diffusion import BlockDiffusion, block_numbers
from model.objectives.mask_noise import NoisyMasks
from model.objectives.masked_diffusion import MaskedDiffusion
from model.objectives.penalties import Penalties, repeats
from model.objectives.variable_length import VariableLength, cut
from model.objectives.within_row import WithinRow
from model.text.batch import Batch


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_block_sizes_go_up_stay_and_come_down():
    curriculum = BlockCurriculum([1, 2, 8], [8, 4], (0.3, 0.4, 0.3))
    sizes = [curriculum.block_tokens(step, 100) for step in range(100)]
    assert sizes == [1] * 10 + [2] * 10 + [8] * 50 + [8] * 15 + [4] * 15


def test_the_hidden_share_rises_stays_and_falls():
    curriculum = RatioCurriculum(0.2, 1.0, (0.5, 0.25, 0.25))
    shares = [curriculum.share(step, 8) for step in range(8)]
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 0.6])


@pytest.mark.parametrize("data", [batch(length=16, prompt=0), packed()], ids=["one document a row", "packed"])
def test_a_block_as_long_as_the_row_reads_no_clean_half_and_is_masked_diffusion(data):
    hiding = HidingConfig("iid_t", 0.1, 0.9)
    length = data.tokens.shape[1]
    view = BlockDiffusion(MASK, length, hiding).corrupt(data, rng())
    assert not (view.pattern.real & (view.pattern.noisy == 0)).any()
    # Blocks and documents are numbered alike then, so the same generator hides the same tokens with the same weights.
    net = network()
    whole, plain = BlockDiffusion(MASK, length, hiding), MaskedDiffusion(MASK, hiding)
    assert float(loss_of(net, whole, data, 2).detach()) == pytest.approx(
        float(loss_of(net, plain, data, 2).detach()), rel=1e-6
    )


@pytest.mark.parametrize("size", [1, 2, 8])
def test_every_block_size_of_a_curriculum_counts_blocks_from_the_documents_start(size):
    """Documents are packed on a grid of 4; a larger block is still never shared by two documents, nor cut by a row."""
    data = packed()
    blocks = block_numbers(data, size)
    real = data.documents >= 0
    for row in range(len(data.tokens)):
        for number in blocks[row][real[row]].unique():
            inside = real[row] & (blocks[row] == number)
            assert len(data.documents[row][inside].unique()) == 1
            assert len((data.positions[row][inside] // size).unique()) == 1
            assert int(inside.sum()) <= size
    net = network().double()
    objective = BlockDiffusion(MASK, size, HidingConfig("iid_t", 0.2, 0.8))
    alone = []  # every document in a row of its own, the same tokens hidden
    view = objective.corrupt(data, rng(3))
    hidden = net(view.tokens, view.positions, view.pattern, None, view.graded)
    for row, number in ((0, 0), (0, 1), (1, 0), (1, 1)):
        here = data.documents[row] == number
        one = type(data)(*(value[row][here][None] for value in data.tensors()))
        alone.append(replace(one, documents=torch.zeros_like(one.tokens)))
    blocks = block_numbers(data, size)
    drawn, weights = draw_hidden(blocks, data.graded, objective.hiding, rng(3))
    total = 0.0
    for one, (row, number) in zip(alone, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True):
        here = data.documents[row] == number
        total += float(dense(net, one, drawn[row][here][None], weights[row][here][None], size))
    found, _ = objective.score(hidden, net.head, view)["diffusion"]
    assert float(found) == pytest.approx(total, rel=1e-6)


def dense(net, data, hidden, weights, size):
    """Block diffusion of one document, written plainly: every noisy block with the clean ones before it, one by one."""
    total = torch.zeros(())
    for start in range(0, data.tokens.shape[1], size):
        chosen = hidden[0, start : start + size]
        tokens = data.tokens[:, : start + size].clone()
        window = tokens[:, start:]
        window[0, chosen] = MASK
        positions = torch.arange(tokens.shape[1])[None]
        blocks = positions[0] // size
        allowed = (blocks[None, :] <= blocks[:, None])[None, None]
        logits = net.head(net(tokens, positions, allowed))[0, start:][chosen].float()
        wanted = data.tokens[0, start : start + size][chosen]
        losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
        total = total + (losses * weights[0, start : start + size][chosen]).sum()
    return total.detach()


def test_contiguous_hiding_is_one_run_of_the_share_in_every_document():
    data = packed()
    hidden, weights = draw_hidden(
        data.documents.clamp_min(0), data.graded, HidingConfig("contiguous", share=0.5), rng()
    )
    for row, number in ((0, 0), (0, 1), (1, 0), (1, 1)):
        graded = data.graded[row] & (data.documents[row] == number)
        run = hidden[row][graded].long()
        count = max(1, round(int(graded.sum()) * 0.5))
        assert int(run.sum()) == count and int((run.diff() != 0).sum()) <= 2
        assert torch.allclose(weights[row][graded], graded.sum() / count)
        columns = run.nonzero()[:, 0]
        assert int(columns[-1] - columns[0]) == count - 1
    assert not (hidden & ~data.graded).any()


def test_blockwise_hiding_hides_blocks_whole():
    data = batch(rows=200, length=16, prompt=5)
    hiding = HidingConfig("blocks", share=0.5, span_tokens=4)
    hidden, weights = draw_hidden(data.documents, data.graded, hiding, rng())
    per_block, maskable = hidden.view(200, 4, 4).sum(2), data.graded.view(200, 4, 4).sum(2)
    assert ((per_block == 0) | (per_block == maskable)).all()
    assert (per_block > 0).sum(1).eq(2).all()  # of three blocks with graded tokens, round(1.5) = 2
    assert set(map(tuple, (per_block > 0).tolist())) == {
        (False, True, True, False), (False, True, False, True), (False, False, True, True)
    }  # fmt: skip
    assert torch.allclose(weights[:, 0], 11 / hidden.sum(1))


def test_noise_stands_at_hidden_positions_only_and_repeats():
    objective = NoisyMasks(MaskedDiffusion(MASK), 0.5, 16)
    view = objective.corrupt(batch(rows=40), rng(1))
    noisy = view.embedding_noise.abs().sum(-1) > 0
    assert torch.equal(noisy, view.graded)
    again = objective.corrupt(batch(rows=40), rng(1))
    assert torch.equal(again.embedding_noise, view.embedding_noise)
    assert float(view.embedding_noise[view.graded].std()) == pytest.approx(0.5, rel=0.05)
    net = network()
    plain = objective.base.corrupt(batch(rows=40), rng(1))
    assert torch.equal(plain.tokens, view.tokens)  # the same tokens are hidden with and without
    assert not torch.allclose(
        net(view.tokens, view.positions, view.pattern, view.embedding_noise.double(), view.graded),
        net(plain.tokens, plain.positions, plain.pattern, None, plain.graded),
    )


def test_a_cut_document_keeps_its_beginning_and_lengths_are_even():
    data = batch(rows=4000, length=12, prompt=0)
    lengths = (cut(data, 1.0, rng()).documents >= 0).sum(1)
    counts = torch.bincount(lengths, minlength=13)[1:].float()
    assert (counts - 4000 / 12).abs().max() < 5 * (4000 / 12) ** 0.5
    assert torch.equal(cut(data, 0.0, rng()).documents, data.documents)
    some = cut(data, 0.25, rng())
    whole = ((some.documents >= 0).sum(1) == 12).float().mean()
    assert float(whole) == pytest.approx(0.75 + 0.25 / 12, abs=0.03)
    gone = some.documents < 0
    assert not (some.graded & gone).any() and not (some.positions[gone]).any()
    assert torch.equal(some.positions[~gone], data.positions[~gone])
    view = VariableLength(BlockDiffusion(MASK, BLOCK), 0.5).corrupt(packed(), rng())
    assert float(view.maskable) < float(packed().graded.sum())


def test_the_repeat_penalty_is_the_unlikelihood_of_tokens_that_repeat_the_one_before():
    net, data = network(), packed()
    data = replace(data, tokens=torch.where(data.positions < 9, 3, 4))  # runs of 3 and 4
    base = MaskedDiffusion(MASK, HidingConfig("iid_t", 0.2, 0.9))
    objective = Penalties(base, 0.5, 0.25, ignored=(4,))
    view = objective.corrupt(data, rng(5))
    hidden = net(view.tokens, view.positions, view.pattern, None, view.graded)
    terms = objective.score(hidden, net.head, view)
    drawn, _ = draw_hidden(data.documents.clamp_min(0), data.graded, base.hiding, rng(5))
    before = torch.nn.functional.pad(data.tokens[:, :-1], (1, 0))
    chosen = drawn & (data.positions > 0) & (data.tokens == before) & (data.tokens == 3)
    # Plain rows: every document alone, the same tokens hidden.
    noisy = torch.where(drawn, MASK, data.tokens)
    logits = net.head(net(noisy, data.positions, AttentionPattern("bidirectional", data.documents, data.positions)))
    wanted = -torch.log(1 - logits.softmax(-1)[chosen][:, 3])
    assert int(terms["repeat"][1]) == int(chosen.sum()) > 2
    assert float(terms["repeat"][0].detach()) == pytest.approx(float(wanted.detach().sum()), rel=1e-5)
    z = net.head(hidden).detach().float().logsumexp(-1).square()
    assert float(terms["z"][0].detach()) == pytest.approx(float(z.sum()), rel=1e-5)
    counts = objective.counts(view)
    assert {name: float(value) for name, value in counts.items()} == {name: float(c) for name, (_, c) in terms.items()}
    assert objective.weights == {"diffusion": 1.0, "accuracy": 0.0, "repeat": 0.5, "z": 0.25}


def test_a_token_never_repeats_another_documents():
    """The first row of the second document is position 16 and stands behind position 15 of the first: both hold token 7."""
    tokens, graded = torch.arange(64).view(2, 32) % MASK, torch.ones(2, 32, dtype=torch.bool)
    tokens[0, 15] = tokens[1, 16] = 7
    positions = torch.arange(32).expand(2, -1)
    documents = torch.zeros(2, 32, dtype=torch.long)
    documents[0, 16:], graded[0, 16:], graded[1, :16] = -1, False, False
    data = Batch(tokens, documents, positions * (documents >= 0), graded)
    view = BlockDiffusion(MASK, 16, HidingConfig("iid_t", 0.9, 1.0)).corrupt(data, rng(2))
    first = view.positions[view.graded] == 16
    assert first.sum() == 1 and not repeats(view, ())[first].any()


@pytest.mark.parametrize(
    ("section", "objective", "message"),
    [
        ({"block_curriculum": {"up": [1, 5, 16], "down": [16, 4]}}, "block_diffusion", "block_curriculum .* 5.*row_tokens 16"),
        ({"block_curriculum": {"up": [1, 16], "down": [16, 8]}}, "block_diffusion", "ends with 8"),
        ({"block_curriculum": {"up": [1, 16], "down": [16, 4]}}, "masked_diffusion", "objective block_diffusion"),
        ({"block_curriculum": {"up": [], "down": [16, 4]}}, "block_diffusion", "block_curriculum.up"),
        ({"block_curriculum": {"up": [16], "down": [4], "phases": [0.5, 0.6, 0.1]}}, "block_diffusion", "phases"),
        ({"block_curriculum": {"upp": [16]}}, "block_diffusion", "block_curriculum"),
        ({"ratio_curriculum": {}}, "block_diffusion", "ratio_curriculum sets .* hiding.draw iid_t"),
        ({"ratio_curriculum": {"low": 0.9, "high": 0.1}}, "block_diffusion", r"low \(0.9\)"),
        ({"hiding": {"minimum_fraction": 0.9, "maximum_fraction": 0.1}}, "block_diffusion", "hiding.minimum_fraction"),
        ({"hiding": {"minimum": 0.9}}, "block_diffusion", "hiding.minimum"),
        ({"hiding": {"draw": "contiguous", "share": 0.0}}, "block_diffusion", "hiding.share"),
        ({"mask_noise": {"scale": 0.0, "steps": 5}}, "block_diffusion", "mask_noise"),
        ({"variable_length": 2}, "block_diffusion", "variable_length"),
        ({"repeat_penalty": -1}, "block_diffusion", "repeat_penalty"),
    ],
)  # fmt: skip
def test_contradictory_switches_are_refused_by_name(section, objective, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_section(section).check(objective, row_tokens=16, block_tokens=4)


@pytest.mark.parametrize("base", [MaskedDiffusion(MASK, HidingConfig("iid_t", 0.3, 0.7)), BlockDiffusion(MASK, BLOCK)])
def test_within_a_row_the_same_tokens_are_hidden_and_other_documents_are_read(base):
    data, net = packed(), network()
    inside, across = base.corrupt(data, rng(5)), WithinRow(base).corrupt(data, rng(5))
    for name in ("source", "targets", "weights"):
        ours, theirs = (torch.stack((view.source, getattr(view, name).to(view.source)), 1) for view in (across, inside))
        assert torch.equal(ours[ours[:, 0].argsort()], theirs[theirs[:, 0].argsort()])
    changed = replace(data, tokens=torch.where(data.documents == 0, (data.tokens + 1) % MASK, data.tokens))
    costs = [
        [per_token(net, objective.corrupt(each, rng(5)))[data.documents.flatten() == 1] for each in (data, changed)]
        for objective in (base, WithinRow(base))
    ]
    assert torch.equal(*costs[0]) and not torch.allclose(*costs[1])


def per_token(net, view) -> torch.Tensor:
    """Cross-entropy of every hidden token at its place in the flattened batch of `packed()`, 0 elsewhere."""
    states = net(view.tokens, view.positions, view.pattern, None, view.graded)
    costs = torch.nn.functional.cross_entropy(net.head(states), view.targets, reduction="none")
    return torch.zeros(40, dtype=costs.dtype).index_put((view.source,), costs.detach())
