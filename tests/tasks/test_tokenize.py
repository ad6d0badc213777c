import json
from pathlib import Path

import pytest

from model.text.packing import TokenRows
from model.text.tokenizer import load_tokenizer
from model.training.tracker import Tracker
from tasks.stage import Stage
from tasks.tokenize import tokenize
from tests.model.text.nonsense import sentences

SETTINGS = {"vocabulary_size": 300, "row_tokens": 128, "block_tokens": 16, "validation_fraction": 0.1}


def validated(root: Path, pretrain: dict[str, list[str]], talks: dict[str, list[str]]) -> None:
    """data/validated as the stage before leaves it, the corpora weighing 1, 2, ..."""
    corpora = {}
    for kind, named in (("pretrain", pretrain), ("instructions", talks)):
        (root / "data/validated" / kind).mkdir(parents=True)
        for weight, (name, texts) in enumerate(named.items(), start=1):
            rows = [{"text": text} if kind == "pretrain" else {"conversations": talk(text)} for text in texts]
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (root / "data/validated" / kind / f"{name}.jsonl").write_text(lines, encoding="utf-8")
            corpora[f"{kind}/{name}"] = {"kind": kind, "name": name, "weight": weight}
    (root / "data/validated/summary.json").write_text(json.dumps({"passed": True, "corpora": corpora}))


def talk(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text[:20]}, {"role": "assistant", "content": text + " the cat sleeps" * 4}]


def stage(root: Path, **settings) -> Stage:
    (root / ".work").mkdir(exist_ok=True)
    section = SETTINGS | settings
    return Stage("tokenize", None, {}, section, 0, 1, root, root / ".work", "key", tracker=Tracker(), tags={})


@pytest.fixture
def small(tmp_path):
    texts = list(sentences(10, 400, 12))
    validated(tmp_path, {"a": texts[:100], "b": texts[100:200]}, {"c": texts[200:]})
    return tmp_path


def outputs(root: Path) -> dict[str, bytes]:
    folders = (root / "data/tokens", root / "data/metrics")
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_every_corpus_becomes_rows_that_the_saved_tokenizer_reads(small):
    tokenize(stage(small))
    tokens = small / "data/tokens"
    assert json.loads((tokens / "mixture.json").read_text()) == {"pretrain": {"a": 1, "b": 2}, "instructions": {"c": 1}}
    tokenizer = load_tokenizer(tokens / "tokenizer")
    numbers = json.loads((small / "data/metrics/tokenize.json").read_text())
    assert numbers["vocabulary_size"] == len(tokenizer) == 300
    for place in ("pretrain/train/a", "pretrain/validation/b", "instructions/train/c", "instructions/validation/c"):
        rows = TokenRows(tokens / place)
        kind, split, name = place.split("/")
        assert rows.num_rows == numbers[f"{kind}/{name}"][split]["rows"] > 0
    train = TokenRows(tokens / "pretrain/train/a")
    batch = train.read(range(train.num_rows))
    texts = tokenizer.decode(batch.tokens[batch.documents >= 0]).split("<|endoftext|>")
    original = [json.loads(line)["text"] for line in (small / "data/validated/pretrain/a.jsonl").open()]
    assert 80 < len(texts[:-1]) < 100 and set(texts[:-1]) <= set(original)


def test_mlflow_gets_the_tokens_that_are_on_disk_and_a_rate_only_when_all_were_made_now(small, monkeypatch):
    logged = {}
    monkeypatch.setattr(Tracker, "log_metrics", lambda self, metrics, step=0: logged.update(metrics))
    tokenize(stage(small))
    numbers = json.loads((small / "data/metrics/tokenize.json").read_text())
    by_corpus = {
        name: sum(counts[split]["tokens"] for split in counts) for name, counts in numbers.items() if "/" in name
    }
    assert {name: logged[f"data/{name}/tokens"] for name in by_corpus} == by_corpus
    assert logged["data/tokens"] == sum(by_corpus.values()) > 0
    assert logged.pop("data/tokens_per_second") > 0
    (small / ".work/journals").mkdir(exist_ok=True)
    journal = {"offset": 0, "lines": 0, "positions": {}}  # as a kill leaves it
    (small / ".work/journals/pretrain-a.json").write_text(json.dumps(journal))
    tokenize(stage(small))
    assert logged["data/vocabulary_size"] == 300 and "data/tokens_per_second" not in logged


def test_a_second_run_gives_the_same_bytes(small):
    tokenize(stage(small))
    first = outputs(small)
    (small / ".work/journals/pretrain-a.json").unlink(missing_ok=True)
    tokenize(stage(small))
    assert outputs(small) == first


def test_a_tokenizer_folder_is_taken_as_it_is(small):
    tokenize(stage(small))
    own = small / "own"
    (small / "data/tokens/tokenizer").rename(own)
    tokenize(stage(small, tokenizer=str(own), vocabulary_size=999))
    assert (small / "data/tokens/tokenizer/tokenizer.json").read_bytes() == (own / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"row_tokens": 100}, "row_tokens is 100 and tokenize.block_tokens 16"),
        ({"vocabulary_size": 200}, "vocabulary_size is 200; it must be at least 262"),
        ({"validation_fraction": 0.0}, "validation_fraction is 0.0; it must lie between 0 and 1"),
        ({"validation_fraction": 1e-9}, "holds out no row of pretrain: raise it"),
        (
            {"row_tokens": 16},
            r"(\d+) of \1 conversations of instructions/c are longer than tokenize.row_tokens 16, more",
        ),
        ({"maximum_too_long_fraction": 1.0}, r"maximum_too_long_fraction is 1.0; it must lie in \[0, 1\)"),
        ({"row_token": 16}, "unknown option 'row_token'.*Did you mean 'row_tokens'"),
        ({"tokenizer": "no/such/folder/at all"}, "cannot be loaded"),
    ],
)
def test_settings_that_cannot_work_are_refused_and_nothing_is_published(small, settings, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=message):
        tokenize(stage(small, **settings))
    assert not (small / "data/tokens").exists()


def test_without_validated_rows_it_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match="run the stage validate first"):
        tokenize(stage(tmp_path))
    validated(tmp_path, {"a": []}, {})
    with pytest.raises(ValueError, match="no validated rows in pretrain/a"):
        tokenize(stage(tmp_path))


def test_answers_longer_than_the_row_are_refused_by_file_and_line_or_left_out_as_far_as_was_allowed(small):
    file = small / "data/validated/instructions/c.jsonl"
    lines = file.read_text().splitlines()
    for place, times in ((3, 20), (150, 40)):
        row = json.loads(lines[place])
        row["conversations"][-1]["content"] *= times
        lines[place] = json.dumps(row)
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"2 of \d+ conversations.*maximum_too_long_fraction 0\.005.*line 151 of data"):
        tokenize(stage(small, maximum_too_long_fraction=0.005))
    tokenize(stage(small, maximum_too_long_fraction=0.01))
    numbers = json.loads((small / "data/metrics/tokenize.json").read_text())["instructions/c"]
    assert sum(numbers[split]["too_long"] for split in numbers) == 2
    assert 151 in {numbers[split]["longest_too_long_line"] for split in numbers}
