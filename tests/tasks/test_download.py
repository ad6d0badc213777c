"""The stage `download`: what is new comes, what is unchanged is not touched, what is gone goes, and a kill harms nothing."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from model.corpora.manifest import is_intact, read_manifest, sha256_of
from tasks.download import download

ROOT = Path(__file__).resolve().parents[2]


def stage_in(root, section, **params):
    """What `download` needs of a stage, below a folder of the test's own."""
    work = root / ".work/download/key"
    work.mkdir(parents=True, exist_ok=True)
    tracker = SimpleNamespace(log_metrics=lambda metrics: None)
    return SimpleNamespace(
        root=root, work=work, section=section, params={"download": section, **params}, tracker=tracker
    )


def books(*paths, **options):
    return {"pretrain": {"books": {"source": "files", "paths": list(paths), **options}}}


def write(root, name, data):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)


def state_of(folder):
    """Every file with its bytes, inode and times."""
    found = {path: (path.read_bytes(), path.stat()) for path in folder.rglob("*") if path.is_file()}
    return {path.relative_to(folder).as_posix(): (data, s.st_ino, s.st_mtime_ns) for path, (data, s) in found.items()}


@pytest.fixture
def root(tmp_path):
    write(tmp_path, "in/a.jsonl", b'{"text": "a"}\n')
    write(tmp_path, "in/deep/b.txt.gz", b"not gzip, carried all the same")
    return tmp_path


TOY = {
    "pretrain": {"world": {"source": "toy_world", "documents": 20, "weight": 0.5}},
    "instructions": {"world": {"source": "toy_world", "conversations": 20}},
    "benchmarks": {"source": "toy_world", "validation_items": 2, "test_items": 3},
}


def test_files_arrive_byte_for_byte_and_the_manifest_says_what_they_are(root):
    download(stage_in(root, books("in", weight=0.7)))
    raw = root / "data/raw"
    for name in ("a.jsonl", "deep/b.txt.gz"):
        assert (raw / "pretrain/books" / name).read_bytes() == (root / "in" / name).read_bytes()
    (entry,) = read_manifest(raw)["corpora"]
    assert (entry["source"], entry["weight"], entry["options"]["paths"]) == ("files", 0.7, ["in"])
    assert [source["files"][0] for source in entry["sources"]] == [
        {"path": f"pretrain/books/{n}", "bytes": (root / "in" / n).stat().st_size, "sha256": sha256_of(root / "in" / n)}
        for n in ("a.jsonl", "deep/b.txt.gz")
    ]


def test_an_unchanged_second_download_touches_nothing(root):
    section = books("in") | {key: TOY[key] for key in ("instructions", "benchmarks")}
    download(stage_in(root, section))
    before = state_of(root / "data/raw")
    download(stage_in(root, section))
    assert state_of(root / "data/raw") == before and len(before) == 2 + 1 + 24 + 1


def test_only_the_changed_file_is_fetched_again(root):
    download(stage_in(root, books("in")))
    before = state_of(root / "data/raw/pretrain")
    write(root, "in/a.jsonl", b'{"text": "A"}\n')
    download(stage_in(root, books("in")))
    after = state_of(root / "data/raw/pretrain")
    assert after["books/a.jsonl"][0] == b'{"text": "A"}\n'
    assert after["books/deep/b.txt.gz"] == before["books/deep/b.txt.gz"]


def test_a_damaged_or_lost_raw_file_is_put_right(root):
    download(stage_in(root, books("in")))
    before = (root / "data/raw/manifest.json").read_bytes()
    (root / "data/raw/pretrain/books/a.jsonl").write_bytes(b'{"text": "?"}\n')
    (root / "data/raw/pretrain/books/deep/b.txt.gz").unlink()
    download(stage_in(root, books("in")))
    assert (root / "data/raw/pretrain/books/a.jsonl").read_bytes() == b'{"text": "a"}\n'
    assert (root / "data/raw/manifest.json").read_bytes() == before
    (entry,) = read_manifest(root / "data/raw")["corpora"]
    assert all(is_intact(source["files"][0], root / "data/raw", sha256_of) for source in entry["sources"])


def test_what_is_gone_is_removed_with_its_empty_folders(root):
    download(stage_in(root, books("in")))
    (root / "in/deep/b.txt.gz").unlink()
    download(stage_in(root, books("in")))
    assert sorted(state_of(root / "data/raw")) == ["manifest.json", "pretrain/books/a.jsonl"]
    assert not (root / "data/raw/pretrain/books/deep").exists()


def test_the_manifest_is_the_same_wherever_and_whenever_it_is_made(root, tmp_path_factory):
    download(stage_in(root, books("in") | {"benchmarks": TOY["benchmarks"]}))
    other = tmp_path_factory.mktemp("elsewhere")
    for path in (root / "in").rglob("*.*"):
        write(other, path.relative_to(root), path.read_bytes())
    download(stage_in(other, books("in") | {"benchmarks": TOY["benchmarks"]}))
    text = (root / "data/raw/manifest.json").read_text()
    assert (other / "data/raw/manifest.json").read_text() == text and str(root) not in text


