"""Rows of a file, of a folder or of a Hugging Face dataset, each with the words that say where it
stands.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from datamodules.text import splits
from datamodules.text.readers import KINDS, read_file, reader_of

ASSETS = Path(__file__).parents[1] / "assets"
PACKAGE = "package:"
"""Prefix of files that this project carries: ``package:openings_train.txt``."""


def require_path(option: str, value: Any, *paths: str | None) -> None:
    """
    Raises:
        ValueError: ``value`` is set, and nothing is read that it could be of.
    """
    if value is not None and not any(paths):
        group = option.partition(".")[0]
        raise ValueError(f"{option}={value!r} has no use: no {group}.path is read")


def require_dataset(option: str, value: str | None, *paths: str | None) -> None:
    """
    Raises:
        ValueError: a part is named, and none of the paths is a folder or a Hugging Face dataset.
    """
    require_path(option, value, *paths)
    files = [path for path in paths if path is not None and is_file(path)]
    if value is not None and len(files) == sum(path is not None for path in paths):
        raise ValueError(
            f"{option}={value!r} names a part of a Hugging Face dataset, and {files[0]!r} is a file"
            " without parts: leave it out, or name the part's own file"
        )


def is_file(path: str) -> bool:
    """Whether it is one file's name, and not a folder or the id of a dataset."""
    if path.startswith(PACKAGE):
        return True
    return not Path(path).expanduser().is_dir() and (
        reader_of(path) is not None or Path(path).expanduser().is_file()
    )


def held_out_split(
    path: str | None, split: str | None, name: str | None, option: str = "data.path"
) -> str | None:
    """The split that ``path`` has for evaluation beside ``split``; None if it has none.

    Raises:
        ValueError: the dataset cannot be read.
    """
    if path is None or is_file(path):
        return None
    return splits.held_out_split(path, split, name, option)


def read_rows(
    path: str,
    split: str | None = None,
    on_bad: Callable[[str], None] | None = None,
    option: str = "data.path",
    *,
    name: str | None = None,
    text: Collection[str] = (),
) -> Iterator[tuple[str, Any]]:
    """``(where, row)`` for each row; ``where`` names file and line, or file and row.

    Args:
        path: a .txt (rows are its lines), .yaml, .json (lists), .jsonl, .ndjson, .csv, .tsv or
            .parquet file, or one of these with .gz; a folder of such files, or one that
            ``save_to_disk`` wrote; the id of a Hugging Face dataset; or ``package:NAME`` for a file
            that this project carries.
        split: of a folder or a dataset; default ``train``, or the only one. A file has none.
        on_bad: told of a row that cannot be read, which is then left out; default: raise.
        option: which one gave ``path``, for errors.
        name: which configuration of a dataset that has several.
        text: columns of .csv and .tsv files that are text, though they look like numbers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read.
    """
    if not isinstance(path, str) or not path.strip():
        raise ValueError(f"{option}={path!r} names no file: give its path, or a dataset's id")
    told = on_bad or _refuse
    for where, row in _read(path, split, told, option, name, text):
        if (broken := half_a_character(row)) is not None:
            told(f"{where}: {broken}")
        else:
            yield where, row


def _read(
    path: str,
    split: str | None,
    on_bad: Callable[[str], None],
    option: str,
    name: str | None,
    text: Collection[str],
) -> Iterator[tuple[str, Any]]:
    if not is_file(path):
        _require_there(path, option)
        parts = splits.parts_of(path, name, option)
        chosen = splits.choose(parts, split, path, option)
        if chosen not in parts:
            parts = {chosen: splits.sliced(path, name, chosen, option)}
        yield from parts[chosen](on_bad, text)
        return
    file = ASSETS / path.removeprefix(PACKAGE) if path.startswith(PACKAGE) else Path(path)
    file = file.expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{option}={path!r}: there is no such file ({file.absolute()})")
    if reader_of(path) is None:
        raise ValueError(
            f"{option}={path!r} is a file of no kind that is read: {KINDS}. Rename it, if it is one"
        )
    require_dataset(option.replace("path", "split"), split, path)
    require_dataset(option.replace("eval_path", "path").replace("path", "name"), name, path)
    yield from read_file(file, path, on_bad, text, option)


def _require_there(path: str, option: str) -> None:
    """
    Raises:
        FileNotFoundError: it can be no dataset's id, and there is no such folder.
    """
    outside = path.startswith(("/", ".", "~")) or path.count("/") > 1 or "\\" in path
    if outside and not Path(path).expanduser().exists():
        there = Path(path).expanduser().absolute()
        raise FileNotFoundError(f"{option}={path!r}: there is no such file or folder ({there})")


def _refuse(problem: str) -> None:
    raise ValueError(problem)


def half_a_character(value: Any) -> str | None:
    """What is wrong with a text in ``value`` that no encoding can write; None if nothing is."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"half a character (a lone surrogate) stands in {value[:60]!r}: mend it"
        return None
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return next((bad for item in value if (bad := half_a_character(item)) is not None), None)
    return None
