import json
import os
import random
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from model.text.encoding import is_validation
from model.text.packing import Layout, TokenRows
from model.text.tokenise import Corpus, CorpusTokeniser
from tests.model.text.nonsense import sentences

ROOT = Path(__file__).resolve().parents[3]
PART_BYTES = 4000


def write(path, rows) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def rows_of(kind: str, count: int) -> list[dict]:
    texts = list(sentences(8, 2 * count, 12))
    if kind == "pretrain":
        return [{"text": text} for text in texts[:count]]
    turns = [
        [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
        for q, a in zip(texts[::2], texts[1::2], strict=True)
    ]
    if kind == "preferences":
        return [{"chosen": pair, "rejected": [pair[0], other[1]]} for pair, other in pairwise(turns)]
    return [{"conversations": pair} for pair in turns]


def run(folder, work, corpus, tokenizer, advance=lambda size: None, row_tokens=64, processes=1):
    layout = Layout(row_tokens, 16, len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    return CorpusTokeniser(tokenizer, layout, 0.1, folder, work, processes).run(corpus, advance, PART_BYTES)


def everything(folder) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr("model.text.encoding.read_lines.__defaults__", (0, 1000))


SCRIPT = """
import sys, time
from itertools import pairwise
from pathlib import Path
from model.text import encoding, tokenise
from model.text.tokenizer import load_tokenizer
from tests.model.text.test_tokenise import run
encoding.read_lines.__defaults__ = (0, 1000)
kind, path, folder, work, tokenizer = sys.argv[1:]
done = 0
def advance(size):
    global done
    done += size
    print(done, flush=True)
    time.sleep(0.02)
corpus = tokenise.Corpus(kind, "c", Path(path), 1.0)
run(Path(folder), Path(work), corpus, load_tokenizer(tokenizer), advance, processes=2)
"""


@pytest.mark.parametrize("kind", ["pretrain", "instructions"])
def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(kind, tmp_path, folder, tokenizer):
    write(tmp_path / "c.jsonl", rows_of(kind, 400))
    corpus = Corpus(kind, "c", tmp_path / "c.jsonl", 1.0)
    run(tmp_path / "whole", tmp_path / "work-whole", corpus, tokenizer)
    command = [sys.executable, "-c", SCRIPT, kind, tmp_path / "c.jsonl", tmp_path / "killed", tmp_path / "work", folder]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True, env=environment)
    size = corpus.path.stat().st_size
    for line in process.stdout:
        if int(line) > size * 0.6:
            break
    children = psutil.Process(process.pid).children()
    assert len(children) == 2
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert psutil.wait_procs(children, timeout=30)[1] == []
    process.stdout.close()
    journal = json.loads((tmp_path / "work" / f"{kind}-c.json").read_text())
    assert 0 < journal["offset"] < size
    resumed: list[int] = []
    run(tmp_path / "killed", tmp_path / "work", corpus, tokenizer, resumed.append)
    assert resumed[0] == journal["offset"] and sum(resumed) == size
    assert everything(tmp_path / "killed") == everything(tmp_path / "whole")


def test_tokenising_twice_gives_the_same_bytes(tmp_path, tokenizer):
    write(tmp_path / "c.jsonl", rows_of("pretrain", 100))
    corpus = Corpus("pretrain", "c", tmp_path / "c.jsonl", 1.0)
    for name in ("a", "b"):
        run(tmp_path / name, tmp_path / f"work-{name}", corpus, tokenizer)
    assert everything(tmp_path / "a") == everything(tmp_path / "b")


@pytest.mark.parametrize("kind", ["pretrain", "instructions", "preferences"])
def test_two_processes_write_what_one_does(kind, tmp_path, tokenizer):
    write(tmp_path / "c.jsonl", rows_of(kind, 200))
    corpus = Corpus(kind, "c", tmp_path / "c.jsonl", 1.0)
    metas = [run(tmp_path / f"{n}", tmp_path / f"work-{n}", corpus, tokenizer, processes=n) for n in (1, 2)]
    assert everything(tmp_path / "1") == everything(tmp_path / "2")
    assert metas[0] == metas[1] and metas[0]["train"]["rows"] > 5


def test_a_row_that_cannot_be_read_is_told_as_in_one_process(tmp_path, tokenizer):
    (tmp_path / "c.jsonl").write_text('{"text": "the cat"}\n{"text": \n')
    with pytest.raises(ValueError, match=r"^Expecting value: line 2 column 1"):
        run(tmp_path, tmp_path / "work", Corpus("pretrain", "c", tmp_path / "c.jsonl", 1.0), tokenizer, processes=2)


def test_rows_read_back_as_the_text_of_the_corpus(tmp_path, tokenizer):
    rows = rows_of("pretrain", 150)
    write(tmp_path / "c.jsonl", rows)
    metas = run(tmp_path, tmp_path / "work", Corpus("pretrain", "c", tmp_path / "c.jsonl", 1.0), tokenizer)
    for split, held in (("train", False), ("validation", True)):
        packed = TokenRows(tmp_path / "pretrain" / split / "c")
        batch = packed.read(range(packed.num_rows))
        texts = tokenizer.decode(batch.tokens[batch.documents >= 0]).split("<|endoftext|>")[:-1]
        assert sorted(texts) == sorted(row["text"] for row in rows if is_validation(row, 0.1) == held)
        assert metas[split]["bytes"] == sum(len(text.encode()) for text in texts)


def test_graded_places_read_back_as_the_answers(tmp_path, tokenizer):
    rows = rows_of("instructions", 100)
    write(tmp_path / "c.jsonl", rows)
    metas = run(
        tmp_path, tmp_path / "work", Corpus("instructions", "c", tmp_path / "c.jsonl", 1.0), tokenizer, row_tokens=512
    )
    packed = TokenRows(tmp_path / "instructions/train/c")
    batch = packed.read(range(packed.num_rows))
    answers = [text for text in tokenizer.decode(batch.tokens[batch.graded]).split("<|endoftext|>") if text]
    expected = [row["conversations"][1]["content"] for row in rows if not is_validation(row, 0.1)]
    assert sorted(answers) == sorted(expected)
    assert metas["train"]["bytes"] == sum(len(text.encode()) for text in expected)


def test_what_follows_the_last_answer_is_left_out_and_talk_without_any_is_counted(tmp_path, tokenizer):
    question, answer = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sleeps"}
    write(tmp_path / "c.jsonl", [{"conversations": [question, answer, question]}] * 2 + [{"conversations": [question]}])
    metas = run(tmp_path, tmp_path / "work", Corpus("instructions", "c", tmp_path / "c.jsonl", 1.0), tokenizer)
    assert sum(meta["documents"] for meta in metas.values()) == 2
    assert sum(meta["without_answer"] for meta in metas.values()) == 1
    packed = TokenRows(tmp_path / "instructions/train/c")
    assert tokenizer.decode(packed.read([0]).tokens[0]).count("the cat") == packed.read([0]).documents.max() + 1


def test_the_split_depends_on_the_text_alone_and_keeps_its_fraction():
    rows = [{"text": text} for text in {f"{number} {text}" for number, text in enumerate(sentences(9, 5000, 5))}]
    held = {row["text"] for row in rows if is_validation(row, 0.1)}
    random.Random(0).shuffle(rows)
    assert {row["text"] for row in rows if is_validation(row, 0.1)} == held
    assert 400 < len(held) < 600
    assert held <= {row["text"] for row in rows if is_validation(row, 0.2)}


def test_progress_adds_up_to_the_size_of_the_file(tmp_path, tokenizer):
    write(tmp_path / "c.jsonl", rows_of("pretrain", 50))
    seen: list[int] = []
    run(tmp_path, tmp_path / "work", Corpus("pretrain", "c", tmp_path / "c.jsonl", 1.0), tokenizer, seen.append)
    assert sum(seen) == (tmp_path / "c.jsonl").stat().st_size
