"""Checkpoints of a pipeline: written whole or not at all, and read without executing anything.

A checkpoint is a folder: ``model.safetensors`` with the trained weights, ``optimizer.pt`` and
``state.pt`` with tensors and plain values, and last ``manifest.json`` with the size and the hash of
each. An earlier one of that name stays until the new one is complete.
"""

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from datamodules.atomic import replacing, swap

FORMAT = "rlmodules-pipeline-1"
FILES = {
    "model_path": "model.safetensors",
    "optimizer_path": "optimizer.pt",
    "state_path": "state.pt",
}


class CheckpointError(ValueError):
    """The folder is no complete checkpoint of this model; nothing was loaded."""


def to_cpu(value: Any) -> Any:
    """A copy on the CPU that later training does not change."""
    return apply_to_collection(value, Tensor, lambda x: x.detach().to("cpu", copy=True))


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """What training may change, by name: parameters with gradients, and buffers that are saved."""
    names = set(model.state_dict().keys())
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return weights | {name: b for name, b in model.named_buffers() if name in names}


def frozen_digest(model: nn.Module) -> str:
    """Of names, shapes and first numbers of what is not trained: which base adapters belong to."""
    digest = hashlib.sha256()
    for name, p in model.named_parameters():
        if not p.requires_grad:
            first = p.detach().flatten()[:16].float().cpu().numpy().tobytes()
            digest.update(f"{name}{list(p.shape)}".encode() + first)
    return digest.hexdigest()


def write(folder: Path, weights: dict[str, Tensor], optimizer: dict, state: dict) -> dict[str, str]:
    """Write a checkpoint; returns the paths of its parts.

    What is there already is replaced once the new one is complete and on the disk.
    """
    folder = restored(folder.absolute())
    with replacing(folder, _exchange) as partial:
        partial.mkdir()
        save_file(weights, partial / FILES["model_path"])
        torch.save(optimizer, partial / FILES["optimizer_path"])
        torch.save(state, partial / FILES["state_path"])
        files = {name: _fingerprint(partial / name) for name in FILES.values()}
        manifest = {"format": FORMAT, "files": files}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    return paths(folder)


def paths(folder: Path) -> dict[str, str]:
    """Of a checkpoint and its parts."""
    return {"path": str(folder)} | {key: str(folder / name) for key, name in FILES.items()}


def _exchange(new: Path, place: Path) -> None:
    if place.exists() and not (place / "manifest.json").is_file():
        raise CheckpointError(
            f"{str(place)!r} is there and no checkpoint of ours: it is left as it is; choose"
            " another name"
        )
    swap(new, place)


def read(folder: Path, model: nn.Module) -> tuple[dict[str, Tensor], dict, dict]:
    """Weights, optimizer and state of a checkpoint of ``model``, checked before anything is used.

    Raises:
        CheckpointError: a file is missing, cut short or changed, or it is of another model.
    """
    folder = restored(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"its format is {manifest['format']!r}, expected {FORMAT!r}")
        for name in FILES.values():
            if _fingerprint(folder / name) != manifest["files"][name]:
                raise CheckpointError(f"{name} was cut short or changed after it was written")
        weights = load_file(folder / FILES["model_path"])
        optimizer, state = (
            torch.load(folder / FILES[key], weights_only=True, map_location="cpu")
            for key in ("optimizer_path", "state_path")
        )
        _require_same(trained_weights(model), weights)
        if state["frozen"] != frozen_digest(model):
            raise CheckpointError("its adapters belong to another base model")
    except CheckpointError as error:
        raise CheckpointError(f"{str(folder)!r} was not loaded: {error}") from error
    except Exception as error:  # whatever a broken file makes its reader say
        raise CheckpointError(f"{str(folder)!r} is no complete checkpoint: {error!r}") from error
    return weights, optimizer, state


def restored(folder: Path) -> Path:
    """``folder``; one that a kill left moved aside, between two renames, is moved back first."""
    for old in sorted(folder.absolute().parent.glob(f".{folder.name}.*.old")):
        if not folder.exists():
            os.replace(old, folder)
    return folder


def located(parent: Path, path: Path) -> Path:
    """The checkpoint ``path`` of the folder ``parent``, or the one at ``path`` itself."""
    inside = restored(parent / path)
    return inside if inside.exists() else restored(path)


def _require_same(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    if expected.keys() != found.keys():
        lacks, more = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        raise CheckpointError(
            f"it is of another model: it lacks {lacks[:3]} and has {more[:3]} besides"
        )
    for name, weight in expected.items():
        if weight.shape != found[name].shape or weight.dtype != found[name].dtype:
            raise CheckpointError(
                f"it is of another model: {name} is {found[name].dtype} {list(found[name].shape)},"
                f" here {weight.dtype} {list(weight.shape)}"
            )


def random_state() -> dict[str, Any]:
    """Of Python, NumPy, PyTorch and its devices, as tensors and plain values."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, keys.tolist(), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _fingerprint(path: Path) -> list[Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return [path.stat().st_size, digest.hexdigest()]
