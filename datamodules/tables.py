"""Rows of a file or of a Hugging Face dataset, each with the words that say where it stands."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ASSETS = Path(__file__).parent / "assets"
PACKAGE = "package:"
"""Prefix of files that this project carries: ``package:openings_train.txt``."""


def read_rows(
    path: str, split: str = "train", on_bad: Callable[[str], None] | None = None
) -> Iterator[tuple[str, Any]]:
    """``(where, row)`` for each row; ``where`` names file and line, or file and row.

    Args:
        path: a .txt (rows are its lines), .yaml, .json (lists), .jsonl, .csv or .parquet file, the
            id of a Hugging Face dataset, or ``package:NAME`` for a file that this project carries.
        split: of a Hugging Face dataset.
        on_bad: told of a line that cannot be parsed, which is then left out; default: raise.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read.
    """
    file = ASSETS / path.removeprefix(PACKAGE) if path.startswith(PACKAGE) else Path(path)
    read = READERS.get(file.suffix.lower())
    if read is None:
        yield from _dataset(path, split)
        return
    if not file.is_file():
        raise FileNotFoundError(f"data.path={path!r}: there is no such file ({file.absolute()})")
    try:
        yield from read(file, path, on_bad or _refuse)
    except UnicodeDecodeError as error:
        raise ValueError(f"data.path={path!r} is not UTF-8 text: {error}") from error


def _refuse(problem: str) -> None:
    raise ValueError(problem)


def _txt(file: Path, name: str, on_bad: Callable) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            yield f"{name}, line {number}", line


def _yaml(file: Path, name: str, on_bad: Callable) -> Iterator[tuple[str, Any]]:
    yield from _list(yaml.safe_load(file.read_text(encoding="utf-8")), name)


def _json(file: Path, name: str, on_bad: Callable) -> Iterator[tuple[str, Any]]:
    text = file.read_text(encoding="utf-8-sig")
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise ValueError(
                f"{name}, line {error.lineno}: not JSON ({error.msg} at column {error.colno})"
            ) from error
        yield from _lines(text, name, on_bad)  # JSON lines in a file called .json
        return
    yield from _list(rows, name)


def _jsonl(file: Path, name: str, on_bad: Callable) -> Iterator[tuple[str, Any]]:
    yield from _lines(file.read_text(encoding="utf-8-sig"), name, on_bad)


def _lines(text: str, name: str, on_bad: Callable) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            on_bad(f"{where}: not JSON ({error.msg} at column {error.colno}): {line[:80]!r}")
            continue
        yield where, row


def _csv(file: Path, name: str, on_bad: Callable) -> Iterator[tuple[str, Any]]:
    import pandas

    try:  # numbers become numbers; only an empty cell is missing, not the word "None"
        table = pandas.read_csv(file, keep_default_na=False, na_values=[""], encoding="utf-8-sig")
    except pandas.errors.EmptyDataError:
        return
    except pandas.errors.ParserError as error:
        raise ValueError(f"data.path={name!r} could not be read: {error}") from error
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    yield from _list(rows, name)


def _parquet(file: Path, name: str, on_bad: Callable) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except Exception as error:
        raise ValueError(f"data.path={name!r} could not be read: {error}") from error
    yield from _list(rows, name)


def _list(rows: Any, name: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(rows, list):
        raise ValueError(f"{name} must hold a list, not {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        yield f"{name}, row {number}", row


def _dataset(path: str, split: str) -> Iterator[tuple[str, Any]]:
    import datasets  # heavy: only where it is needed

    try:
        rows = datasets.load_dataset(path, split=split)
    except Exception as error:
        raise ValueError(f"data.path={path!r} could not be read: {error}") from error
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
