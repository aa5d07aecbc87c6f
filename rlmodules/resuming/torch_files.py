"""Files of tensors and plain values, of which no pickle is opened."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch


def read_file(path: str | Path, map_location: Any = None, *, mmap: bool = False) -> Any:
    """What a torch file holds, if that is tensors and plain values.

    Raises:
        ValueError: it is something else; a pickle is never opened.
    """
    refused = f"ckpt_path={str(path)!r} is no checkpoint of ours: "
    with Path(path).open("rb") as file:
        head = file.read(16)
    if head[:2] == b"PK" and not zipfile.is_zipfile(path):
        size = Path(path).stat().st_size
        raise ValueError(f"{refused}its end is missing ({size} bytes are there); use an older one")
    if head[:2] != b"PK":
        kind = "empty" if not head else "no torch file"
        if Path(path).suffix == ".safetensors" or head[8:9] == b"{":
            kind = "a safetensors file, weights alone; start from its folder by model.name=FOLDER"
        elif head[:1] == b"\x80":
            kind = "a pickle, which could run programs, and is not opened"
        raise ValueError(f"{refused}it is {kind}")
    try:
        return torch.load(path, map_location=map_location or "cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{refused}it holds more than tensors and plain values, and is not opened ({error})"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError) as error:
        raise ValueError(f"{refused}it is damaged; use an older one ({error})") from error
