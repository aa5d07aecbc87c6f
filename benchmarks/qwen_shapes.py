"""Folders that hold the config.json of Qwen2.5's models, and no weights: nothing of a hub."""

import json
from pathlib import Path
from typing import Any

from on_gpu.shapes import SHAPES as MEASURED

SHAPES: dict[str, dict[str, Any]] = {
    "0.5B": MEASURED["0.5B"],
    "1.5B": MEASURED["1.5B"],
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
           "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064},
}  # fmt: skip


def config_folder(size: str, folder: Path) -> Path:
    """A model's folder that says how large it is."""
    path = folder / size
    path.mkdir(parents=True, exist_ok=True)
    settings = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"],
                "max_position_embeddings": 32768, "tie_word_embeddings": size != "7B",
                **SHAPES[size]}  # fmt: skip
    (path / "config.json").write_text(json.dumps(settings))
    return path
