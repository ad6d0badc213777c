"""Benchmarks from files of one's own, and what is said when they do not fit."""

import gzip
import json
import sys
from types import SimpleNamespace

import pytest
from table_decoder import TableDecoder

from model.benchmarks import judge as judge_module
from model.benchmarks.harness import UnmaskLM, run_tasks
from model.benchmarks.judge import open_judge
from model.benchmarks.local import LocalBenchmark, final_of, local_task
from model.benchmarks.suite import load_suite
from model.benchmarks.task_forms import read_rows


def write(path, rows):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def closest(word):
    """A likelihood that prefers continuations of `word`'s length."""
    return lambda pairs: [(-abs(len(continuation) - word), False) for _, continuation in pairs]


CHOICE_ROWS = {
    "labelled": (
        {
            "q": {"stem": "s", "choices": [{"text": "a", "label": "A"}, {"text": "b b b b b b", "label": "B"}]},
            "key": "B",
        },
        {"question": "q.stem", "choices": "q.choices", "answer": "key"},
    ),
    "columns": ({"question": "s", "A": "a", "B": "b b b b b b", "answer": "B"}, {"choices": "A,B"}),
    "index": (
        {"question": "s", "endings": ["a", "b b b b b b"], "label": 1},
        {"choices": "endings", "answer": "label"},
    ),
    "index in text": (
        {"question": "s", "endings": ["a", "b b b b b b"], "label": "1"},
        {"choices": "endings", "answer": "label"},
    ),
    "text": (
        {"question": "s", "endings": ["a", "b b b b b b"], "label": "b b b b b b"},
        {"choices": "endings", "answer": "label"},
    ),
}


@pytest.mark.parametrize("shape", CHOICE_ROWS)
def test_multiple_choice_rows_of_every_shape_are_decided_by_likelihood(tmp_path, tokenizer, shape):
    row, spec = CHOICE_ROWS[shape]
    benchmark = LocalBenchmark.from_dict("quiz", {"path": write(tmp_path / "q.jsonl.gz", [row]), **spec})
    task = local_task("quiz", benchmark, benchmark.rows(tmp_path, "test"), 16, None)
    right, wrong = (run_tasks(UnmaskLM(tokenizer, likelihood=closest(n)), [task])[0] for n in (99, 0))
    assert (right.right, right.answer, wrong.right, wrong.answer) == (1.0, "b b b b b b", 0.0, "a")
    assert right.question == "s" and right.decoded is None


def test_generated_answers_are_compared_by_what_follows_the_mark():
    assert final_of("so 3 + 4 = 7\n#### 1,234.", "#### ") == "1234"
    assert final_of("first #### 3\nthen ####  $4\nrest", "#### ") == "4"
    assert final_of("it is 12 or rather 13.5.", "#### ") == "13.5"
    assert final_of("no number", "#### ") == ""


def test_a_missing_empty_or_broken_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="no benchmark file"):
        read_rows(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="is empty"):
        read_rows(tmp_path / "empty.jsonl")
    (tmp_path / "cut.jsonl").write_text('{"a": 1}\n{"a": ')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_rows(tmp_path / "cut.jsonl")


def test_wrong_field_names_are_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="unknown key 'qestion'"):
        LocalBenchmark.from_dict("quiz", {"path": "x", "qestion": "y"})
    with pytest.raises(ValueError, match="needs `path`"):
        LocalBenchmark.from_dict("quiz", {})
    path = write(tmp_path / "q.jsonl", [{"ask": "s", "answer": "#### 1"}])
    with pytest.raises(ValueError, match="no field 'question'; this one has ask, answer"):
        local_task("quiz", LocalBenchmark(path), read_rows(tmp_path / "q.jsonl"), 16, None)


def quiz(tmp_path, rows=10, **spec):
    """Options of load_suite for a benchmark of numbered questions, by its file's name in the benchmarks' folder."""
    write(
        tmp_path / "quiz.jsonl.gz", [{"question": f"{number}?", "answer": f"#### {number}"} for number in range(rows)]
    )
    local = {"quiz": {"path": "quiz.jsonl.gz", **spec}}
    return {"folder": tmp_path, "judge": lambda row, text: True, "max_new_tokens": 16, "local": local}


def asked(suite):
    """The questions of a suite's one task."""
    (task,) = suite.tasks
    return [task.doc_to_text(document) for document in task.eval_docs]


