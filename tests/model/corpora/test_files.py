"""Corpus `files`: what a person lists is found and carried byte for byte, and what cannot be found is said."""

import gzip

import pytest

from model.corpora.files import FilesCorpus
from model.corpora.manifest import CorpusContext, sha256_of


def corpus(root, *paths, **options):
    return FilesCorpus("pretrain", "books", {"paths": list(paths), **options}, CorpusContext(root, {}, sha256_of))


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def test_folders_globs_and_single_files_are_found_once_and_keep_their_place(tmp_path):
    write(tmp_path, "a/x.jsonl", "a/deep/y.txt.gz", "b/x.jsonl", "c/z.parquet", "c/z.md")
    found = corpus(tmp_path, "a", "a/*.jsonl", "b/**/*.jsonl", str(tmp_path / "c/z.parquet")).look()
    assert [source.name for source in found] == ["a/deep/y.txt.gz", "a/x.jsonl", "b/x.jsonl", "c/z.parquet"]


def test_files_are_carried_byte_for_byte_and_share_no_inode_with_the_original(tmp_path):
    write(tmp_path, "in/raw.jsonl")
    (tmp_path / "in/odd.jsonl.gz").write_bytes(gzip.compress(b"\xff\x00not json")[:-3])
    books = corpus(tmp_path, "in")
    for source in books.look():
        out = tmp_path / "out" / source.name
        books.fetch(source, tmp_path / "out")
        assert out.read_bytes() == (tmp_path / "in" / source.name).read_bytes()
        assert sha256_of(out) == source.identity and out.stat().st_size == source.size
        assert not out.samefile(tmp_path / "in" / source.name)


def test_files_left_out_of_a_folder_are_listed(tmp_path):
    write(tmp_path, "in/a.txt", "in/README.md", "in/.hidden.txt", "in/.git/b.txt")
    books = corpus(tmp_path, "in")
    assert [source.name for source in books.look()] == ["a.txt"]
    assert books.left_out == [".git/b.txt", ".hidden.txt", "README.md"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none/*.jsonl", "'none/\\*.jsonl' matches no file"),
        ("none.jsonl", "'none.jsonl' does not exist"),
        ("documents", "holds no file of a known kind"),
        ("documents/*", "a.pdf, whose kind is unknown"),
    ],
)
def test_a_path_without_data_is_an_error_that_names_it(tmp_path, pattern, message):
    write(tmp_path, "documents/a.pdf")
    with pytest.raises(ValueError, match=message):
        corpus(tmp_path, pattern).look()


def test_a_file_that_changes_while_it_is_copied_is_refused(tmp_path):
    write(tmp_path, "in/a.txt")
    books = corpus(tmp_path, "in")
    source = books.look()[0]
    (tmp_path / "in/a.txt").write_text("more")
    with pytest.raises(ValueError, match="changed while it was copied"):
        books.fetch(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_feild": "body"}, "unknown option 'text_feild'.*Did you mean 'text_field'"),
        ({"weight": 0}, "weight must be above 0"),
        ({"weight": "3e-1"}, "must be int or float"),
        ({"txt_rows": "words"}, "must be one of paragraphs, lines, files"),
        ({"roles": ["human"]}, "roles"),
    ],
)
def test_a_wrong_option_is_refused_by_name(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        corpus(tmp_path, "in", **options)


def test_no_paths_at_all_is_refused(tmp_path):
    with pytest.raises(ValueError, match="paths is empty"):
        corpus(tmp_path)
