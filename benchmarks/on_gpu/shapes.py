"""Models of a size with random weights, and texts for them: nothing comes from a hub.

A token is a byte of a text; the vocabulary is filled up to its size by words that no text holds,
but that can be drawn.
"""

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

SHAPES: dict[str, dict[str, Any]] = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
             "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
             "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512},
}  # fmt: skip
"""Those of Qwen2.5's models of that size, and one to see that all runs."""
SIZES = {
    "full": {"episodes": 64, "minibatch": 16, "generations": 8, "prompt": 64, "response": 128,
             "pairs": 16, "pair_prompt": 128, "shortest": 64, "longest": 256},
    "tiny": {"episodes": 8, "minibatch": 4, "generations": 4, "prompt": 8, "response": 8,
             "pairs": 4, "pair_prompt": 8, "shortest": 4, "longest": 16},
}  # fmt: skip
"""Episodes and pairs of a step; lengths in tokens."""
LETTERS = "abcdefghijklmnopqrstuvwxyz     "


def tokenizer(size: int) -> PreTrainedTokenizerFast:
    """One token a byte; ``size`` tokens altogether."""
    special = ["<pad>", "<bos>", "<eos>"]
    known = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    known += [f"word{i}" for i in range(size - len(known))]
    vocabulary = {token: i for i, token in enumerate(known)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def model_folder(size: str, folder: Path, device: str) -> Path:
    """A checkpoint of that shape in bfloat16, made where it is missing."""
    path = folder / f"random-{size}"
    if (path / "done").is_file():
        return path
    torch.manual_seed(0)
    config = Qwen2Config(
        **SHAPES[size],
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.device(device):
        model = Qwen2ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(path)
    tokenizer(config.vocab_size).save_pretrained(path)
    (path / "done").touch()
    return path


def text(length: int, seed: int) -> str:
    """``length`` random letters, as many tokens."""
    return "".join(random.Random(seed).choices(LETTERS, k=length - 1)) + "."


def prompts(count: int, length: int) -> list[str]:
    return [text(length, seed) for seed in range(count)]


def pairs(count: int, prompt: int, shortest: int, longest: int) -> list[dict[str, str]]:
    """Pairs whose responses have lengths between the two."""
    drawn, rows = random.Random(0), []
    for i in range(count):
        sides = [text(drawn.randint(shortest, longest), 3 * i + k) for k in (1, 2)]
        rows.append({"prompt": text(prompt, 3 * i), "chosen": sides[0], "rejected": sides[1]})
    return rows


def counts(size: str) -> dict[str, int]:
    """Weights of the layers' matrices and of the vocabulary's, which nothing avoids to multiply."""
    s = SHAPES[size]
    hidden, inner, head = s["hidden_size"], s["intermediate_size"], 0
    head = hidden // s["num_attention_heads"]
    keys = head * s["num_key_value_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner
    return {
        "layers": layer * s["num_hidden_layers"],
        "vocabulary": hidden * s["vocab_size"],
        "cache_bytes": 2 * 2 * keys * s["num_hidden_layers"],  # of a token, keys and values, bf16
    }


def write_rows(rows: list[dict[str, str]], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
