"""Preference pairs from jsonl to a tuned model, through the functions of every stage; and the stage is absent by default."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoints.store import load_checkpoint, save_checkpoint
from model.corpora.options import RowOptions
from model.corpora.rules import BadRow, check_preferences
from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.text.packing import Layout, TokenRows
from model.text.tokenise import Corpus, CorpusTokeniser
from model.text.tokenizer import add_mask_token, load_tokenizer, train_tokenizer
from tasks.contradictions import check_recipe
from tasks.evaluate_preferred import evaluate_preferred
from tasks.fingerprint import fingerprint
from tasks.prefer import prefer
from tasks.stage import Stage
from tasks.training import row_tokens
from tests.tasks.test_foreign_start import Silent, stage


def pair(question: str, good: str, bad: str) -> dict:
    asked = [{"role": "user", "content": question}]
    return {
        side: [*asked, {"role": "assistant", "content": answer}]
        for side, answer in (("chosen", good), ("rejected", bad))
    }


ROWS = [pair(f"What is {n} plus {n}?", f"It is {2 * n}.", "I do not know at all.") for n in range(40)]


def test_pairs_are_read_as_conversations_or_as_answers_to_a_prompt():
    options = RowOptions()
    assert check_preferences(ROWS[3], options, 1000) == ROWS[3]
    flat = {"prompt": "What is 3 plus 3?", "chosen": "It is 6.", "rejected": "I do not know at all."}
    assert check_preferences(flat, options, 1000) == ROWS[3]
    for wrong, reason in (
        ({**flat, "rejected": "It is 6."}, "no_preference"),
        ({"chosen": ROWS[3]["chosen"], "rejected": ROWS[4]["rejected"]}, "prompts_differ"),
        ({"chosen": ROWS[3]["chosen"]}, "missing_field"),
        ({**flat, "chosen": " "}, "empty_turn"),
    ):
        with pytest.raises(BadRow) as bad:
            check_preferences(wrong, options, 1000)
        assert bad.value.reason == reason


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A diffusion model with its tokenizer, and packed pairs and conversations."""
    texts = [turn["content"] for row in ROWS for turn in (*row["chosen"], row["rejected"][-1])]
    train_tokenizer(iter(texts * 3), 300, tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    layout = Layout(64, 16, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    tokeniser = CorpusTokeniser(tokenizer, layout, 0.2, tmp_path / "data/tokens", tmp_path / "journals")
    for kind, rows in (("preferences", ROWS), ("instructions", [{"conversations": row["chosen"]} for row in ROWS])):
        file = tmp_path / f"{kind}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        tokeniser.run(Corpus(kind, "sums", file, 1.0))
    mixture = {"preferences": {"sums": 1.0}, "instructions": {"sums": 1.0}}
    (tmp_path / "data/tokens/mixture.json").write_text(json.dumps(mixture))
    mask = add_mask_token(tokenizer, tmp_path / "with-mask")
    config = NetworkConfig(
        vocabulary_size=mask + 1, hidden_size=32, num_layers=2, num_heads=2, feed_forward_size=48,
        attention="block_causal", block_tokens=16, mask_token_id=mask, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    network = Transformer(config)
    network.initialise(torch.Generator().manual_seed(0))
    save_checkpoint(tmp_path / "data/models/finetune_diffusion", network, config, tmp_path / "with-mask")
    return tmp_path


def test_a_packed_pair_is_one_row_with_only_the_last_answers_graded(root: Path):
    rows = TokenRows(root / "data/tokens/preferences/train/sums")
    tokenizer = load_tokenizer(root / "tokenizer")
    batch = rows.read(range(rows.num_rows))
    held_out = TokenRows(root / "data/tokens/preferences/validation/sums").num_rows
    assert rows.num_rows + held_out == len(ROWS) and held_out > 0
    for number in (0, 1):
        texts = [
            tokenizer.decode(tokens[graded & (documents == number)], skip_special_tokens=True).strip()
            for tokens, graded, documents in zip(batch.tokens, batch.graded, batch.documents, strict=True)
        ]
        assert set(texts) <= {row[("chosen", "rejected")[number]][-1]["content"] for row in ROWS}
    ends = batch.graded & (batch.tokens == tokenizer.eos_token_id)
    assert ends.any(1).all() and (batch.positions[batch.documents == 1] < 32).all()


def test_each_answer_may_be_as_long_as_a_row_and_a_longer_one_is_counted_by_its_line(root: Path):
    tokenizer = load_tokenizer(root / "tokenizer")
    long = [pair("What is 1?", "plus " * words, "know " * words) for words in (5, 30, 90)]
    (root / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    layout = Layout(64, 16, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    tokeniser = CorpusTokeniser(tokenizer, layout, 1e-9, root / "long", root / "other-journals")
    meta = tokeniser.run(Corpus("preferences", "long", root / "long.jsonl", 1.0))["train"]
    assert (meta["row_tokens"], meta["rows"], meta["too_long"], meta["longest_too_long_line"]) == (128, 2, 1, 3)
    second = TokenRows(root / "long/preferences/train/long").read([1])
    lengths = [int((second.documents == number).sum()) for number in (0, 1)]
    assert max(lengths) <= 64 < sum(lengths) and meta["longest_too_long_tokens"] > 64
    (root / "data/tokens/instructions").rename(root / "data/tokens/zz")
    assert row_tokens(stage(root, "prefer", SECTION)) == 64, "other stages never take a pair's row for their own"


SECTION = {
    "models": ["finetune_diffusion"], "beta": 0.5, "hiding": {"minimum_fraction": 0.2, "maximum_fraction": 0.9},
    "steps": 30, "batch_rows": 8, "learning_rate": 3e-3, "warmup_steps": 1, "log_every_steps": 5, "validate_every_steps": 30,
}  # fmt: skip


def test_the_stage_makes_a_model_that_prefers_the_chosen_answers(root: Path):
    prefer(stage(root, "prefer", SECTION, "finetune_diffusion"))
    with (root / "data/curves/prefer_finetune_diffusion.csv").open() as file:
        wins = [float(point["train/accuracy"]) for point in csv.DictReader(file) if point["train/accuracy"]]
    assert wins[-1] > 0.9
    names = ("finetune_diffusion", "prefer_finetune_diffusion")
    before, after = (load_checkpoint(root / "data/models" / name).network for name in names)
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"prefer needs --instance, one of prefer\.models"):
        prefer(stage(root, "prefer", SECTION, "tune_cap"))


def test_the_stage_exists_only_for_models_that_are_listed(tmp_path: Path):
    (tmp_path / "dvc.yaml").write_text(
        "stages: {prefer: {foreach: '${prefer.models}', do: {cmd: 'go ${item}', deps: [code.py], params: [prefer]}}}"
    )
    (tmp_path / "code.py").write_text("")
    (tmp_path / "params.yaml").write_text("prefer: {models: []}")
    with pytest.raises(ValueError, match="no stage 'prefer@one'"):
        fingerprint(tmp_path, "prefer@one")
    (tmp_path / "params.yaml").write_text("prefer: {models: [one]}")
    assert fingerprint(tmp_path, "prefer@one").key
    listed = {"prefer": {"models": ["finetune_diffusion"]}, "download": {}}
    with pytest.raises(ValueError, match=r"prefer\.models is set, but download\.preferences"):
        check_recipe(listed)


def test_what_was_preferred_is_measured_with_the_settings_of_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr("tasks.evaluate_preferred.main", asked.append)
    params = {"evaluate": {"tasks": ["toy_world"], "batch_rows": 64}, "evaluate_preferred": {"threads": 3}}
    one = Stage(
        "evaluate_preferred", "finetune_diffusion", params, {"threads": 3}, 0, 3, tmp_path, tmp_path, "", {}, Silent()
    )
    evaluate_preferred(one)
    assert (asked[0].instance, asked[0].section) == ("prefer_finetune_diffusion", params["evaluate"])
    assert asked[0].address == "evaluate_preferred@prefer_finetune_diffusion"
    with pytest.raises(ValueError, match="unknown key 'tasks'"):
        evaluate_preferred(replace(one, section={"tasks": []}))
