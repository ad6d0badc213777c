"""A model's own right answers: what is asked, what is kept, that a kill costs no answer, and who trains on them."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from model.checkpoints.store import load_checkpoint, save_checkpoint
from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.objectives.visited_states import NEVER
from model.samplers.results import Decoded
from model.text.packing import Layout, TokenRows
from model.text.tokenise import Corpus, CorpusTokeniser
from model.text.tokenizer import add_mask_token, load_tokenizer, train_tokenizer
from model.text.unpacking import asked_in
from tasks import own_answers, own_rows
from tasks.contradictions import check_recipe
from tasks.distill_draft import distill_draft
from tasks.tune_cap import tune_cap
from tests.tasks.test_foreign_start import stage

ROWS = [
    [
        {"role": "user", "content": f"What is {n} plus {n}?"},
        {"role": "assistant", "content": f"{n} + {n} = {2 * n}\n#### {2 * n}"},
    ]
    for n in range(40)
]
TRAINING = {"steps": 2, "batch_rows": 2, "learning_rate": 1e-3, "warmup_steps": 1, "strength": 1.0, "temperature": 0.5}
DISTILLING = {
    "layers": 2, "teacher_share": 0.7, "direction": "forward", "steps": 3, "batch_rows": 2,
    "learning_rate": 1e-2, "warmup_steps": 1,
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An untrained diffusion model with its tokenizer and packed conversations."""
    texts = [turn["content"] for row in ROWS for turn in row]
    train_tokenizer(iter(texts * 3), 300, tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    layout = Layout(64, 16, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    tokeniser = CorpusTokeniser(tokenizer, layout, 0.2, tmp_path / "data/tokens", tmp_path / "journals")
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps({"conversations": row}) + "\n" for row in ROWS))
    tokeniser.run(Corpus("instructions", "sums", tmp_path / "sums.jsonl", 1.0))
    (tmp_path / "data/tokens/mixture.json").write_text(json.dumps({"instructions": {"sums": 1.0}}))
    mask = add_mask_token(tokenizer, tmp_path / "with-mask")
    config = NetworkConfig(
        vocabulary_size=mask + 1, hidden_size=16, num_layers=4, num_heads=2, feed_forward_size=24,
        attention="block_causal", block_tokens=16, mask_token_id=mask, eos_token_id=tokenizer.eos_token_id,
        maximum_positions=256,
    )  # fmt: skip
    network = Transformer(config)
    network.initialise(torch.Generator().manual_seed(0))
    save_checkpoint(tmp_path / "data/models/finetune_diffusion", network, config, tmp_path / "with-mask")
    return tmp_path


