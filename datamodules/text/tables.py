"""Rows of a file or of a Hugging Face dataset, each with the words that say where it stands."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

ASSETS = Path(__file__).parents[1] / "assets"
PACKAGE = "package:"
"""Prefix of files that this project carries: ``package:openings_train.txt``."""


def require_path(option: str, value: Any, *paths: str | None) -> None:
    """
    Raises:
        ValueError: ``value`` is set, and nothing is read that it could be of.
    """
    if value is not None and not any(paths):
        raise ValueError(f"{option}={value!r} has no use: no data.path is read")


def require_dataset(option: str, value: str | None, *paths: str | None) -> None:
    """
    Raises:
        ValueError: a split is named, and none of the paths is a Hugging Face dataset.
    """
    require_path(option, value, *paths)
    files = [path for path in paths if path is not None and reader_of(path)]
    if value is not None and len(files) == sum(path is not None for path in paths):
        raise ValueError(
            f"{option}={value!r} names a part of a Hugging Face dataset, and {files[0]!r} is a file"
            " without parts: leave it out, or name the part's own file"
        )


def reader_of(path: str) -> Callable[..., Iterator[tuple[str, Any]]] | None:
    """What reads a file of that suffix; None for the id of a dataset."""
    return READERS.get(Path(path).suffix.lower())


def read_rows(
    path: str,
    split: str | None = None,
    on_bad: Callable[[str], None] | None = None,
    option: str = "data.path",
) -> Iterator[tuple[str, Any]]:
    """``(where, row)`` for each row; ``where`` names file and line, or file and row.

    Args:
        path: a .txt (rows are its lines), .yaml, .json (lists), .jsonl, .csv or .parquet file, the
            id of a Hugging Face dataset, or ``package:NAME`` for a file that this project carries.
        split: of a Hugging Face dataset; default ``train``. A file has none.
        on_bad: told of a line that cannot be parsed, which is then left out; default: raise.
        option: which one gave ``path``, for errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read.
    """
    if not isinstance(path, str) or not path.strip():
        raise ValueError(f"{option}={path!r} names no file: give its path, or a dataset's id")
    file = ASSETS / path.removeprefix(PACKAGE) if path.startswith(PACKAGE) else Path(path)
    read = reader_of(path)
    if read is None:
        yield from _dataset(path, split or "train", option)
        return
    if not file.is_file():
        raise FileNotFoundError(f"{option}={path!r}: there is no such file ({file.absolute()})")
    try:
        yield from read(file, path, on_bad or _refuse)
    except UnicodeDecodeError as error:
        raise ValueError(f"{option}={path!r} is not UTF-8 text: {error}") from error


def _refuse(problem: str) -> None:
    raise ValueError(problem)


def _txt(file: Path, name: str, on_bad: Callable) -> Iterator[tuple[str, Any]]:
    yield from _numbered(_text(file), name)


def _yaml(file: Path, name: str, on_bad: Callable) -> Iterator[tuple[str, Any]]:
    try:
        rows = yaml.safe_load(_text(file))
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not YAML: {error}") from error
    yield from _list(rows, name)


def _json(file: Path, name: str, on_bad: Callable) -> Iterator[tuple[str, Any]]:
    text = _text(file)
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.strip() and not text.lstrip().startswith("["):  # JSON lines in a file called .json
            yield from _lines(text, name, on_bad)
            return
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{name}{where}: not JSON ({error})") from error
    yield from _list([rows] if isinstance(rows, dict) else rows, name)


def _jsonl(file: Path, name: str, on_bad: Callable) -> Iterator[tuple[str, Any]]:
    """One row a line; or a whole list under this name, as long as it is no conversation."""
    text = _text(file)
    if text.lstrip().startswith("[") and (rows := _list_of_rows(text)) is not None:
        yield from _list(rows, name)
    else:
        yield from _lines(text, name, on_bad)


def _list_of_rows(text: str) -> list[Any] | None:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError):
        return None
    conversation = all(isinstance(row, dict) and "role" in row for row in rows)
    return None if conversation else rows


def _lines(text: str, name: str, on_bad: Callable) -> Iterator[tuple[str, Any]]:
    for where, line in _numbered(text, name):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            on_bad(f"{where}: not JSON ({error}): {line[:80]!r}")
            continue
        yield where, row


def _csv(file: Path, name: str, on_bad: Callable) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(_text(file), newline=""))
    header = [heading.strip() for heading in next(reader, [])]
    columns = [i for i, heading in enumerate(header) if heading]
    places, rows = [], []
    for number, cells in enumerate(filter(None, reader), start=1):
        where = f"{name}, row {number}"
        while len(cells) > len(header) and not cells[-1]:
            cells.pop()  # a comma at the end
        if len(cells) == len(header):
            places.append(where)
            rows.append([cells[i] for i in columns])
        else:
            on_bad(
                f"{where}: {len(cells)} cells under {len(header)} headings: quote commas in text"
            )
    typed = [_typed(column) for column in zip(*rows, strict=True)]
    for where, *cells in zip(places, *typed, strict=True):
        yield where, dict(zip((header[i] for i in columns), cells, strict=True))


def _typed(cells: Sequence[str]) -> list[Any]:
    """A column of numbers as numbers, where nothing is lost by that; empty cells as None."""
    given = [cell for cell in cells if cell]
    for kinds in ((int,), (int, float)):
        if given and all(any(_is(kind, cell) for kind in kinds) for cell in given):
            return [kinds[-1](cell) if cell else None for cell in cells]
    return [cell or None for cell in cells]


def _is(kind: type, cell: str) -> bool:
    try:
        return str(kind(cell)) == cell or (kind is float and "e" in cell and bool(float(cell)))
    except ValueError:
        return False


def _text(file: Path) -> str:
    return file.read_bytes().decode("utf-8-sig")


def _numbered(text: str, name: str) -> Iterator[tuple[str, str]]:
    """Lines that are not blank, with their place; only a newline ends a line."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{name}, line {number}", line.removesuffix("\r")


def _parquet(file: Path, name: str, on_bad: Callable) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except Exception as error:
        raise ValueError(f"{name!r} could not be read: {error}") from error
    yield from _list(rows, name)


def _list(rows: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(rows, list):
        raise ValueError(f"{name} must hold a list, not {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        yield f"{name}, row {number}", row


def _dataset(path: str, split: str, option: str) -> Iterator[tuple[str, Any]]:
    import datasets  # heavy: only where it is needed

    try:
        rows = datasets.load_dataset(path, split=split)
    except Exception as error:
        raise ValueError(f"{option}={path!r} could not be read: {error}") from error
    for number, row in enumerate(rows, start=1):
        yield f"{path}, row {number}", row


READERS = {
    ".txt": _txt,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".json": _json,
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}
