"""The stage `validate`: no row is lost without a trace, too much that is wrong stops it, and memory stays flat."""

import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from model.corpora.expectations import Suite
from model.corpora.facts import measure
from model.corpora.manifest import describe_file, sha256_of, write_manifest
from tasks.validate import validate

ROOT = Path(__file__).resolve().parents[2]
GOOD = ["It has rained for days.", "The river is very high.", "Nobody crosses it now.", "The bridge is too old."]


def publisher(root):
    """As Stage.publish: a finished file or folder takes the place of what stood there."""

    def move(made, out):
        target = root / out
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            shutil.rmtree(target)
        made.replace(target)
        return target

    return move


def run(root, **section):
    """Validate what `raw` put below `root`, with limits of 100 characters unless told otherwise."""
    shutil.copytree(ROOT / "data/suites", root / "data/suites", dirs_exist_ok=True)
    work = root / ".work/validate/key"
    work.mkdir(parents=True, exist_ok=True)
    logged = {}
    tracker = SimpleNamespace(log_artifact=lambda path, folder: None, log_metrics=logged.update)
    section = {"maximum_characters": 100, **section}
    validate(SimpleNamespace(root=root, work=work, section=section, tracker=tracker, publish=publisher(root)))
    return logged


def raw(root, kind="pretrain", name="books", options=None, **files):
    """Put files (underscores in names are dots) of one more corpus into data/raw and its manifest."""
    place = root / "data/raw" / ("benchmarks" if kind == "benchmarks" else f"{kind}/{name}")
    place.mkdir(parents=True, exist_ok=True)
    sources = []
    for file, data in files.items():
        path = place / file.replace("_", ".")
        path.write_bytes(data)
        record = describe_file(path, root / "data/raw", sha256_of)
        sources.append({"name": path.name, "identity": "-", "files": [record], "details": {}})
    manifest = root / "data/raw/manifest.json"
    before = json.loads(manifest.read_text())["corpora"] if manifest.exists() else []
    entry = {"kind": kind, "name": name, "source": "files", "weight": 1.0, "options": options or {}, "sources": sources}
    write_manifest(root / "data/raw", [*before, entry])


def lines(*rows):
    return b"".join(json.dumps(row if isinstance(row, dict) else {"text": row}).encode() + b"\n" for row in rows)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def outputs(root):
    folders = ("validated", "quarantine", "reports", "metrics")
    return {p.relative_to(root): p.read_bytes() for f in folders for p in (root / "data" / f).rglob("*") if p.is_file()}


def test_every_row_is_kept_or_stands_in_quarantine_with_file_line_and_reason(tmp_path):
    data = lines(*GOOD, "", "x" * 101, "a\x00b", 7, GOOD[0]).replace(b'"7"', b"7")
    data += b'{"text": "\xff"}\n{"text"\n[1]\n{"body": "x"}\n\n'
    raw(tmp_path, a_jsonl=data, b_txt=b"\n\n".join(f"Paragraph number {n}.".encode() for n in range(9)))
    logged = run(tmp_path, maximum_bad_fraction=1.0)
    kept = read(tmp_path / "data/validated/pretrain/books.jsonl")
    assert [row["text"] for row in kept] == [*GOOD, *(f"Paragraph number {n}." for n in range(9))]
    refused = read(tmp_path / "data/quarantine/pretrain/books.jsonl")
    reasons = "empty too_long control_characters not_text duplicate invalid_utf8 unparsable not_an_object missing_field"
    assert [(row["line"], row["reason"]) for row in refused] == list(enumerate(reasons.split(), start=5))
    assert {row["file"] for row in refused} == {"data/raw/pretrain/books/a.jsonl"}
    assert all(len(row["cut"]) <= 200 for row in refused)
    counts = json.loads((tmp_path / "data/validated/summary.json").read_text())["corpora"]["pretrain/books"]
    assert (counts["rows"], counts["kept"], sum(counts["quarantined"].values()), counts["blank_lines"]) == (
        22,
        13,
        9,
        1,
    )
    for prefix in ("data/", "data/pretrain/books/"):
        shown = {
            name: logged[f"{prefix}{name}"] for name in ("rows", "kept_rows", "refused_fraction", "duplicate_fraction")
        }
        assert shown == {"rows": 22, "kept_rows": 13, "refused_fraction": 8 / 22, "duplicate_fraction": 1 / 22}


def test_a_5_megabyte_line_and_a_truncated_last_line_cost_one_row_each(tmp_path):
    data = lines("The first row is here.") + lines("x" * 5_000_000) + lines(*GOOD)[:-4]
    raw(tmp_path, a_jsonl=data)
    run(tmp_path, maximum_bad_fraction=1.0, maximum_line_bytes=1 << 20)
    kept = read(tmp_path / "data/validated/pretrain/books.jsonl")
    assert [row["text"] for row in kept] == ["The first row is here.", *GOOD[:-1]]
    refused = read(tmp_path / "data/quarantine/pretrain/books.jsonl")
    assert [(row["line"], row["reason"]) for row in refused] == [(2, "line_too_long"), (6, "unparsable")]