def test_a_failure_in_the_middle_leaves_the_old_manifest_true(root):
    section = books("in")
    download(stage_in(root, section))
    before = state_of(root / "data/raw")
    write(root, "in/a.jsonl", b'{"text": "new"}\n')
    section["pretrain"]["later"] = {"source": "files", "paths": ["missing/*.txt"]}
    with pytest.raises(ValueError, match="matches no file"):
        download(stage_in(root, section))
    assert state_of(root / "data/raw") == before


def test_the_world_is_generated_again_only_when_it_changes(tmp_path):
    download(stage_in(tmp_path, TOY, toy_world={"seed": 0}))
    first = state_of(tmp_path / "data/raw")
    assert len(first) == 2 + 24 + 1
    weighted = TOY | {"pretrain": {"world": TOY["pretrain"]["world"] | {"weight": 0.1}}}
    download(stage_in(tmp_path, weighted, toy_world={"seed": 0}))
    second = state_of(tmp_path / "data/raw")
    assert {name for name in first if first[name] != second[name]} == {"manifest.json"}
    download(stage_in(tmp_path, weighted, toy_world={"seed": 1}))
    third = state_of(tmp_path / "data/raw")
    assert all(third[name][0] != first[name][0] for name in first)


def test_a_toy_corpus_may_have_a_language_of_its_own(tmp_path):
    corpora = {
        "en": {"source": "toy_world", "documents": 5},
        "zh": {"source": "toy_world", "documents": 5, "language": "zh"},
    }
    download(stage_in(tmp_path, {"pretrain": corpora}, toy_world={"language": "en"}))
    texts = {name: (tmp_path / f"data/raw/pretrain/{name}/documents.jsonl").read_text() for name in corpora}
    assert texts["en"].isascii() and not texts["zh"].isascii()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"pretraining": {}}, "download.pretraining is unknown"),
        ({"pretrain": ["books"]}, "it must map the name"),
        ({"pretrain": {"books": {"paths": ["in"]}}}, "it needs at least `source`"),
        ({"pretrain": {"books": {"source": "file"}}}, "Did you mean 'files'"),
        ({"pretrain": {"../books": {"source": "files"}}}, "cannot name a corpus"),
        ({"pretrain": {"w": {"source": "toy_world", "documents": 0}}}, "documents is 0"),
        ({"pretrain": {"w": {"source": "toy_world", "conversations": 9}}}, "unknown option 'conversations'"),
        ({"benchmarks": {"source": "hub"}}, "benchmarks come from toy_world or files"),
    ],
)
def test_a_wrong_section_is_refused_before_anything_is_written(root, section, message):
    with pytest.raises(ValueError, match=message):
        download(stage_in(root, section))
    assert not (root / "data/raw").exists()


KILLED = """
import json, os, sys
from pathlib import Path
from types import SimpleNamespace
import model.corpora.files
from tasks.download import download
fetch, count = model.corpora.files.FilesCorpus.fetch, 0
def stop_at_the_second(self, source, folder):
    global count
    count += 1
    if count == 2:
        os.kill(os.getpid(), 9)
    fetch(self, source, folder)
model.corpora.files.FilesCorpus.fetch = stop_at_the_second
root, section = Path(sys.argv[1]), json.loads(sys.argv[2])
download(SimpleNamespace(root=root, work=root / ".work/download/key", section=section, params={}, tracker=None))
"""


def test_a_kill_in_the_middle_leaves_the_old_manifest_true_and_the_next_run_ends_well(root):
    download(stage_in(root, books("in")))
    before = state_of(root / "data/raw")
    write(root, "in/a.jsonl", b'{"text": "new"}\n')
    write(root, "in/c.jsonl", b'{"text": "c"}\n')
    killed = subprocess.run([sys.executable, "-c", KILLED, str(root), json.dumps(books("in"))], cwd=ROOT, check=False)
    assert killed.returncode == -9
    assert state_of(root / "data/raw") == before
    download(stage_in(root, books("in")))
    assert sorted(state_of(root / "data/raw/pretrain/books")) == ["a.jsonl", "c.jsonl", "deep/b.txt.gz"]
    assert not (root / ".work/download/key/staging").exists()


UNCHANGED = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
import json
from tasks.download import download
root, section = Path(sys.argv[1]), json.loads(sys.argv[2])
tracker = SimpleNamespace(log_metrics=lambda metrics: None)
download(SimpleNamespace(root=root, work=root / ".work/download/key", section=section, params={}, tracker=tracker))
heavy = {"torch", "datasets", "pandas", "pyarrow", "mlflow", "great_expectations", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""


def test_an_unchanged_download_of_the_world_imports_nothing_heavy(tmp_path):
    download(stage_in(tmp_path, TOY))
    subprocess.run([sys.executable, "-c", UNCHANGED, str(tmp_path), json.dumps(TOY)], cwd=ROOT, check=True)
