"""Reward models and sequence classifiers in memory, as what compares texts or rewards them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from datamodules.rewards.functions import Metadata, RewardFunction
from datamodules.text.encoding import Limits, encode, render
from datamodules.text.prompts import Prompt

BATCH = 16
"""Pairs, or texts, that a model looks at at once."""
UNLIMITED = 2**31
Texts = Sequence[str]


def by_forward_pair(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase
) -> Callable[[Texts, Texts, Texts, Metadata], list[float]]:
    """P(first is better) of pairs, by ``model.forward_pair(ids_a, mask_a, ids_b, mask_b)``: the
    log-odds, as of ``PairwiseRewardModel``."""

    @torch.no_grad()
    def compare(prompts: Texts, firsts: Texts, seconds: Texts, metadata: Metadata) -> list[float]:
        limit = getattr(model.config, "max_length", None)
        sides = [encode_texts(tokenizer, prompts, s, metadata, limit) for s in (firsts, seconds)]
        device = next(model.parameters()).device
        training, chances = model.training, []
        model.eval()
        for start in range(0, len(prompts), BATCH):
            padded = [x for side in sides for x in _padded(side[start : start + BATCH], device)]
            chances += model.forward_pair(*padded).reshape(-1).double().sigmoid().tolist()
        model.train(training)
        return chances

    return compare


def model_reward(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> RewardFunction:
    """The rewards of a module with ``predict_ids``, as ``RewardModel`` is."""

    def score(prompts: Texts, responses: Texts, metadata: Metadata = None) -> list[float]:
        ids = encode_texts(tokenizer, prompts, responses, metadata, model.config.max_length)
        return model.predict_ids(ids, BATCH)

    return RewardFunction(score, name=type(model).__name__)


def classifier_reward(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> RewardFunction:
    """The output of a sequence classifier of transformers, which sees one text at a time: no
    padding can mislead it.

    Raises:
        ValueError: it has several outputs, or knows fewer tokens than ``tokenizer``.
    """
    name, labels = type(model).__name__, getattr(getattr(model, "config", None), "num_labels", 0)
    if labels != 1:
        raise ValueError(
            f"preference_model={name} has {labels or 'no'} outputs of a classifier, and needs one:"
            " load it by datamodules.rewards.model(path, label=...), or give"
            " (prompt, response1, response2) -> P(first is better)"
        )
    known = model.get_input_embeddings().num_embeddings
    if known < len(tokenizer):
        raise ValueError(
            f"preference_model={name} knows {known} tokens, the environment's tokenizer"
            f" {len(tokenizer)}: load it with its own by datamodules.rewards.model(path)"
        )

    @torch.no_grad()
    def score(prompts: Texts, responses: Texts, metadata: Metadata = None) -> list[float]:
        texts = encode_texts(tokenizer, prompts, responses, metadata, None)
        training, device = model.training, next(model.parameters()).device
        model.eval()
        rows = [torch.tensor([ids], device=device) for ids in texts]
        rewards = [model(input_ids=row).logits.item() for row in rows]
        model.train(training)
        return rewards

    return RewardFunction(score, name=name)


def encode_texts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Texts,
    responses: Texts,
    metadata: Metadata,
    max_length: int | None,
) -> list[list[int]]:
    """Token ids of prompts with their responses, as reward models are trained on them.

    Args:
        metadata: a conversation stands in its ``messages``; the prompt is text without it.
        max_length: most tokens of a text; None keeps all.
    """
    longest = max_length or UNLIMITED
    texts = []
    for prompt, response, meta in zip(
        prompts, responses, metadata or [{}] * len(prompts), strict=True
    ):
        if "messages" in meta:
            answer = [{"role": "assistant", "content": response}]
            texts.append(render(tokenizer, Prompt(meta["messages"]), answer))
        else:
            texts.append(render(tokenizer, Prompt(prompt), response))
    pairs = encode(tokenizer, texts, Limits(longest, longest - 1), close=False)
    return [start + answer for start, answer in pairs]


def _padded(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    ids = pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
    lengths = torch.tensor([len(text) for text in texts])
    mask = torch.arange(ids.shape[1])[None, :] < lengths[:, None]
    return ids.to(device), mask.long().to(device)
