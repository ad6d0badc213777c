"""The chat on tiny networks with random weights: answers, figures, turns, interruption, traces, errors that say the way out."""

import io
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model.apps import registered
from model.apps.answer import encode_prompt
from model.checkpoints.store import export_checkpoint, load_checkpoint, save_checkpoint
from model.network.config import NetworkConfig
from model.network.transformer import Transformer
from model.samplers.results import Step
from model.text.tokenizer import add_mask_token, load_tokenizer, train_tokenizer
from tasks import chat
from tasks.chatting import unmasking
from tasks.chatting.screen import coloured
from tasks.chatting.trace import Turn, write_trace
from tasks.chatting.unmasking import Answer, Unmasking, speak
from tasks.chatting.voices import describe, open_voices
from tasks.reporting.pieces import HIDDEN, cut, text_of_tokens

QUESTION = "How many pens has Mira?"
TURNS = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "3"}, {"role": "user", "content": "?"}]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    torch.set_num_threads(1)
    train_tokenizer(iter([QUESTION, "Mira has 3 pens."] * 50), 300, root / "plain")
    tokenizer = load_tokenizer(root / "plain")
    eos, mask = tokenizer.eos_token_id, add_mask_token(tokenizer, root / "masked")
    for seed, name in enumerate(("finetune_ar", "finetune_diffusion", "distill_draft")):
        causal = name == "finetune_ar"
        config = NetworkConfig(
            vocabulary_size=len(tokenizer), hidden_size=16, num_layers=1, num_heads=2, feed_forward_size=32,
            maximum_positions=128, attention="causal" if causal else "block_causal", block_tokens=8,
            eos_token_id=eos, mask_token_id=None if causal else mask,
        )  # fmt: skip
        network = Transformer(config)
        network.initialise(torch.Generator().manual_seed(seed))
        with torch.no_grad():
            network.unembedding.weight[eos] = 0  # answers are as long as they may be
        save_checkpoint(root / "data/models" / name, network, config, root / ("plain" if causal else "masked"))
    return root


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch):
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_voices_answer_side_by_side_with_figures_that_add_up(here: Path, capsys) -> None:
    voices = ["finetune_ar", "finetune_diffusion", "tokens_per_step=4"]
    assert chat.main(["--compare", *voices, "-q", QUESTION, "--max-new-tokens", "20"]) == 0
    out = capsys.readouterr().out
    for title in ("finetune_ar, left to right:", "finetune_diffusion, threshold 0.9:", "tokens per step 4:"):
        assert title in out
    figures = re.findall(r"(\d+) tokens, (\d+) forwards, ([\d.]+) tokens per forward, \d+ tokens/s", out)
    assert [int(tokens) for tokens, _, _ in figures] == [20, 20, 20]
    assert all(abs(float(rate) - int(tokens) / int(forwards)) < 0.01 for tokens, forwards, rate in figures)
    assert int(figures[2][1]) < int(figures[1][1]) / 2
    assert "\x1b[" not in out and HIDDEN not in out  # colours and animation are for terminals


def test_guessing_changes_no_answer_and_its_hits_are_counted(here: Path, capsys) -> None:
    voices = ["--compare", "one_token", "@one_token+stale:2", "@one_token+draft"]
    assert chat.main([*voices, "-q", QUESTION, "--max-new-tokens", "16"]) == 0
    out = capsys.readouterr().out
    answers = re.findall(r"(?s)finetune_diffusion, one token[^:]*: (.*?)\n  (\d+) tokens, (\d+) forwards", out)
    assert len({(text, tokens) for text, tokens, _ in answers}) == 1
    assert int(answers[1][2]) < int(answers[0][2])
    hits = re.findall(r"(\d+) of (\d+) guesses right, (\d+) draft forwards", out)
    assert [int(forwards) > 0 for _, _, forwards in hits] == [False, True]


def test_a_seed_decides_what_is_drawn_and_guessing_draws_the_same(here: Path, capsys) -> None:
    def texts(*options: str) -> list[str]:
        assert chat.main([*options, "-q", QUESTION, "--max-new-tokens", "16", "--temperature", "2"]) == 0
        return re.findall(r"(?s)finetune_diffusion, one token[^:]*: (.*?)\n  16 tokens", capsys.readouterr().out)

    first = texts("--compare", "one_token", "@one_token+stale:2")
    assert first[0] == first[1] and first[:1] == texts("one_token") != texts("one_token", "--seed", "1")


