"""Models that say something definite, and small ones of every kind, for the tests of sampling."""

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from datamodules.types import SamplingParams
from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.sampling.decoding import sample

PROMPTS = ["ab", "a much longer prompt, of many tokens", "x", "hello there", "ab"]
SEEDS = [11, 12, 13, 14, 15]
SHAPES = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.3, "top_k": 7},
    {"temperature": 0.9, "top_p": 0.8},
    {"temperature": 1.5, "top_k": 40, "top_p": 0.7},
    {"temperature": 0.0},
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
POSITIONS = 64
SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
OPT = {key: SMALL[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers")}
OPT |= {"num_attention_heads": 4, "ffn_dim": 64, "max_position_embeddings": 64}
GEMMA2 = SMALL | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5}
GEMMA2 |= {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 4.0}
ARCHITECTURES = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**OPT, word_embed_proj_dim=32)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=5)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GEMMA2)),
}


def make_sharp(model):
    """Larger weights, so that a wrong context changes what is said."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(2.5 if "embed" in name or "wte" in name else 6)
    return model.eval()


def encode(tokenizer, *texts):
    return [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]


def reciter(script: list[int], vocab_size: int = 259) -> GPT2LMHeadModel:
    """Likeliest token after position t is ``script[t]``, whatever stands before it."""
    config = GPT2Config(
        vocab_size=vocab_size,
        n_embd=POSITIONS,
        n_layer=1,
        n_head=1,
        n_positions=POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = GPT2LMHeadModel(config).eval()
    block = model.transformer.h[0]
    with torch.no_grad():
        for layer in (block.attn.c_proj, block.mlp.c_proj):
            layer.weight.zero_()
            layer.bias.zero_()
        model.transformer.wte.weight.zero_()
        model.transformer.wpe.weight.copy_(torch.eye(POSITIONS))
        model.lm_head.weight.zero_()
        for position, token in enumerate(script):
            model.lm_head.weight[token, position] = 10.0
    return model


def recite(text, params, prompts=("p",), eos_after=None):
    """Responses to prompts of one byte each position further into the recited text."""
    tokenizer = tiny_tokenizer()
    script = tokenizer(text)["input_ids"]
    if eos_after is not None:
        script.insert(eos_after, tokenizer.eos_token_id)
    responses = sample(
        reciter(script), tokenizer, encode(tokenizer, *prompts), params, [0] * len(prompts)
    )
    return responses, [tokenizer.decode(response.tokens) for response in responses]


def greedy(max_new_tokens=40, **others):
    return SamplingParams(max_new_tokens=max_new_tokens, temperature=0, **others)


def write_all(decoding):
    while decoding.rows:
        decoding.step()


def endless(tokenizer):
    """A copy that knows no end token."""
    copy = tiny_tokenizer()
    copy.eos_token = None
    assert copy.get_vocab() == tokenizer.get_vocab()
    return copy