def test_rows_set_apart_for_validation_are_never_tested(tmp_path):
    options = quiz(tmp_path, validation_rows=3)
    assert asked(load_suite(["quiz"], "test", **options)) == [f"{number}?" for number in range(7)]
    assert asked(load_suite(["quiz"], "validation", **options)) == ["7?", "8?", "9?"]
    assert asked(load_suite(["quiz"], "test", limit=2, **options)) == ["0?", "1?"]
    assert asked(load_suite(["quiz"], "validation", limit=2, **options)) == ["7?", "8?"]
    with pytest.raises(ValueError, match="has 3 rows: validation_rows 3 leaves none to test"):
        load_suite(["quiz"], "test", **quiz(tmp_path, rows=3, validation_rows=3))
    with pytest.raises(ValueError, match=r"quiz\.validation_rows is -1"):
        load_suite(["quiz"], "test", **quiz(tmp_path, validation_rows=-1))


@pytest.mark.parametrize("described", [{"path": "../quiz.jsonl"}, {"files": {"test": "/elsewhere/quiz.jsonl"}}])
def test_a_file_that_dvc_would_not_see_change_is_refused(tmp_path, described):
    options = quiz(tmp_path) | {"local": {"quiz": described}}
    with pytest.raises(ValueError, match=r"does not lie in .* Name it under download.benchmarks.paths"):
        load_suite(["quiz"], "test", **options)


def test_public_benchmarks_have_no_validation_split_unless_rows_are_set_apart(tmp_path):
    spec = {
        "quiz": {
            "path": write(tmp_path / "q.jsonl", [{"question": "s", "answer": "#### 1"}]),
            "category": "mathematics",
        }
    }
    options = {"folder": tmp_path, "judge": lambda row, text: True, "max_new_tokens": 16, "local": spec}
    suite = load_suite(["quiz"], "test", **options)
    assert suite.categories == {"quiz": "mathematics"}
    with pytest.raises(ValueError, match="no validation split"):
        load_suite(["quiz"], "validation", **options)


ADD = {"text": "Add them.", "code": "def add(a, b): return a + b", "imports": [], "checks": ["assert add(1, 2) == 3"]}
PROGRAMS = {
    "def add(a, b):\n    return a + b": 1.0,
    "Here it is:\n```python\ndef add(a, b): return a + b\n```\nDone.": 1.0,
    "```\ndef add(a, b): return a + b": 1.0,  # the answer ran out of tokens
    "def add(a, b): return a - b": 0.0,
    "import sys; sys.exit(0)": 0.0,
    "def add(a, b): exit()": 0.0,
    "": 0.0,
}


@pytest.mark.skipif(sys.platform != "linux", reason="programs are confined on Linux only")
def test_programs_are_right_when_their_tests_run_to_the_end_in_the_sandbox(tmp_path, tokenizer):
    write(tmp_path / "sums.jsonl", [ADD])
    described = {"path": "sums.jsonl", "question": "{text}\n{checks}", "answer": "code", "tests": "imports,checks"}
    with open_judge() as judge:
        options = {"folder": tmp_path, "judge": judge, "max_new_tokens": 64, "local": {"sums": described}}
        suite = load_suite(["sums"], "test", **options)
        question = "Add them.\nassert add(1, 2) == 3"
        for program, right in PROGRAMS.items():
            (sample,) = run_tasks(UnmaskLM(tokenizer, TableDecoder(tokenizer, {question: program})), suite.tasks)
            assert (sample.question, sample.right) == (question, right), program


def test_a_program_written_at_several_operating_points_runs_once(monkeypatch):
    ran = []

    class Counted:
        def __enter__(self):
            return self

        def __exit__(self, *error) -> None: ...

        def run(self, source):
            ran.append(source)
            return SimpleNamespace(stdout="3\n", succeeded=True)

    monkeypatch.setattr(judge_module, "Sandbox", Counted)
    row = {"program_check": [["f([1, 2])", "3"]]}
    with open_judge() as judge:
        assert [judge(row, text) for text in ("#### sum(xs)", "So.\n#### sum(xs)", "#### max(xs)")] == [True] * 3
    assert len(ran) == 2


@pytest.mark.slow  # the harness reads its 14,000 task descriptions
def test_a_task_the_harness_knows_runs_on_a_file_of_ones_own(tmp_path, tokenizer):
    path = write(tmp_path / "gsm8k.jsonl", [{"question": "1 + 1?", "answer": "It is 2.\n#### 2"}])
    options = {"folder": tmp_path, "judge": lambda row, text: True, "max_new_tokens": 16, "num_fewshot": 0}
    suite = load_suite(["gsm8k"], "test", local={"gsm8k": {"files": {"test": path, "train": path}}}, **options)
    question = suite.tasks[0].doc_to_text(suite.tasks[0].eval_docs[0])
    for text, right in (("It is 2.\n#### 2", 1.0), ("#### 3", 0.0)):
        (sample,) = run_tasks(UnmaskLM(tokenizer, TableDecoder(tokenizer, {question: text})), suite.tasks)
        assert sample.right == right
    with pytest.raises(ValueError, match="knows no task 'gsm8x'; similar: gsm8k"):
        load_suite(["gsm8x"], "test", **options)