def test_conversations_become_canonical_and_name_their_faults(tmp_path):
    def talk(*roles):
        return {"turns": [{"from": role, "text": f"{role} {number}"} for number, role in enumerate(roles)]}

    options = {
        "conversations_field": "turns",
        "role_field": "from",
        "content_field": "text",
        "roles": {"human": "user", "gpt": "assistant"},
    }
    rows = [talk("human", "gpt"), talk("system", "human", "gpt"), talk("gpt", "human"), talk("human", "human", "gpt")]
    raw(tmp_path, "instructions", "chat", options, a_jsonl=lines(*rows))
    run(tmp_path, maximum_bad_fraction=0.5)
    kept = read(tmp_path / "data/validated/instructions/chat.jsonl")
    assert kept[0] == {
        "conversations": [{"role": "user", "content": "human 0"}, {"role": "assistant", "content": "gpt 1"}]
    }
    reasons = [row["reason"] for row in read(tmp_path / "data/quarantine/instructions/chat.jsonl")]
    assert len(kept) == 2 and reasons == ["first_turn_not_user", "roles_do_not_alternate"]


def test_too_many_bad_rows_stop_the_stage_and_the_evidence_is_there_but_no_rows(tmp_path):
    raw(tmp_path, a_jsonl=lines(*GOOD, "", "", "x" * 101))
    with pytest.raises(ValueError) as stopped:
        run(tmp_path, maximum_bad_fraction=0.4)
    message = str(stopped.value)
    assert "3 of 7 rows are bad (42.86%)" in message and "maximum_bad_fraction is 0.4" in message
    assert "2 x empty, first at data/raw/pretrain/books/a.jsonl:5" in message
    assert "data/quarantine/pretrain/books.jsonl" in message
    assert len(read(tmp_path / "data/quarantine/pretrain/books.jsonl")) == 3
    assert json.loads((tmp_path / "data/validated/summary.json").read_text())["passed"] is False
    assert not (tmp_path / "data/validated/pretrain").exists()
    assert "Stopped: 1 problem" in (tmp_path / "data/reports/validation/index.html").read_text()


def test_as_many_bad_rows_as_allowed_pass(tmp_path):
    raw(tmp_path, a_jsonl=lines(*GOOD, ""))
    run(tmp_path, maximum_bad_fraction=0.2)
    assert len(read(tmp_path / "data/validated/pretrain/books.jsonl")) == 4


def test_duplicates_have_a_limit_of_their_own_and_count_across_corpora_of_a_kind(tmp_path):
    raw(tmp_path, name="a", a_jsonl=lines(*GOOD))
    raw(tmp_path, name="b", b_jsonl=lines("This one is new here.", "This one is newer.", GOOD[0]))
    run(tmp_path, maximum_duplicate_fraction=0.5)
    assert [row["text"] for row in read(tmp_path / "data/validated/pretrain/b.jsonl")] == [
        "This one is new here.",
        "This one is newer.",
    ]
    with pytest.raises(ValueError, match=r"pretrain/b: 1 of 3 rows are duplicates.*maximum_duplicate_fraction is 0.2"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("file", "data", "problem"),
    [
        ("b_jsonl_gz", gzip.compress(lines(*(f"row {n}" for n in range(500))))[:-20], "truncated gzip"),
        ("b_jsonl", b"", "is empty"),
        ("b_parquet", b"PAR1 but not for long", "parquet"),
        ("b_jsonl_zst", b"plain text", "no zstandard file"),
    ],
)
def test_an_unreadable_file_stops_the_stage_by_name_and_the_others_are_judged(tmp_path, file, data, problem):
    raw(tmp_path, a_jsonl=lines("", *GOOD), **{file: data}, c_jsonl=lines("", "Last."))
    with pytest.raises(ValueError, match=f"data/raw/pretrain/books/{file.replace('_', '.')} .*{problem}"):
        run(tmp_path, maximum_bad_fraction=0.5)
    files = {row["file"] for row in read(tmp_path / "data/quarantine/pretrain/books.jsonl")}
    assert files == {"data/raw/pretrain/books/a.jsonl", "data/raw/pretrain/books/c.jsonl"}


def test_a_benchmark_must_be_whole(tmp_path):
    rows = [{"question": "How many?", "answer": "Two. #### 2"}, {"question": "And now?", "answer": "Three. #### 3"}]
    raw(tmp_path, a_jsonl=lines(*GOOD))
    raw(tmp_path, "benchmarks", "benchmarks", count_test_jsonl=lines(*rows) + b"{\n")
    with pytest.raises(ValueError, match=r"benchmarks: 1 of 3 rows are bad.*a benchmark must be whole"):
        run(tmp_path, maximum_bad_fraction=1.0)