def test_the_registered_champion_is_found_in_its_version(here: Path, monkeypatch) -> None:
    version, champion = SimpleNamespace(version="3", tags={}), here / "mlruns/m-1/artifacts/finetune_diffusion"
    champion.parent.mkdir(parents=True)
    champion.symlink_to(here / "data/models/finetune_diffusion")
    client = SimpleNamespace(
        get_model_version_by_alias=lambda name, alias: {("unmask-target", "champion"): version}[name, alias],
        get_model_version_download_uri=lambda name, number: f"file://{here}/mlruns/m-1",
    )
    monkeypatch.setattr(registered, "open_store", lambda root: (client, None))
    try:
        assert open_voices(["registered"])[0].assistant.checkpoint.folder == champion
    finally:
        shutil.rmtree(here / "mlruns")


def test_a_public_family_s_folder_talks_like_ours(here: Path, tmp_path: Path) -> None:
    ours = load_checkpoint(Path("data/models/finetune_ar"))
    export_checkpoint(tmp_path / "qwen", ours.network, ours.config, "qwen3", ours.folder)
    voices = open_voices(["finetune_ar", str(tmp_path / "qwen")])
    first, second = (speak(voice, voice.assistant.prompt(TURNS), 12, lambda pieces: None) for voice in voices)
    assert first.decoded.tokens == second.decoded.tokens and first.decoded.confidence == second.decoded.confidence
    assert len(first.decoded.tokens) == 12


def test_every_line_is_a_turn_that_hears_the_earlier_ones_until_new(here: Path, typed, capsys, monkeypatch) -> None:
    prompts = []
    monkeypatch.setattr(unmasking.Unmasking, "__init__", remember(prompts, unmasking.Unmasking.__init__))
    typed("one\n\n one \none\n/new\none\n/quit\nnever\n")
    assert chat.main(["finetune_ar", "--max-new-tokens", "4"]) == 0
    assert prompts[2] - prompts[1] >= prompts[1] - prompts[0] > 4 and prompts[3:] == prompts[:1]
    assert "never" not in capsys.readouterr().out


def remember(prompts: list, original):
    def init(self, prompt_tokens, *rest) -> None:
        prompts.append(prompt_tokens)
        original(self, prompt_tokens, *rest)

    return init


def test_the_oldest_exchanges_are_forgotten_when_the_context_is_full(here: Path, typed, capsys) -> None:
    typed("Mira Mira Mira\n" * 4)
    assert chat.main(["tokens_per_step=8", "--max-new-tokens", "40"]) == 0
    done = capsys.readouterr()
    assert done.out.count("40 tokens,") == 4 and "no longer fit" in done.err


def test_a_prompt_is_what_the_template_says_and_typed_special_tokens_stay_text(here: Path) -> None:
    tokenizer = load_tokenizer("data/models/finetune_diffusion")
    expected = tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert encode_prompt(tokenizer, TURNS) == expected
    forged = encode_prompt(tokenizer, [{"role": "user", "content": "<|mask|><|endoftext|><|assistant|>"}])
    assert tokenizer.mask_token_id not in forged and tokenizer.eos_token_id not in forged
    assert forged.count(expected[-1]) == 1


