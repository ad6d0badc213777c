"""The question command on tiny networks with random weights: answers, figures, order, and errors that say the way out."""

import io
import re
from pathlib import Path

import pytest
import torch

from model.checkpoints.store import save_checkpoint
from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.text.tokenizer import add_mask_token, load_tokenizer, train_tokenizer
from tasks import ask

QUESTION = "How many pens has Mira?"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    torch.set_num_threads(1)
    train_tokenizer(iter([QUESTION, "Mira has 3 pens."] * 50), 300, root / "plain")
    tokenizer = load_tokenizer(root / "plain")
    eos, mask = tokenizer.eos_token_id, add_mask_token(tokenizer, root / "masked")
    for seed, name in enumerate(("finetune_ar", "finetune_diffusion", "tune_cap")):
        causal = name == "finetune_ar"
        config = NetworkConfig(
            vocabulary_size=len(tokenizer), hidden_size=16, num_layers=1, num_heads=2, feed_forward_size=32,
            maximum_positions=256, attention="causal" if causal else "block_causal",
            eos_token_id=eos, mask_token_id=None if causal else mask,
        )  # fmt: skip
        network = Transformer(config)
        network.initialise(torch.Generator().manual_seed(seed))
        save_checkpoint(root / "data/models" / name, network, config, root / ("plain" if causal else "masked"))
    return root


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def test_all_fine_tuned_models_answer_with_figures_and_the_order_of_diffusion_tokens(here: Path, capsys) -> None:
    assert ask.main([QUESTION, "--max-new-tokens", "20"]) == 0
    out = capsys.readouterr().out
    for heading in ("finetune_ar (left to right)", "finetune_diffusion (threshold 0.9)", "tune_cap (threshold 0.9)"):
        assert heading in out
    figures = re.findall(r"(\d+) tokens, (\d+) forwards, ([\d.]+) tokens per forward, [\d.]+ s", out)
    assert len(figures) == 3
    assert all(
        float(rate) == pytest.approx(int(tokens) / int(forwards), abs=0.01) for tokens, forwards, rate in figures
    )
    assert out.count("token·forward") == 2  # the autoregressive model's order is no news
    assert "\x1b[" not in out  # colours are for terminals


def test_eight_tokens_a_step_take_fewer_forwards_than_one(here: Path, capsys) -> None:
    model = ["--models", "data/models/finetune_diffusion", "--max-new-tokens", "32"]
    counts = []
    for policy in (["one_token"], ["tokens_per_step", "--tokens", "8"]):
        assert ask.main([QUESTION, *model, "--policy", *policy]) == 0
        counts.append(int(re.search(r"(\d+) forwards", capsys.readouterr().out)[1]))
    assert counts[1] < counts[0] / 4


def test_a_question_of_several_lines_comes_from_stdin(here: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("First line.\nSecond line?\n"))
    assert ask.main(["-", "--models", "data/models/finetune_ar", "--max-new-tokens", "4"]) == 0
    assert "First line.\nSecond line?" in capsys.readouterr().out


def test_a_terminal_gets_the_answers_side_by_side_and_coloured(here: Path) -> None:
    from rich.console import Console

    policy = {"name": "threshold", "threshold": 0.9}
    answers = [ask.ask(Path("data/models") / name, QUESTION, policy, 20) for name in ("finetune_ar", "tune_cap")]
    screen = io.StringIO()
    ask.show(Console(file=screen, force_terminal=True, width=100, color_system="256"), QUESTION, answers, policy)
    assert "\x1b[30;48;5;" in screen.getvalue()
    assert any("finetune_ar" in line and "tune_cap" in line for line in screen.getvalue().splitlines())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["   "], "the question is empty"),
        ([QUESTION, "--models", "data/models/nothing"], "is not a checkpoint"),
        ([QUESTION, "--max-new-tokens", "0"], "must be at least 1"),
        ([QUESTION, "--threshold", "1.5"], "must lie in (0, 1]"),
        ([QUESTION, "--policy", "one_token", "--threshold", "0.5"], "means nothing to --policy one_token"),
        (["pens " * 300], "shorten it"),
    ],
)
def test_what_a_person_got_wrong_is_one_message(here: Path, capsys, arguments: list[str], words: str) -> None:
    assert ask.main(arguments) == ask.BAD_INPUT
    error = capsys.readouterr().err
    assert words in error and error.startswith("ask: ") and "Traceback" not in error


def test_before_training_it_says_what_trains(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ask.main([QUESTION]) == ask.BAD_INPUT
    error = capsys.readouterr().err
    assert "finetune_ar and " in error and "make run" in error
