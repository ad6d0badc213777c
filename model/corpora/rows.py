"""Rows of a data file, one at a time, in memory bounded by the longest line allowed, whatever the file holds.

What cannot be a row (an unparsable line, bytes that are not UTF-8, a line without end) comes out with a reason and does not
disturb its neighbours; only a file that cannot be read as what its name says raises.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

CUT_CHARACTERS = 200
PARQUET_BATCH_ROWS = 256
_MAGIC = {b"\x1f\x8b": ("gzip", ".gz"), b"\x28\xb5\x2f\xfd": ("zstandard", ".zst"), b"PAR1": ("parquet", ".parquet")}


class UnreadableFile(ValueError):
    """A file as a whole cannot be read: truncated, empty, or not what its name says."""


@dataclass(slots=True)
class Row:
    """One row: its line number (parquet: row number) from 1, and either a value or a reason with a cut of what stood there."""

    number: int
    value: Any = None
    reason: str = ""
    detail: str = ""
    cut: str = ""


def read_rows(
    path: Path, columns: Sequence[str], txt_rows: str, maximum_line_bytes: int, optional: Sequence[str] = ()
) -> Iterator[Row]:
    """Every row of a .jsonl, .json, .txt or .parquet file (.gz and .zst too); UnreadableFile at the point where it breaks.

    Of a parquet file `columns` are read, and `optional` ones that are there; a document of a .txt file is put under the first.
    A blank line of a jsonl file comes out with the reason `blank_line`: it is nobody's row, but it is counted.
    """
    name = path.name.lower()
    if path.stat().st_size == 0:
        raise UnreadableFile("is empty (0 bytes): fill or remove it")
    try:
        if name.endswith(".parquet"):
            yield from _parquet_rows(path, columns, optional)
            return
        with _open(path) as stream:
            _refuse_other_formats(stream, name)
            if name.removesuffix(".gz").removesuffix(".zst").endswith(".txt"):
                yield from _txt_rows(stream, columns[0], txt_rows, maximum_line_bytes)
            else:
                yield from _json_rows(stream, maximum_line_bytes)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UnreadableFile(f"is a damaged or truncated gzip file ({error}): copy or download it again") from error
    except OSError as error:
        raise UnreadableFile(f"cannot be read to its end ({error}): copy or download it again") from error


def _open(path: Path) -> BinaryIO:
    name = path.name.lower()
    if name.endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if name.endswith(".zst"):
        import pyarrow  # its stream notices a truncated frame

        with path.open("rb") as plain:
            if plain.read(4) != b"\x28\xb5\x2f\xfd":
                raise UnreadableFile("is named .zst but is no zstandard file; rename or compress it")
        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), 1 << 18)  # type: ignore[return-value]
    return path.open("rb", buffering=1 << 18)


def _refuse_other_formats(stream: BinaryIO, name: str) -> None:
    """UnreadableFile when the first bytes show compression, parquet, UTF-16, or a JSON array instead of lines."""
    head = stream.peek(64)[:64]  # type: ignore[attr-defined]
    if not head:
        raise UnreadableFile("holds no data once decompressed: fill or remove it")
    for magic, (what, ending) in _MAGIC.items():
        if head.startswith(magic):
            raise UnreadableFile(f"is a {what} file under another name; end its name in {ending}")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UnreadableFile("is UTF-16; convert it, as with: iconv -f UTF-16 -t UTF-8")
    if ".json" in name and head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        raise UnreadableFile("is a JSON array; write one object per line, as with: jq -c '.[]'")


def _lines(stream: BinaryIO, limit: int) -> Iterator[tuple[int, bytes, int]]:
    """(number, line without its end, bytes dropped): a line beyond `limit` bytes is cut there, and its rest only counted."""
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        dropped = 0
        if len(line) > limit and not line.endswith(b"\n"):
            while rest := stream.readline(1 << 16):
                dropped += len(rest)
                if rest.endswith(b"\n"):
                    break
            dropped = max(dropped, 1)
        yield number, line.rstrip(b"\r\n") if not dropped else line, dropped


def _json_rows(stream: BinaryIO, limit: int) -> Iterator[Row]:
    seen = False
    for number, line, dropped in _lines(stream, limit):
        seen = True
        if dropped:
            yield _oversize(number, line, dropped, limit)
        elif not line.strip():
            yield Row(number, reason="blank_line")
        else:
            yield _parsed(number, line)
    if not seen:
        raise UnreadableFile("holds no rows: fill or remove it")


def _parsed(number: int, line: bytes) -> Row:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return Row(number, reason="invalid_utf8", detail=f"byte {error.start} of the line", cut=_cut(line))
    try:
        return Row(number, json.loads(text))
    except RecursionError:
        return Row(number, reason="unparsable", detail="nested too deeply", cut=_cut(line))
    except ValueError as error:
        return Row(number, reason="unparsable", detail=str(error)[:120], cut=_cut(line))


def _txt_rows(stream: BinaryIO, column: str, txt_rows: str, limit: int) -> Iterator[Row]:
    """Documents of a text file: its paragraphs (split at blank lines), its lines, or the file as one."""
    num_rows, start, held, size, dropped = 0, 1, [], 0, 0

    def finished() -> Row:
        data = b"\n".join(held)
        if dropped:
            return _oversize(start, data, dropped, limit)
        try:
            return Row(start, {column: data.decode()})
        except UnicodeDecodeError as error:
            return Row(start, reason="invalid_utf8", detail=f"byte {error.start} of the document", cut=_cut(data))

    for number, line, lost in _lines(stream, limit):
        blank = not line.strip()
        if held and (txt_rows == "lines" or (txt_rows == "paragraphs" and blank)):
            yield finished()
            num_rows, held, size, dropped = num_rows + 1, [], 0, 0
        if blank and (not held or txt_rows != "files"):
            continue
        if not held:
            start = number
        room = limit - size
        if len(line) + lost > room:
            dropped += len(line) - max(room, 0) + lost
            line = line[: max(room, 0)]
        if room > 0:
            held.append(line)
            size += len(line) + 1
    if held:
        yield finished()
    elif num_rows == 0:
        raise UnreadableFile("holds only blank lines: fill or remove it")


def _parquet_rows(path: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if absent := [column for column in columns if column not in names]:
                raise UnreadableFile(
                    f"has no column '{absent[0]}'; its columns are {', '.join(names)}: set the name of the field "
                    "(text_field, conversations_field, chosen_field, rejected_field) under the corpus in download"
                )
            wanted = [*columns, *(column for column in optional if column in names)]
            if table.metadata.num_rows == 0:
                raise UnreadableFile("holds no rows: fill or remove it")
            number = 0
            for batch in table.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=wanted):
                for values in zip(*(batch.column(column) for column in wanted), strict=True):
                    number += 1
                    yield _parquet_row(number, dict(zip(wanted, values, strict=True)))
    except pyarrow.ArrowException as error:
        raise UnreadableFile(
            f"is no parquet file, or a damaged one ({str(error)[:120]}): copy or download it again"
        ) from error


def _parquet_row(number: int, values: dict[str, Any]) -> Row:
    try:
        return Row(number, {column: value.as_py() for column, value in values.items()})
    except UnicodeDecodeError as error:
        return Row(number, reason="invalid_utf8", detail=f"byte {error.start} of the value")


def _oversize(number: int, start: bytes, dropped: int, limit: int) -> Row:
    detail = f"{len(start) + dropped} bytes; maximum_line_bytes is {limit}"
    return Row(number, reason="line_too_long", detail=detail, cut=_cut(start))


def _cut(data: bytes) -> str:
    return data[: 4 * CUT_CHARACTERS].decode(errors="backslashreplace")[:CUT_CHARACTERS]