def test_a_failing_suite_names_expectation_observation_and_file(tmp_path):
    raw(tmp_path, a_jsonl=lines(*("menu\n" * 10 + f"row {n}" for n in range(5)), *GOOD))
    with pytest.raises(ValueError) as stopped:
        run(tmp_path)
    message = str(stopped.value)
    assert "pretrain/books: the suite expects distinct_line_fraction to be at least 0.3, for at least 0.95" in message
    assert "observed: 5 of 9 values do not, such as 0.18" in message and "data/suites/pretrain.json" in message


def test_an_expectation_is_judged_on_all_shards_together(tmp_path):
    # 2 of 40 texts are damaged, both in the first shard: 10 % of that shard, but 5 % of the corpus, which the suite allows.
    texts = [("row\n" * 10 if n < 2 else "") + f"this is row number {n}" for n in range(40)]
    raw(tmp_path, a_jsonl=lines(*texts))
    run(tmp_path, shard_rows=20)
    summary = json.loads((tmp_path / "data/validated/summary.json").read_text())["corpora"]["pretrain/books"]
    observed = {one["expected"].split()[0]: one["observed"] for one in summary["expectations"]}
    assert observed["distinct_line_fraction"].startswith("2 of 40 values do not")
    assert "over 2 shards of row facts" in (tmp_path / "data/reports/validation/index.html").read_text()


def test_the_outputs_are_the_same_bytes_each_time_and_wherever_they_are_made(tmp_path):
    for name in ("one", "two"):
        raw(tmp_path / name, a_jsonl=lines(*GOOD, ""))
        run(tmp_path / name, maximum_bad_fraction=0.5)
    first = outputs(tmp_path / "one")
    assert first == outputs(tmp_path / "two") and len(first) == 5
    run(tmp_path / "one", maximum_bad_fraction=0.5)
    assert outputs(tmp_path / "one") == first
    assert all(str(tmp_path).encode() not in data for data in first.values())


def test_the_report_needs_no_network_and_hides_nothing_in_markup(tmp_path):
    raw(tmp_path, a_jsonl=lines(*GOOD, {"<b>no": "x"}))
    run(tmp_path, maximum_bad_fraction=0.5)
    page = (tmp_path / "data/reports/validation/index.html").read_text()
    assert not re.search(r"(src|href)=(?!\"#)|url\(|@import|<script|<link|https?:", page)
    assert "<b>no" not in page and "&lt;b&gt;no" in page
    for part in ("Everything passed", "pretrain/books", "missing_field", "<svg", "characters to be at least 1"):
        assert part in page


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"maximum_bad_fraction": 2}, "a fraction lies between 0 and 1"),
        ({"shard_rows": 0}, "it must be at least 1"),
        ({"max_characters": 9}, "Did you mean 'maximum_characters'"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(tmp_path, section, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **section)


def test_nothing_downloaded_or_a_lost_file_says_to_run_download(tmp_path):
    with pytest.raises(ValueError, match="then run download"):
        run(tmp_path)
    raw(tmp_path, a_jsonl=lines(*GOOD))
    (tmp_path / "data/raw/pretrain/books/a.jsonl").unlink()
    with pytest.raises(ValueError, match="run download again"):
        run(tmp_path)


def test_a_suite_about_a_column_that_does_not_exist_is_blamed_itself(tmp_path):
    raw(tmp_path, a_jsonl=lines(*GOOD))
    run(tmp_path)
    suite = json.loads((ROOT / "data/suites/pretrain.json").read_text())
    suite["expectations"][2]["kwargs"]["column"] = "carachters"
    (tmp_path / "wrong.json").write_text(json.dumps(suite))
    with pytest.raises(ValueError, match=r"wrong.json: 'carachters .* cannot be evaluated"):
        Suite(tmp_path / "wrong.json").add(
            {**measure("pretrain", {"text": "one"}), "kept": 1, "duplicate": 0, "row": [1]}
        )
    (tmp_path / "wrong.json").write_text("{")
    with pytest.raises(ValueError, match="is no Great Expectations suite"):
        Suite(tmp_path / "wrong.json")


MEASURED = """
import sys
from pathlib import Path
sys.path.insert(0, "tests/tasks")
from test_validate import run
run(Path(sys.argv[1]), maximum_characters=5000, shard_rows=2000)
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])  # ru_maxrss would count the parent
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    peaks = []
    for rows in (5_000, 50_000):
        root = tmp_path / str(rows)
        raw(root, a_jsonl=lines(*(f"row {number} " * 100 for number in range(rows))))
        ran = subprocess.run(
            [sys.executable, "-c", MEASURED, str(root)], cwd=ROOT, check=True, capture_output=True, text=True
        )
        peaks.append(int(ran.stdout.split()[-1]) / 1024)
    assert peaks[1] < peaks[0] + 12  # MiB; the texts of the larger corpus alone are over 40