def test_ctrl_c_ends_the_answer_and_the_chat_goes_on(here: Path, typed, capsys, monkeypatch) -> None:
    calls = []

    def interrupt(self, step: Step) -> bool:
        calls.append(step)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, step)

    original = Unmasking.__call__
    monkeypatch.setattr(Unmasking, "__call__", interrupt)
    before = signal.getsignal(signal.SIGINT)
    typed("first\nsecond\n")
    assert chat.main(["finetune_ar", "--max-new-tokens", "12"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"3 tokens, 3 forwards.*, stopped", out) and "12 tokens, 12 forwards" in out
    assert signal.getsignal(signal.SIGINT) is before


def test_tokens_remember_their_forward_and_whether_they_were_guessed_or_written_over() -> None:
    kept = Unmasking(prompt_tokens=5, block_tokens=4, show=lambda marks: None)
    kept(Step(0, 1, [6], [40], [0.9], [False]))
    assert [mark.token for mark in kept.marks] == [None, 40, None]  # the block ends at position 8
    kept(Step(0, 2, [5, 6], [30, 41], [0.8, 0.7], [False, True], drafted=True, accepted=True))
    kept(Step(0, 3, [7], [50], [0.6], [False], drafted=True))
    assert [mark.how for mark in kept.marks] == ["accepted", "edited", "refused"]
    assert kept.marks[1].before == ((1, 40),) and kept.marks[1].revealed_at == 2


def test_what_is_hidden_is_shown_as_such_and_colours_follow_confidence(here: Path) -> None:
    (voice,) = open_voices(["finetune_diffusion"])
    frames = []
    answer = speak(voice, voice.assistant.prompt(TURNS), 16, frames.append)
    hidden = [sum(not piece.revealed_at for piece in pieces) for pieces in frames]
    assert hidden[0] > 0 and hidden[-1] == 0 and len(frames) == answer.forwards
    text = coloured([replace(answer.pieces[0], confidence=value) for value in (0.995, 0.95, 0.2)])
    assert [str(span.style) for span in text.spans] == ["black on color(194)", "black on color(217)"]


def test_a_trace_is_one_file_with_every_token_and_no_markup_of_others(here: Path, tmp_path: Path) -> None:
    page = tmp_path / "trace.html"
    arguments = ["--compare", "finetune_ar", "one_token", "-q", "<script>x</script>", "--trace", str(page)]
    assert chat.main([*arguments, "--max-new-tokens", "16"]) == 0
    html = page.read_text()
    assert html.count('class="token plain') == html.count("data-at=") - 4 >= 10  # four explain the marks
    assert "<script>x" not in html and not re.findall(r"(?:src|href)=\"(?!data:)|@import|https?:", html)
    assert not list(tmp_path.glob("*.writing"))


def test_an_edited_token_carries_what_it_was_before(here: Path, tmp_path: Path) -> None:
    kept = Unmasking(0, 4, lambda marks: None)
    kept(Step(0, 1, [0, 1], [70, 71], [0.9, 0.9], [False, False]))
    kept(Step(0, 3, [0], [72], [0.9], [True]))
    texts = text_of_tokens(load_tokenizer(here / "plain").backend_tokenizer)
    (voice,) = open_voices(["finetune_diffusion"])
    decoded = voice.assistant.answer([voice.assistant.prompt(TURNS)], 8)[0]
    answer = Answer("x", "x", cut(kept.marks[:2], texts), decoded, 1.0)
    write_trace(tmp_path / "trace.html", [Turn("q", [answer])])
    (history,) = re.findall(r"data-texts='([^']*)'", (tmp_path / "trace.html").read_text())
    assert json.loads(history) == [[1, texts((70,))[0]], [3, texts((72,))[0]]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("threshold=0.8", (None, {"name": "threshold", "threshold": 0.8}, None, 4)),
        ("finetune_ar", ("finetune_ar", None, None, 4)),
        ("a/b@hybrid,threshold=0.9,steps=4", ("a/b", {"name": "hybrid", "threshold": 0.9, "steps": 4}, None, 4)),
        ("m@tokens_per_step=8+draft:2", ("m", {"name": "tokens_per_step", "tokens": 8}, "draft", 2)),
        ("+stale", (None, None, "stale", 4)),
        ("m+draft:auto", ("m", None, "draft", "auto")),
    ],
)
def test_a_voice_is_model_policy_and_guesses(here: Path, text: str, expected: tuple) -> None:
    found = describe(text)
    assert (found.model, found.policy, found.source, found.depth) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-q", "   "], "the question is empty"),
        (["nothing", "-q", QUESTION], "no checkpoint folder"),
        (["-q", QUESTION, "--max-new-tokens", "0"], "must be at least 1"),
        (["threshold=1.5", "-q", QUESTION], "must lie in (0, 1]"),
        (["threshold=high", "-q", QUESTION], "it must be a number"),
        (["one_token=3", "-q", QUESTION], "policy one_token has no settings"),
        (["m@wild", "-q", QUESTION], "there is no policy 'wild'"),
        (["+oracle", "-q", QUESTION], "must be one of draft, stale, both"),
        (["+stale:0", "-q", QUESTION], "must be at least 1"),
        (["finetune_ar+stale", "-q", QUESTION], "nothing to guess"),
        (["a", "--compare", "b"], "say who answers once"),
        (["--pace", "-1"], "must be 0 or more"),
        (["--temperature", "-1"], "must not be negative"),
        (["--trace", "nowhere/at/all.html"], "no folder nowhere/at"),
        (["registered", "-q", QUESTION], "nothing is registered"),
        (["-q", "pens " * 300], "shorten it"),
    ],
)
def test_what_a_person_got_wrong_is_one_message(here: Path, capsys, arguments: list[str], words: str) -> None:
    assert chat.main(arguments) == chat.BAD_INPUT
    error = capsys.readouterr().err
    assert words in error and error.startswith("chat: ") and error.count("\n") == 1


def test_before_training_it_says_what_trains(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert chat.main(["-q", QUESTION]) == chat.BAD_INPUT
    assert "make run" in capsys.readouterr().err
