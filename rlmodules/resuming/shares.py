"""Checkpoints in shares: a small file, and beside it a folder with a file of each process.

``last.ckpt`` holds all but the values of tensors that were shared out. It has their shapes and
types (tensors on the device "meta"), and says where in the folder ``last.ckpt.shares-1a2b3c4d``
which of their rows are. ``torch.distributed.checkpoint`` writes and reads that folder's files, so
that any number of processes finds its own shares in those of any other number. (Its index is a
pickle, which is never opened here: ours are plain values in the small file.)

What the small file names is there, whole: it takes the place of the older one after all shares are
on the disk, and the older one's shares are removed after that.
"""

import glob
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint import (
    CheckpointException,
    FileSystemReader,
    load,
)
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from datamodules.atomic import replacing
from rlmodules.resuming.torch_files import read_file

IN_SHARES = 3
"""The format of a checkpoint whose tensors lie in shares."""
SHARES = "shares"
MARK = ".shares-"
PARTS = ("state_dict", "optimizer_states")
"""Of a checkpoint, what has tensors that are shared out."""


class Piece(NamedTuple):
    """Where some rows of a tensor are."""

    offsets: list[int]
    sizes: list[int]
    relative_path: str
    offset: int
    length: int
    transform_descriptors: None = None
    """Read by torch: how the file is encoded."""


class Share(NamedTuple):
    """Stands for a tensor whose values are read where it is known which of them are needed."""

    key: str
    dtype: torch.dtype


@dataclass(frozen=True)
class Shares:
    """What lies beside a checkpoint.

    Args:
        folder: that it is in.
        tensors: every one, without values, by its place in the checkpoint.
        pieces: where each one's values are.
    """

    folder: Path
    tensors: Mapping[str, Tensor]
    pieces: Mapping[str, list[Piece]]

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any], path: str | Path) -> "Shares | None":
        """Those of the checkpoint in ``path``; None if all is in that file.

        Raises:
            ValueError: some of them are not there, or not whole.
        """
        said = checkpoint.get(SHARES)
        if said is None:
            return None
        folder, tensors = Path(path).resolve().parent / said["folder"], {}
        mapped(checkpoint, lambda key, tensor: tensors.update({key: tensor}), only_meta=True)
        refused = f"ckpt_path={str(path)!r} is only a part of a checkpoint: "
        if not folder.is_dir():
            raise ValueError(
                f"{refused}the weights are in {folder}, which is not there. Copy that folder beside"
                " it, from where it was written"
            )
        pieces = {key: [Piece(*piece) for piece in found] for key, found in said["pieces"].items()}
        if missing := lacking(folder, pieces):
            raise ValueError(
                f"{refused}{missing}. Copy it from where it was written, or use an older checkpoint"
            )
        return cls(folder, tensors, pieces)

    def read(self, into: dict[str, Tensor]) -> None:
        """Fill tensors; of one that is shared out, this process's share.

        Raises:
            ValueError: the files are damaged, or a tensor has another shape.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            try:
                load(into, storage_reader=_Reader(self), no_dist=True)
            except CheckpointException as error:
                cause = cause_of(error)
                raise ValueError(
                    f"{self.folder} does not hold what the checkpoint beside it says: use an older"
                    f" one ({type(cause).__name__}: {cause})"
                ) from cause


class _Reader(FileSystemReader):
    """Knows where everything is from the checkpoint, where torch would open a pickle."""

    def __init__(self, shares: Shares) -> None:
        super().__init__(shares.folder)
        self.shares = shares

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        described, places = {}, {}
        for key, tensor in self.shares.tensors.items():
            chunks = []
            for piece in self.shares.pieces[key]:
                places[MetadataIndex(key, piece.offsets)] = piece
                sizes = torch.Size(piece.sizes)
                chunks.append(ChunkStorageMetadata(torch.Size(piece.offsets), sizes))
            properties = TensorProperties(dtype=tensor.dtype)
            described[key] = TensorStorageMetadata(properties, tensor.size(), chunks)
        meta = StorageMeta(load_id=self.load_id)
        return Metadata(dict(described), storage_data=places, storage_meta=meta)


def lacking(folder: Path, pieces: Mapping[str, list[Piece]]) -> str | None:
    """What of the files that hold ``pieces`` is not in ``folder``."""
    sizes: dict[str, int] = {}
    for piece in chain(*pieces.values()):
        end = piece.offset + piece.length
        sizes[piece.relative_path] = max(end, sizes.get(piece.relative_path, 0))
    for name, size in sorted(sizes.items()):
        file = folder / name
        if not file.is_file() or file.stat().st_size < size:
            return f"{file} {'is cut short' if file.is_file() else 'is not there'}"
    return None


def with_values(
    checkpoint: dict[str, Any], path: str | Path, parts: tuple[str, ...] = PARTS
) -> dict[str, Any]:
    """``checkpoint`` with whole tensors, as one process uses it; as it is, if it is in one file.

    Args:
        path: of its file.
        parts: which to read; of others there are names and shapes alone.

    Raises:
        ValueError: some of its shares are not there, or are damaged.
    """
    shares = Shares.of(checkpoint, path)
    if shares is None:
        return checkpoint
    whole: dict[str, Tensor] = {}

    def room(key: str, tensor: Tensor) -> Tensor:
        whole[key] = torch.empty(tensor.shape, dtype=tensor.dtype)
        return whole[key]

    parts = tuple(part for part in parts if part in checkpoint)
    filled = checkpoint | mapped(checkpoint, room, parts, only_meta=True)
    shares.read(dict(whole))
    return {name: value for name, value in filled.items() if name != SHARES}


def with_places(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """``checkpoint`` with a ``Share`` in the place of each tensor whose values lie beside it."""

    def place(key: str, tensor: Tensor) -> Share:
        return Share(key, tensor.dtype)

    return checkpoint | mapped(checkpoint, place, only_meta=True)


def copy_checkpoint(path: Path, place: Path) -> None:
    """Copy a checkpoint's file to ``place``, in another folder, and what lies beside it."""
    if (name := named_by(path)) is not None and not place.with_name(name).exists():
        with replacing(place.with_name(name)) as partial:
            shutil.copytree(path.with_name(name), partial)
    with replacing(place) as partial:
        shutil.copyfile(path, partial)
    remove_unnamed(place)