class Speaker:
    """Stands where the decoder does: says another right answer to even numbers, a wrong one to odd ones, never ends at 2."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer, self.calls = tokenizer, 0

    def __call__(self, prompts: list[list[int]], max_new_tokens: int) -> list[Decoded]:
        self.calls += 1
        answers = []
        for prompt in prompts:
            n = int(self.tokenizer.decode(prompt, skip_special_tokens=True).split()[2])
            text = f"Twice {n}.\n#### {2 * n + n % 2}"
            end = [self.tokenizer.eos_token_id] if n != 2 else []
            ids = self.tokenizer.encode(text, add_special_tokens=False) + end
            answers.append(
                Decoded(ids, [1 + place // 3 for place in range(len(ids))], [1.0] * len(ids), {"target_forwards": 2})
            )
        return answers


@pytest.fixture
def speaker(root: Path, monkeypatch: pytest.MonkeyPatch) -> Speaker:
    made = Speaker(load_tokenizer(root / "with-mask"))
    monkeypatch.setattr(own_answers, "make_decoder", lambda *arguments, **named: made)
    return made


def texts_of(folder: Path, tokenizer) -> set[tuple[str, str]]:
    rows = TokenRows(folder)
    found = asked_in(rows.read(range(rows.num_rows)), tokenizer.eos_token_id)
    return {
        tuple(tokenizer.decode(ids, skip_special_tokens=True) for ids in (one.prompt, one.reference)) for one in found
    }


def ask(root: Path, **section) -> tuple[Path, dict]:
    """Runs the stage; the folder of rows and what became of the questions."""
    own_answers.main(stage(root, "own_answers", section))
    return root / "data/own_answers", json.loads((root / "data/metrics/own_answers.json").read_text())


def test_right_answers_are_kept_as_the_model_wrote_them_and_only_to_training_questions(root: Path, speaker: Speaker):
    folder, facts = ask(root, questions=1000)
    trained = {question for question, _ in texts_of(root / "data/tokens/instructions/train/sums", speaker.tokenizer)}
    numbers = {question: int(question.split()[2]) for question in trained}
    right = {(question, f"Twice {n}.\n#### {2 * n}") for question, n in numbers.items() if n % 2 == 0 and n != 2}
    assert 20 < len(trained) < 40 and texts_of(folder, speaker.tokenizer) == right
    assert (facts["asked"], facts["right"], facts["kept"]) == (len(trained), len(right), len(right))
    batch = TokenRows(folder).read(range(facts["rows"]))
    assert facts["tokens_per_forward"] > 2 and batch.graded.any(1).all()
    assert json.loads((folder / "facts.json").read_text()) == facts


def test_the_forward_that_revealed_a_token_stands_beside_it_and_what_fills_a_block_was_never_revealed(
    root: Path, speaker: Speaker
):
    folder, facts = ask(root, questions=1000)
    batch, times = TokenRows(folder).read(range(facts["rows"])), own_rows.read_times(folder)
    answers = 0
    for asked in asked_in(batch, speaker.tokenizer.eos_token_id):
        long = len(asked.reference) + 1
        own = times[asked.row, asked.column : asked.column + long]
        assert own.tolist() == [1 + place // 3 for place in range(long)]
        assert (times[asked.row, asked.column - len(asked.prompt) : asked.column] == NEVER).all()
        fill = times[asked.row, asked.column + long :][: -(len(asked.prompt) + long) % 16]
        assert (fill == NEVER).all()
        answers += 1
    assert answers == facts["kept"]


def test_as_many_different_questions_are_asked_as_wanted_in_an_order_of_the_seed(root: Path, speaker: Speaker):
    from model.training.loader import RowLoader

    folder = root / "data/tokens/instructions/train/sums"
    drawn = [
        own_answers.draw(RowLoader([(folder, 1.0)], 4, seed), 12, speaker.tokenizer.eos_token_id) for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len({tuple(asked.prompt) for asked in each}) for each in drawn] == [12, 12, 12]


def test_a_killed_stage_asks_only_what_was_not_answered_and_ends_with_the_same_rows(
    root: Path, speaker: Speaker, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(own_answers, "CHUNK", 10)
    whole, _ = ask(root, questions=1000)
    wanted = {path.name: path.read_bytes() for path in whole.iterdir()}
    calls = speaker.calls
    (root / "work/answers-10.json").unlink()
    half = root / "work/own_answers"
    half.mkdir()
    (half / "tokens.bin").write_bytes(b"half a row")
    made, _ = ask(root, questions=1000)
    assert {path.name: path.read_bytes() for path in made.iterdir()} == wanted
    assert speaker.calls == calls + 1


def test_cap_its_control_and_the_draft_train_on_own_answers(root: Path, speaker: Speaker):
    ask(root, questions=1000)
    states = {}
    for instance in ("tune_cap", "tune_cap_control"):
        tune_cap(stage(root, "tune_cap", TRAINING | {"answers": "own", "steps": 20, "learning_rate": 1e-2}, instance))
        states[instance] = load_checkpoint(root / f"data/models/{instance}").network.state_dict()
    assert any(
        not torch.equal(states["tune_cap"][name], states["tune_cap_control"][name]) for name in states["tune_cap"]
    )
    drafts = {}
    for answers, hidden in (("truth", "drawn"), ("own", "drawn"), ("own", "visited")):
        distill_draft(stage(root, "distill_draft", DISTILLING | {"answers": answers, "states": hidden}))
        drafts[answers, hidden] = load_checkpoint(root / "data/models/distill_draft").network.embedding.weight
    for one, other in itertools.combinations(drafts, 2):
        assert not torch.equal(drafts[one], drafts[other]), (one, other)


def test_visited_states_train_in_the_place_of_drawn_ones(root: Path, speaker: Speaker):
    ask(root, questions=1000)
    made = {}
    for states in ("drawn", "visited"):
        section = TRAINING | {"answers": "own", "states": states}
        tune_cap(stage(root, "tune_cap", section, "tune_cap"))
        made[states] = load_checkpoint(root / "data/models/tune_cap").network.state_dict()
        shutil.rmtree(root / "data/models/tune_cap")
    assert any(not torch.equal(made["drawn"][name], made["visited"][name]) for name in made["drawn"])
    config = root / "data/models/finetune_diffusion/config.json"
    config.write_text(config.read_text().replace("block_causal", "bidirectional"))
    with pytest.raises(ValueError, match=r"needs a block-causal model with the blocks of the rows \(16 tokens\)"):
        tune_cap(stage(root, "tune_cap", section, "tune_cap"))


def test_a_stored_teacher_answers_about_own_answers_too(root: Path, speaker: Speaker):
    ask(root, questions=1000)
    section = DISTILLING | {"answers": "own", "teacher_cache": {"top_k": 4}}
    distill_draft(stage(root, "distill_draft", section))
    assert json.loads((root / "data/metrics/distill_draft.json").read_text())["steps"] == DISTILLING["steps"]


def test_who_asks_nothing_leaves_a_folder_that_nobody_can_train_on(root: Path, speaker: Speaker):
    folder, facts = ask(root, questions=0)
    assert facts == {"asked": 0} and [path.name for path in folder.iterdir()] == ["facts.json"] and not speaker.calls
    with pytest.raises(ValueError, match=r"tune_cap\.answers is own, and data/own_answers holds no answers"):
        tune_cap(stage(root, "tune_cap", TRAINING | {"answers": "own"}, "tune_cap"))


def test_a_model_that_is_never_right_and_options_that_make_no_sense_are_refused(root: Path):
    with pytest.raises(ValueError, match=r"none of 5 answers ends as its reference does.*own_answers.questions: 0"):
        ask(root, questions=5)
    for wrong, message in (
        ({"question": 5}, "own_answers.question is unknown"),
        ({"questions": -1}, "own_answers.questions is -1"),
        ({"questions": 5, "processes": 2}, "own_answers.processes is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(root, **wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune_cap": {"answers": "mine"}}, "tune_cap.answers is 'mine'; it must be one of truth, own"),
        (
            {"distill_draft": {"answers": "own", "states": "some"}},
            "distill_draft.states is 'some'; it must be one of drawn",
        ),
        ({"tune_cap": {"states": "visited"}}, "tune_cap.states is visited and tune_cap.answers truth"),
        (
            {"distill_draft": {"answers": "own", "states": "visited", "teacher_cache": {}}},
            "distill_draft.teacher_cache says what is hidden, and so does distill_draft.states: visited",
        ),
        (
            {"tune_cap": {"answers": "own", "states": "visited", "hiding": {"draw": "iid_t"}}},
            "tune_cap.hiding says what is hidden, and so does tune_cap.states: visited",
        ),
        ({"tune_cap": {"answers": "own"}, "own_answers": {"questions": 0}}, "own_answers.questions 0: nobody is asked"),
        (
            {"distill_draft": {"answers": "own", "start_from": "here"}},
            "distill_draft.start_from is here and own_answers.start_from None: the answers would be another model's",
        ),
    ],
)
def test_the_first_stage_refuses_answers_that_cannot_be_trained_on(changes: dict, message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_recipe({"own_answers": {"questions": 5}, **changes})
