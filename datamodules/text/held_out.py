"""What is held out for evaluation: where it comes from, and how much of it."""

from typing import NamedTuple

from datamodules.text.tables import held_out_split


class Source(NamedTuple):
    """Rows for evaluation alone."""

    path: str
    split: str | None
    option: str
    """Which one gave ``path``, for errors."""
    said: str
    """Where they come from, in words."""


def source_of(
    path: str | None,
    split: str | None,
    eval_path: str | None,
    eval_split: str | None,
    name: str | None = None,
    group: str = "data",
) -> Source | None:
    """Where held-out rows are read from; None where they have to be drawn from the training rows.

    A data set's own test split is taken where nothing else is said.

    Raises:
        ValueError: the data set cannot be read.
    """
    if eval_path is not None:
        option = f"{group}.eval_path"
        own = eval_split or held_out_split(eval_path, None, name, option)
        return Source(eval_path, own, option, f"{option}={eval_path}")
    if path is None:
        return None
    own = eval_split or held_out_split(path, split, name, f"{group}.path")
    if own is None:
        return None
    return Source(path, own, f"{group}.path", f"the split {own} of {path}")


def how_many(count: int, wanted: int | None, at_most: int, option: str = "data.eval_size") -> int:
    """How many of ``count`` training rows to hold out: a tenth, one at least, if none are wanted.

    Raises:
        ValueError: as many as wanted would leave none to train on.
    """
    if wanted is None:
        return min(max(count // 10, 1), at_most) if count > 1 else 0
    if 0 < wanted >= count:
        raise ValueError(
            f"{option}={wanted} would hold out all {count}: lower it, set it to 0, leave it out for"
            f" a tenth of them, or give {option.partition('.')[0]}.eval_path"
        )
    return wanted
