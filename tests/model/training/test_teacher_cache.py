"""A teacher asked once: the loss is that of asking in every step, a kill leaves no trace, other answers are never taken."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_example import CONFIG, MASK, trainer, write_rows

from model.network.transformer import Transformer
from model.noise import HidingConfig
from model.objectives import stored_answers as storage
from model.objectives.block_diffusion import BlockDiffusion
from model.objectives.masked_diffusion import MaskedDiffusion
from model.objectives.match_teacher import MatchStoredTeacher, MatchTeacher, with_tail
from model.objectives.within_row import WithinRow
from model.training import teacher_cache
from model.training.loader import RowLoader
from model.training.teacher_cache import TeacherCache, counted_draw, stored_answers

HIDING = HidingConfig("iid_t", 0.1, 0.9)
BASES = {
    "masked": MaskedDiffusion(MASK, HIDING),
    "masked, complementary": MaskedDiffusion(MASK, replace(HIDING, complementary=True)),
    "block": BlockDiffusion(MASK, 4, HIDING),
    "block, complementary": BlockDiffusion(MASK, 4, replace(HIDING, complementary=True)),
    "within the row": WithinRow(BlockDiffusion(MASK, 4, HIDING)),
}
STEPS = 12


def network(seed: int) -> Transformer:
    made = Transformer(CONFIG)
    made.initialise(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)
    return made


@pytest.fixture
def loader(tmp_path: Path) -> RowLoader:
    return RowLoader([(write_rows(tmp_path / "a", 12), 3.0), (write_rows(tmp_path / "b", 5, seed=1), 1.0)], 4, seed=3)


def stored(root: Path, loader: RowLoader, base=BASES["block"], teacher=None, steps: int = STEPS, **settings):
    teacher = teacher or network(1)
    return stored_answers(root, TeacherCache(**{"top_k": 5, **settings}), teacher, base, loader, steps, "float32")


def loss(objective, student, batch, view=None) -> tuple[dict[str, float], list[torch.Tensor]]:
    view = view or objective.corrupt(batch, torch.Generator())
    states = student(view.tokens, view.positions, view.pattern, None, view.graded)
    terms = objective.score(states, student.head, view)
    total = sum(objective.weights[name] * value for name, (value, _) in terms.items())
    gradients = torch.autograd.grad(total, list(student.parameters()), allow_unused=True)
    return {name: float(value) for name, (value, _) in terms.items()}, [g for g in gradients if g is not None]


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("name", BASES)
def test_with_the_whole_vocabulary_loss_and_gradients_are_those_of_asking_in_the_step(
    tmp_path, loader, name, direction
):
    base, teacher, student = BASES[name], network(1), network(2)
    answers = stored(tmp_path, loader, base, teacher, top_k=20)
    asked = MatchTeacher(base, teacher, 0.7, direction)
    told = MatchStoredTeacher(base, answers, 0.7, direction)
    for step in (0, 7):
        batch = loader.batch(step)
        first = replace(batch, samples=batch.samples * torch.tensor([1, 0]))  # one mask: every epoch is the first
        view = base.view(batch, *counted_draw(base, first, loader.seed))
        (ours, slopes), (theirs, wanted) = loss(told, student, batch), loss(asked, student, batch, view)
        assert ours == pytest.approx(theirs, rel=1e-5)
        for one, other in zip(slopes, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_top_k_and_tail_are_distributions_on_both_sides_and_bound_the_divergence(tmp_path, loader):
    batch, student = loader.batch(0), network(2)
    divergences = []
    for top_k in (2, 5, 20):
        told = MatchStoredTeacher(BASES["block"], stored(tmp_path, loader, top_k=top_k), 1.0)
        view = told.corrupt(batch, torch.Generator())
        ids, teacher = view.answers
        states = student(view.tokens, view.positions, view.pattern, None, view.graded)
        own = with_tail(student.head(states).log_softmax(-1), ids)
        assert own.shape == teacher.shape == (len(view.targets), top_k + (top_k < 20))
        for side in (own, teacher):
            torch.testing.assert_close(side.exp().sum(-1), torch.ones(len(side)))
        assert all(len(set(row)) == top_k for row in ids.tolist())
        divergences.append(loss(told, student, batch)[0]["teacher"])
    assert 0 < divergences[0] < divergences[1] < divergences[2], "merging classes never raises a divergence"


def test_a_later_epoch_and_another_run_read_what_is_on_disk(tmp_path, loader, monkeypatch):
    asked = []
    real = teacher_cache.top_answers
    monkeypatch.setattr(teacher_cache, "top_answers", lambda *given: asked.append(given) or real(*given))
    rows = {tuple(sample) for sample in loader.samples(np.arange(STEPS * 4)).tolist()}
    assert max(epoch for _, epoch in rows) > 1
    told = MatchStoredTeacher(BASES["block"], stored(tmp_path, loader))
    assert len(asked) == -(-len({row for row, _ in rows}) // 4), "one mask a row: later epochs ask nothing"
    for step in range(STEPS):
        told.corrupt(loader.batch(step), torch.Generator())
    del asked[:]
    told = MatchStoredTeacher(BASES["block"], stored(tmp_path, loader), 0.3, "reverse")
    assert not asked
    two = stored(tmp_path, loader, masks=2)
    numbers = torch.tensor([[3, 0], [3, 1], [3, 2]])
    first, second, third = two.masks(two.find(numbers), 16)[0]
    assert torch.equal(first, third) and not torch.equal(first, second)


def test_masks_do_not_depend_on_neighbours_or_padding(loader):
    together = loader.batch(2)
    hidden, weights = counted_draw(BASES["block"], together, 3)
    for row in range(4):
        alone = loader.read(together.samples[row : row + 1].numpy())
        one, own = counted_draw(BASES["block"], alone, 3)
        width = one.shape[1]
        assert torch.equal(hidden[row, :width], one[0]) and torch.equal(weights[row, :width], own[0])
    assert not torch.equal(hidden, counted_draw(BASES["block"], together, 4)[0])


def contents(folder: Path) -> dict[str, bytes]:
    (whole,) = [path.parent for path in folder.rglob("meta.json")]
    return {path.name: path.read_bytes() for path in whole.iterdir()}


def test_a_killed_teacher_goes_on_and_writes_the_same_bytes(tmp_path, loader, monkeypatch):
    monkeypatch.setattr(teacher_cache, "MARK_EVERY", 2)
    stored(tmp_path, loader, folder="whole")
    real, calls = teacher_cache.top_answers, []

    def dies(*given):
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(teacher_cache, "top_answers", dies)
    with pytest.raises(KeyboardInterrupt):
        stored(tmp_path, loader, folder="killed")
    assert not list((tmp_path / "killed").rglob("meta.json"))
    for path in (tmp_path / "killed").rglob("ids.bin"):
        path.write_bytes(path.read_bytes() + b"half an answer")
    stored(tmp_path, loader, folder="killed")
    assert len(calls) == 4 + 5 - 2, "two batches were marked"
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_training_with_stored_answers_that_is_killed_ends_bit_for_bit_alike(tmp_path, loader):
    data = loader.folders_with_weights[0][0]
    answers = stored(tmp_path, RowLoader([(data, 1.0)], 8, 0), steps=20, top_k=4)

    def started(name: str):
        told = MatchStoredTeacher(BASES["block"], answers)
        return trainer(tmp_path / name, data, told, judge=BASES["block"], steps=20)

    whole, killed, again = started("whole"), started("killed"), started("killed")
    whole.run()

    def dies(window, bar):
        if killed.progress.step == 15:
            raise KeyboardInterrupt

    killed._log = dies
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    assert [path.name for path in (tmp_path / "killed").glob("step-*")] == ["step-00000010"]
    again.run()
    pairs = zip(whole.raw_network.parameters(), again.raw_network.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_other_teachers_data_seeds_and_masks_have_answers_of_their_own(tmp_path, loader):
    stored(tmp_path, loader)
    other = RowLoader(loader.folders_with_weights, 4, seed=4)
    folder = next((tmp_path / ".work/teacher_cache").iterdir()).parent
    keys = [set(folder.glob("*/meta.json"))]
    for changes in ({"teacher": network(9)}, {"base": BASES["block, complementary"]}, {"loader": other}, {"steps": 9}):
        given = {"loader": loader, **changes}
        stored(tmp_path, given.pop("loader"), **given)
        keys.append(set(folder.glob("*/meta.json")))
        assert keys[-1] - keys[-2], f"{changes} must not find the answers of before"
    assert len(keys[-1]) == teacher_cache.KEPT + 1, "older folders go"
    whole = next(iter(keys[-1])).parent
    meta = json.loads((whole / "meta.json").read_text())
    with pytest.raises(ValueError, match="holds a teacher's answers for another seed: delete the folder"):
        storage.StoredAnswers(whole, meta["facts"] | {"seed": 17})


def test_impossible_settings_are_refused(tmp_path, loader):
    with pytest.raises(ValueError, match="top_k 21 must lie between 1 and the vocabulary's 20 tokens"):
        stored(tmp_path, loader, top_k=21)
    for wrong in ({"top": 3}, {"masks": 0}, {"top_k": "all"}, 64):
        with pytest.raises(ValueError, match="teacher_cache"):
            TeacherCache.from_section(wrong)
