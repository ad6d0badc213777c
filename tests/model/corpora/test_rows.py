"""Reading rows: what is damaged comes out with a reason, and its neighbours come out whole."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from model.corpora.rows import Row, UnreadableFile, read_rows

LIMIT = 1 << 20


def rows_of(path: Path, txt_rows: str = "paragraphs", limit: int = LIMIT) -> list[Row]:
    return list(read_rows(path, ("text",), txt_rows, limit))


def lines(*texts: str) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def compress(data: bytes, ending: str) -> bytes:
    if ending == ".zst":
        return pyarrow.compress(data, codec="zstd", asbytes=True)
    return gzip.compress(data) if ending == ".gz" else data


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".txt"])
def test_every_kind_reads_the_same_plain_and_compressed(tmp_path, kind, ending):
    path = tmp_path / f"a{kind}{ending}"
    data = lines("one", "två") if "json" in kind else "one\n\ntvå\n".encode()
    path.write_bytes(compress(data, ending))
    assert [row.value for row in rows_of(path)] == [{"text": "one"}, {"text": "två"}]


def test_joined_zstandard_frames_and_gzip_members_are_read_to_the_end(tmp_path):
    for ending in (".gz", ".zst"):
        path = tmp_path / f"a.jsonl{ending}"
        path.write_bytes(compress(lines("one"), ending) + compress(lines("two"), ending))
        assert [row.value["text"] for row in rows_of(path)] == ["one", "two"]


def test_a_truncated_last_line_loses_only_itself(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("one", "two", "three")[:-9])
    assert [(row.number, row.reason) for row in rows_of(path)] == [(1, ""), (2, ""), (3, "unparsable")]


def test_a_last_line_without_its_newline_is_a_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("one", "two")[:-1])
    assert [row.value["text"] for row in rows_of(path)] == ["one", "two"]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_line_of_5_megabytes_loses_only_itself_and_is_never_held(tmp_path, ending):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(compress(lines("one") + lines("x" * 5_000_000) + lines("two"), ending))
    list(read_rows(path, ("text",), "paragraphs", LIMIT // 8))
    tracemalloc.start()
    found = rows_of(path, limit=LIMIT // 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(row.number, row.reason) for row in found] == [(1, ""), (2, "line_too_long"), (3, "")]
    assert "5000013 bytes" in found[1].detail and len(found[1].cut) == 200
    assert peak < 2_000_000


def test_a_line_of_exactly_the_limit_is_a_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("x" * 100, "y"))
    size = len(lines("x" * 100)) - 1
    assert [row.reason for row in rows_of(path, limit=size)] == ["", ""]
    assert [row.reason for row in rows_of(path, limit=size - 1)] == ["line_too_long", ""]


def test_a_byte_order_mark_and_windows_line_ends_are_not_content(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines("one", "two").replace(b"\n", b"\r\n"))
    assert [row.value["text"] for row in rows_of(path)] == ["one", "two"]


def test_invalid_utf8_nonsense_and_deep_nesting_lose_only_their_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines("one") + b'{"text": "\xff"}\n{"text": \n' + b"[" * 100_000 + b"\n\n" + lines("two"))
    reasons = [row.reason for row in rows_of(path)]
    assert reasons == ["", "invalid_utf8", "unparsable", "unparsable", "blank_line", ""]


@pytest.mark.parametrize(
    ("txt_rows", "expected"),
    [
        ("paragraphs", [(2, "one\ntwo"), (5, "three")]),
        ("lines", [(2, "one"), (3, "two"), (5, "three")]),
        ("files", [(2, "one\ntwo\n\nthree")]),
    ],
)
def test_a_text_file_is_split_as_asked(tmp_path, txt_rows, expected):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\none\ntwo\n\nthree\n")
    assert [(row.number, row.value["text"].rstrip("\n")) for row in rows_of(path, txt_rows)] == expected


def test_an_endless_paragraph_is_refused_and_the_next_is_kept(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"word word word\n" * 100 + b"\nlast\n")
    assert [(row.number, row.reason) for row in rows_of(path, limit=200)] == [(1, "line_too_long"), (102, "")]


def test_parquet_rows_carry_numbers_nulls_and_bad_strings(tmp_path):
    path = tmp_path / "a.parquet"
    good = pyarrow.array([b"one", None, b"\xff", b"two"], type=pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 4, good.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": text, "other": [1, 2, 3, 4]}), path)
    found = rows_of(path)
    assert [row.reason for row in found] == ["", "", "invalid_utf8", ""]
    assert [row.value and row.value["text"] for row in found] == ["one", None, None, "two"]


def test_rows_before_the_break_of_a_truncated_file_still_come_out(tmp_path):
    for ending in (".gz", ".zst"):
        path = tmp_path / f"a.jsonl{ending}"
        texts = [f"{number} {number * 7919 % 104729}" for number in range(20_000)]
        whole = compress(lines(*texts), ending)
        path.write_bytes(whole[: len(whole) * 3 // 4])
        seen = []
        with pytest.raises(UnreadableFile, match=r"truncated|to its end"):
            for row in read_rows(path, ("text",), "paragraphs", LIMIT):
                seen.append(row)
        assert seen and all(row.value["text"] == texts[row.number - 1] for row in seen if not row.reason)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b"", "empty"),
        ("a.jsonl.gz", gzip.compress(b""), "no data"),
        ("a.txt", b"\n  \n", "blank"),
        ("a.jsonl.gz", lines("one"), "gzip"),
        ("a.jsonl.zst", lines("one"), "no zstandard file"),
        ("a.jsonl", gzip.compress(lines("one")), "end its name in .gz"),
        ("a.parquet", lines("one"), "no parquet file"),
        ("a.json", b' [{"text": "one"}]', "JSON array"),
        ("a.txt", "text".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused_whole(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UnreadableFile, match=message):
        rows_of(tmp_path / name)


def test_several_columns_of_a_parquet_file_come_together_and_optional_ones_where_they_are(tmp_path):
    rows = [{"chosen": "yes", "rejected": "no", "prompt": f"{n}?", "other": n} for n in range(300)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = list(read_rows(tmp_path / "a.parquet", ("chosen", "rejected"), "paragraphs", LIMIT, ("prompt", "absent")))
    assert [row.value for row in found] == [{key: row[key] for key in ("chosen", "rejected", "prompt")} for row in rows]
    with pytest.raises(UnreadableFile, match=r"no column 'better'.*chosen_field"):
        list(read_rows(tmp_path / "a.parquet", ("chosen", "better"), "paragraphs", LIMIT))


def test_a_parquet_file_without_the_column_names_those_it_has(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"content": ["one"]}), tmp_path / "a.parquet")
    with pytest.raises(UnreadableFile, match="no column 'text'; its columns are content"):
        rows_of(tmp_path / "a.parquet")
