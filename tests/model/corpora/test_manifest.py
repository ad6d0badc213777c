"""The manifest and the hash cache: same input, same bytes; a changed file is never taken for an unchanged one."""

import os

from model.atomic import write_atomically
from model.corpora.manifest import HashCache, is_intact, read_manifest, sha256_of, write_manifest


def entry(kind, name):
    return {"kind": kind, "name": name, "source": "files", "weight": 1.0, "options": {}, "sources": []}


def age(path, seconds=10):
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - seconds * 10**9))


def test_the_manifest_does_not_depend_on_the_order_of_what_it_is_given(tmp_path):
    corpora = [entry("instructions", "a"), entry("pretrain", "b"), entry("pretrain", "a")]
    write_manifest(tmp_path, corpora)
    first = (tmp_path / "manifest.json").read_bytes()
    write_manifest(tmp_path, reversed(corpora))
    assert (tmp_path / "manifest.json").read_bytes() == first
    assert [(e["kind"], e["name"]) for e in read_manifest(tmp_path)["corpora"]] == [
        ("pretrain", "a"),
        ("pretrain", "b"),
        ("instructions", "a"),
    ]


def test_writing_the_same_text_again_does_not_touch_the_file(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "one")
    age(path)
    before = path.stat()
    write_atomically(path, "one")
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    write_atomically(path, "two")
    assert path.read_text() == "two" and list(tmp_path.iterdir()) == [path]


def test_a_damaged_manifest_counts_as_none(tmp_path):
    for text in ("", "{", "[]", '{"corpora": 3}'):
        (tmp_path / "manifest.json").write_text(text)
        assert read_manifest(tmp_path) == {"corpora": []}


def test_a_remembered_hash_is_used_until_the_file_changes(tmp_path, monkeypatch):
    path, store = tmp_path / "a.txt", tmp_path / "hashes.json"
    path.write_text("one")
    age(path)
    cache = HashCache(store)
    first = cache.sha256(path)
    cache.save()
    calls = []
    monkeypatch.setattr("model.corpora.manifest.sha256_of", lambda p: calls.append(p) or sha256_of(p))
    again = HashCache(store)
    assert again.sha256(path) == first and calls == []
    path.write_text("two")
    assert again.sha256(path) == sha256_of(path) != first


def test_a_file_written_this_very_moment_is_not_remembered(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    cache = HashCache(tmp_path / "hashes.json")
    cache.sha256(path)
    stamp = path.stat()
    path.write_text("two")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert cache.sha256(path) == sha256_of(path)


def test_a_file_with_other_bytes_of_the_same_length_is_not_intact(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    record = {"path": "a.txt", "bytes": 3, "sha256": sha256_of(tmp_path / "a.txt")}
    assert is_intact(record, tmp_path, sha256_of)
    (tmp_path / "a.txt").write_text("two")
    assert not is_intact(record, tmp_path, sha256_of)
    (tmp_path / "a.txt").unlink()
    assert not is_intact(record, tmp_path, sha256_of)
