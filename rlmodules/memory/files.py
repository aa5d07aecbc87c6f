"""Sizes of the files that a model's weights are read from."""

from pathlib import Path

from rlmodules.models import ModelConfig, embedded_model_dir
from rlmodules.models.embedded import EMBEDDED, TINY

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")


def file_bytes(config: ModelConfig) -> int:
    """Bytes of the files of ``config``'s model on this machine; 0 where they are not here yet."""
    if config.name == TINY:
        return 0
    if config.name.endswith(".gguf"):
        return Path(config.name).stat().st_size
    folder = embedded_model_dir() if config.name == EMBEDDED else Path(config.name)
    if folder.is_dir():
        kinds = (sorted(folder.glob(kind)) for kind in WEIGHTS)
        return sum(path.stat().st_size for path in next(filter(None, kinds), []))
    return 0