def remove_unnamed(path: Path) -> None:
    """Remove what an older checkpoint in ``path`` had beside it, but what another file names."""
    _remove(set(path.parent.glob(f"{glob.escape(path.name)}{MARK}*")), path.parent)


def remove_link(path: Path) -> None:
    """Remove a checkpoint that is a link or a copy, whose shares are called as those that it was
    made of, and them, but for what another file names."""
    name = named_by(path)
    path.unlink()
    if name is not None:
        _remove({path.with_name(name)}, path.parent)


def _remove(shares: set[Path], folder: Path) -> None:
    if shares:
        named = {named_by(file) for file in folder.iterdir() if file.is_file()}
        for found in shares:
            if found.name not in named:
                shutil.rmtree(found, ignore_errors=True)


def named_by(path: Path) -> str | None:
    """The folder that a checkpoint says its shares are in."""
    try:
        found = read_file(path, mmap=True)
    except (OSError, ValueError):
        return None
    return found.get(SHARES, {}).get("folder") if isinstance(found, dict) else None


def mapped(
    checkpoint: Mapping[str, Any],
    change: Callable[[str, Tensor], Any],
    parts: tuple[str, ...] = PARTS,
    *,
    only_meta: bool = False,
) -> dict[str, Any]:
    """``parts`` with what ``change`` makes of each tensor, given its place."""

    def below(key: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(key, value) if value.is_meta or not only_meta else value
        if isinstance(value, dict):
            return {name: below(f"{key}/{name}", part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(below(f"{key}/{i}", part) for i, part in enumerate(value))
        return value

    return {part: below(part, checkpoint[part]) for part in parts if part in checkpoint}


def cause_of(error: CheckpointException) -> BaseException:
    """What happened, in one of the processes that it happened to."""
    return next(iter(error.failures.values()))[0]
