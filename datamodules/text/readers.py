"""Rows of one file, by what its suffix says it holds, each with the words that say where it stands.

A file may be compressed: ``pairs.jsonl.gz``. Only a newline ends a line, and text is UTF-8.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

Rows = Iterator[tuple[str, Any]]
OnBad = Callable[[str], None]
"""Told of a row that cannot be read, which is then left out."""
Reader = Callable[[bytes, str, OnBad, Collection[str]], Rows]
"""``(data, name, on_bad, text columns)`` -> rows."""


def reader_of(path: str) -> Reader | None:
    """What reads a file of that name; None where its suffix is of no known kind."""
    return READERS.get(Path(_unzipped(path)).suffix.lower())


def read_file(
    file: Path, name: str, on_bad: OnBad, text: Collection[str] = (), option: str = "data.path"
) -> Rows:
    """The rows of ``file``, which the user calls ``name``.

    Args:
        text: columns of tables that are text, whatever they look like.

    Raises:
        ValueError: it cannot be read.
    """
    read = reader_of(name)
    assert read is not None, "the caller has asked"
    data = file.read_bytes()
    if _unzipped(name) != name:
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{option}={name!r} could not be unpacked: {error}") from error
    try:
        yield from read(data, name, on_bad, text)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{option}={name!r}, line {line}, is not UTF-8 text: {error.reason} at byte"
            f" {error.start}. Save the file as UTF-8"
        ) from error


def _unzipped(name: str) -> str:
    return name[:-3] if name.lower().endswith(".gz") else name


def _txt(data: bytes, name: str, on_bad: OnBad, text: Collection[str]) -> Rows:
    yield from _numbered(_text(data), name)


def _yaml(data: bytes, name: str, on_bad: OnBad, text: Collection[str]) -> Rows:
    try:
        rows = yaml.safe_load(_text(data))
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not YAML: {error}") from error
    yield from _list(rows, name)


def _json(data: bytes, name: str, on_bad: OnBad, text: Collection[str]) -> Rows:
    written = _text(data)
    try:
        rows = json.loads(written, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        if written.strip() and not written.lstrip().startswith("["):  # JSON lines called .json
            yield from _lines(written, name, on_bad)
            return
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{name}{where}: not JSON ({error})") from error
    yield from _list([rows] if isinstance(rows, dict) else rows, name)


def _jsonl(data: bytes, name: str, on_bad: OnBad, text: Collection[str]) -> Rows:
    """One row a line; or a whole list under this name, as long as it is no conversation."""
    written = _text(data)
    if written.lstrip().startswith("[") and (rows := _list_of_rows(written)) is not None:
        yield from _list(rows, name)
    else:
        yield from _lines(written, name, on_bad)


def _list_of_rows(text: str) -> list[Any] | None:
    try:
        rows = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None
    conversation = all(isinstance(row, dict) and ("role" in row or "from" in row) for row in rows)
    return None if conversation else rows


def _lines(text: str, name: str, on_bad: OnBad) -> Rows:
    for where, line in _numbered(text, name):
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            on_bad(f"{where}: not JSON ({error}): {line[:80]!r}")
            continue
        yield where, row


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys all count: json's own keeps the last of two that are called alike."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return row


def _csv(
    data: bytes, name: str, on_bad: OnBad, text: Collection[str], delimiter: str = ","
) -> Rows:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(_text(data), newline=""), delimiter=delimiter)
    header = [heading.strip() for heading in next(reader, [])]
    twice = {heading for heading in header if heading and header.count(heading) > 1}
    if twice:
        raise ValueError(f"{name}: two columns are called {min(twice)!r}: rename one")
    places, rows = [], []
    for number, cells in enumerate(filter(None, reader), start=1):
        where = f"{name}, row {number}"
        while len(cells) > len(header) and not cells[-1]:
            cells.pop()  # a comma at the end
        if len(cells) == len(header):
            places.append(where)
            rows.append(cells)
        else:
            on_bad(
                f"{where}: {len(cells)} cells under {len(header)} headings: quote commas in text"
            )
    columns: dict[str, list[Any]] = {}
    for i, (heading, cells) in enumerate(zip(header, zip(*rows, strict=True), strict=False)):
        if heading:
            columns[heading] = _cells(cells) if heading in text else _typed(cells)
        elif not all(cell.isdecimal() for cell in cells if cell):  # numbers are pandas' index
            raise ValueError(f"{name}: column {i + 1} has no heading: give it one, or remove it")
    for where, *row in zip(places, *columns.values(), strict=True):
        yield where, dict(zip(columns, row, strict=True))


def _tsv(data: bytes, name: str, on_bad: OnBad, text: Collection[str]) -> Rows:
    yield from _csv(data, name, on_bad, text, delimiter="\t")


def _cells(cells: Sequence[str]) -> list[Any]:
    return [cell or None for cell in cells]


def _typed(cells: Sequence[str]) -> list[Any]:
    """A column of numbers as numbers, where nothing is lost by that; empty cells as None."""
    given = [cell for cell in cells if cell]
    for kinds in ((int,), (int, float)):
        if given and all(any(_is(kind, cell) for kind in kinds) for cell in given):
            return [kinds[-1](cell) if cell else None for cell in cells]
    return _cells(cells)


def _is(kind: type, cell: str) -> bool:
    try:
        return str(kind(cell)) == cell or (kind is float and "e" in cell and bool(float(cell)))
    except ValueError:
        return False


def _parquet(data: bytes, name: str, on_bad: OnBad, text: Collection[str]) -> Rows:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(pyarrow.BufferReader(data)).to_pylist()
    except Exception as error:
        raise ValueError(f"{name!r} could not be read: {error}") from error
    yield from _list(rows, name)


def _text(data: bytes) -> str:
    return data.decode("utf-8-sig")


def _numbered(text: str, name: str) -> Iterator[tuple[str, str]]:
    """Lines that are not blank, with their place."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{name}, line {number}", line.removesuffix("\r")


def _list(rows: Any, name: str) -> Rows:
    if not isinstance(rows, list):
        raise ValueError(f"{name} must hold a list, not {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        yield f"{name}, row {number}", row


READERS: dict[str, Reader] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".txt": _txt,
}
KINDS = f"{', '.join(READERS)} (each also with .gz)"
