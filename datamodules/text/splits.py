"""Data sets of several parts: folders of files, folders that ``save_to_disk`` wrote, the hub's."""

import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.text.readers import KINDS, OnBad, Rows, read_file, reader_of

SPLITS = {
    "train": "train training",
    "validation": "validation valid val dev",
    "test": "test testing eval evaluation",
}
"""Split -> words in the name of a file that belongs to it, as ``datasets`` reads them."""
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.")
NO_DATA = re.compile(r"readme|licen[sc]e|dataset_infos?\.json|state\.json|requirements|\.git|_")
Parts = Mapping[str, Callable[[OnBad, Collection[str]], Rows]]
"""Split -> what reads it."""


def parts_of(path: str, name: str | None = None, option: str = "data.path") -> Parts:
    """The splits of a folder here, or of a data set of the hub.

    Args:
        name: which of its configurations; None where it has one alone.

    Raises:
        ValueError: it cannot be read, or needs a name.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return _of_datasets(path, name, option)
    saved = (folder / "dataset_dict.json", folder / "state.json")
    if any(file.is_file() for file in saved):
        if name is not None:
            raise ValueError(
                f"{_sibling(option, 'name')}={name!r} has no use: the folder {path!r} was written"
                " by save_to_disk, which keeps one configuration: leave it out"
            )
        return _of_datasets(path, None, option, saved=True)
    card = folder / "README.md"
    if card.is_file() and "configs:" in card.read_text(encoding="utf-8", errors="replace"):
        return _of_datasets(str(folder), name, option)
    if name is not None:
        raise ValueError(
            f"{_sibling(option, 'name')}={name!r} has no use: the folder {path!r} has no README.md"
            " that lists configurations: leave it out, or give the folder of that name"
        )
    return _of_folder(folder, path, option)


def choose(parts: Parts, split: str | None, path: str, option: str = "data.path") -> str:
    """The split that is read: the one asked for, else ``train``, else the only one, and it says so.

    Raises:
        ValueError: there is no such split, or it has to be named.
    """
    asked = _sibling(option, "split")
    if split is not None:
        if split not in parts and split.split("[")[0] not in parts:
            raise ValueError(f"{asked}={split!r}: {path!r} has the splits {', '.join(parts)}")
        return split
    if "train" in parts:
        return "train"
    if len(parts) > 1:
        raise ValueError(
            f"{option}={path!r} has the splits {', '.join(parts)}: name one in {asked}"
        )
    (only,) = parts
    if only != WHOLE:
        warnings.warn(f"{option}={path!r}: its only split, {only}, is read", stacklevel=3)
    return only


def held_out_split(
    path: str, split: str | None, name: str | None, option: str = "data.path"
) -> Any:
    """The split that a data set has for evaluation beside ``split``; None if it has none."""
    parts = parts_of(path, name, option)
    read = choose(parts, split, path, option).split("[")[0]
    others = [read.replace("train", other) for other in ("test", "validation")]
    return next((other for other in others if other in parts and other != read), None)


WHOLE = "all"
"""The only part of a data set without splits."""


def _sibling(option: str, name: str) -> str:
    """Of ``data.eval_path``, ``data.eval_split``; a configuration's name is of both paths."""
    start = "eval_path" if name == "name" and "eval_path" in option else "path"
    return option.replace(start, name)


def _of_folder(folder: Path, path: str, option: str) -> Parts:
    """Every data file below ``folder``, by the split that its name says.

    Raises:
        ValueError: there is none, they are of several kinds, or some say a split and others none.
    """
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and reader_of(f.name)]
    inside = [(f, f.relative_to(folder)) for f in files if not NO_DATA.match(f.name.lower())]
    files = [f for f, r in inside if not any(part.startswith(".") for part in r.parts)]
    kinds = {f.name.lower().removesuffix(".gz").rpartition(".")[2] for f in files}
    if not files:
        raise ValueError(f"{option}={path!r} is a folder without data files: {KINDS}")
    if len(kinds) > 1:
        raise ValueError(
            f"{option}={path!r} is a folder with files of several kinds ({', '.join(sorted(kinds))}"
            "): name one file, or a folder whose files are alike"
        )
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file.relative_to(folder)), []).append(file)
    if "" in splits and len(splits) > 1:
        named = next(fs[0] for split, fs in splits.items() if split)
        raise ValueError(
            f"{option}={path!r}: {splits[''][0].name} says no split in its name, and {named.name}"
            " does: rename it (train, test, validation), or name one file"
        )
    return {split or "train": _files(list_, option) for split, list_ in splits.items()}


def _split_of(file: Path) -> str:
    if shard := SHARD.match(file.name):
        return shard[1]
    words = {word for part in reversed(file.parts) for word in re.split(r"[^a-z]+", part.lower())}
    return next((s for s, names in SPLITS.items() if words & set(names.split())), "")


def _files(files: Sequence[Path], option: str) -> Callable[[OnBad, Collection[str]], Rows]:
    def read(on_bad: OnBad, text: Collection[str]) -> Rows:
        for file in files:
            yield from read_file(file, str(file), on_bad, text, option)

    return read


def _of_datasets(path: str, name: str | None, option: str, saved: bool = False) -> Parts:
    import datasets  # heavy: only where it is needed

    try:
        if not saved:
            names = datasets.get_dataset_split_names(path, name)
            return {split: _later(path, name, split) for split in names}
        made = datasets.load_from_disk(str(Path(path).expanduser()))
    except Exception as error:
        named = f" ({_sibling(option, 'name')} names one)" if "Config" in str(error) else ""
        here = "" if Path(path).exists() else ": there is no such file or folder, and as a data set"
        raise ValueError(f"{option}={path!r}{here} could not be read: {error}{named}") from error
    splits = made if isinstance(made, Mapping) else {WHOLE: made}
    return {split: _rows(rows, path) for split, rows in splits.items()}


def _later(path: str, name: str | None, split: str) -> Callable[[OnBad, Collection[str]], Rows]:
    """What reads one split, and the others never."""

    def read(on_bad: OnBad, text: Collection[str]) -> Rows:
        yield from sliced(path, name, split)(on_bad, text)

    return read


def _rows(rows: Any, path: str) -> Callable[[OnBad, Collection[str]], Rows]:
    def read(on_bad: OnBad, text: Collection[str]) -> Rows:
        for number, row in enumerate(rows, start=1):
            yield f"{path}, row {number}", row

    return read


def sliced(
    path: str, name: str | None, split: str, option: str = "data.path"
) -> Callable[[OnBad, Collection[str]], Rows]:
    """What reads a split, or a slice of one, ``train[:10%]``, as ``datasets`` has it.

    Raises:
        ValueError: it cannot be read; a folder's files are read whole.
    """
    import datasets

    try:
        return _rows(datasets.load_dataset(path, name, split=split), path)
    except Exception as error:
        asked = f"{_sibling(option, 'split')}={split!r}"
        raise ValueError(f"{asked} of {path!r} could not be read: {error}") from error
