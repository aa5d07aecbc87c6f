"""Writing a checkpoint in shares, all processes together (``rlmodules.resuming.shares``)."""

import secrets
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, FileSystemWriter, save
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor

from datamodules.atomic import replacing
from rlmodules.resuming.shares import (
    IN_SHARES,
    MARK,
    SHARES,
    Piece,
    cause_of,
    lacking,
    mapped,
)

REMEDY = "trainer.strategy.save_distributed_checkpoint=false writes one file"


class _Writer(FileSystemWriter):
    """Says where everything is, where torch would write a pickle."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.pieces: dict[str, list[Piece]] = {}
        """By the tensor's place in the checkpoint; in the first process, once all is written."""

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self.pieces = {key: [] for key in metadata.state_dict_metadata}
        for written in chain(*results):
            key, at, place = written.index.fqn, written.index.offset, written.storage_data
            described: Any = metadata.state_dict_metadata[key]
            sizes = next(chunk.sizes for chunk in described.chunks if chunk.offsets == at)
            if 0 not in sizes:
                where = (place.relative_path, place.offset, place.length)
                self.pieces[key].append(Piece(list(at or ()), list(sizes), *where))


def write_shares(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """Write all tensors of ``checkpoint`` that are shared out, each process its own shares.

    All processes enter together; each needs no more memory than one tensor's share.

    Args:
        path: of the file that will hold the rest.

    Returns:
        What that file is to hold.

    Raises:
        StorageError: the disk does not take it.
        ValueError: not all processes write to one disk.
    """
    tensors: dict[str, Any] = {}

    def without_values(key: str, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, DTensor):
            return tensor.cpu()
        tensors[key] = tensor
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    rest = checkpoint | mapped(checkpoint, without_values)
    needs = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    token = _from_first(secrets.token_hex(4))
    folder = path.with_name(f"{path.name}{MARK}{token}")
    found = _write(tensors, folder, needs)
    pieces = {key: [list(piece[:-1]) for piece in each] for key, each in found.items()}
    return rest | {"format": IN_SHARES, SHARES: {"folder": folder.name, "pieces": pieces}}


def _write(tensors: dict[str, Any], folder: Path, needs: int) -> dict[str, list[Piece]]:
    """Where each tensor's values are; in the first process alone."""
    first = dist.get_rank() == 0
    with replacing(folder, needs=needs) if first else nullcontext(folder) as partial:
        if first:
            partial.mkdir()
        partial = Path(_from_first(str(partial)))
        _require_seen(partial, folder.parent)
        writer = _Writer(partial)
        try:
            save(tensors, storage_writer=writer)
        except CheckpointException as error:
            raise cause_of(error) from None
        if missing := lacking(partial, writer.pieces):
            raise ValueError(f"{folder} could not be written: {missing}; {REMEDY}")
    return writer.pieces


def require_one_disk(folder: Path) -> None:
    """
    Raises:
        ValueError: ``folder`` is not the same one for all processes, which enter together.
    """
    first = dist.get_rank() == 0
    if first:
        folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".seen-", dir=folder) if first else nullcontext("") as made:
        _require_seen(Path(_from_first(made)), folder)


def _require_seen(made: Path, folder: Path) -> None:
    """Raise, in all processes, if one does not find what the first has just made in ``folder``."""
    seen: list[bool] = [False] * dist.get_world_size()
    dist.all_gather_object(seen, made.is_dir())
    if not all(seen):
        raise ValueError(
            f"{folder}, where checkpoints are written, is another folder for process"
            f" {seen.index(False)} than for the first one, but each writes its share there: give"
            f" all machines one disk for the run's folder (hydra.run.dir, output_dir); or {REMEDY}"
        )


def _from_first(value: str) -> str:
    said = [value]
    dist.broadcast_object_list(said)
    return said[0]
