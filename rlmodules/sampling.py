"""Batched sampling with a KV cache: prompts -> response tokens and their log-probabilities.

Each row draws from its own stream of uniform numbers (``seeds``), so its text depends neither on
the other rows nor on how rows are spread over devices. Rows that have ended leave the batch.
The returned log-probabilities are those of ``softmax(logits / temperature)``, the distribution that
ratios and KL are computed of; top-k and top-p narrow the choice below that, and ``kept_mass`` says
by how much.

Shapes: B rows, V vocabulary, K candidates.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlmodules.models.heads import backbone, projection

CANDIDATES = 256
"""The nucleus is looked for among this many tokens first; rows it does not fit sort everything."""


@dataclass(frozen=True)
class SamplingParams:
    """How to draw a response. ``temperature=0`` takes the likeliest token."""

    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    """Sample among the k likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Sample in the smallest set of likeliest tokens that holds this mass; 1 for all."""
    stop_strings: Sequence[str] = ()
    """End once the response (never the prompt) contains one of these."""
    stop_token_ids: Sequence[int] = ()
    """End tokens besides the tokenizer's own EOS."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be 0 (greedy) or positive")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be in (0, 1]")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be 0 (all tokens) or positive")
        if any(not stop for stop in self.stop_strings):
            raise ValueError("stop_strings holds an empty string, which would end every response")


@dataclass
class Response:
    """What the policy wrote after one prompt; the end token counts, where it wrote one."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    kept_mass: list[float] = field(default_factory=list)
    """Probability of the tokens that top-k and top-p left to choose from, per token."""
    finish_reason: str = "length"
    """``eos`` (an end token), ``stop`` (a stop string) or ``length`` (max_new_tokens)."""


@torch.no_grad()
def sample(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Tensor],
    params: SamplingParams,
    seeds: Sequence[int],
) -> list[Response]:
    """One response for each prompt.

    Args:
        model: a causal language model, in the precision (autocast included) to sample in.
        prompts: token ids, [T] each, of any lengths.
        seeds: seed of each row's random stream; the low 32 bits count.

    Raises:
        ValueError: a prompt is empty, or too long for the model together with its response.
    """
    device = next(model.parameters()).device
    _check_lengths(model, prompts, params.max_new_tokens)
    uniform_BT = torch.stack([_stream(seed, params.max_new_tokens) for seed in seeds]).to(device)
    head, body = projection(model), backbone(model)
    takes_positions = "position_ids" in inspect.signature(body.forward).parameters
    end_ids = _end_ids(tokenizer, params)
    ends = torch.tensor(sorted(end_ids), device=device)

    different, which = _distinct(prompts)  # a prompt that several rows have is computed once
    ids, attention = _left_pad(different, tokenizer.pad_token_id or 0, device)
    masked = bool((attention == 0).any())
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    responses = [Response() for _ in prompts]
    live = torch.arange(len(prompts), device=device)
    cache = None
    chosen: list[tuple[Tensor, ...]] = []  # (rows, tokens, logprobs, kept mass) of each step
    for step in range(params.max_new_tokens):
        inputs = {"position_ids": positions} if takes_positions else {}
        if masked:
            inputs["attention_mask"] = attention
        output = body(input_ids=ids, past_key_values=cache, use_cache=True, **inputs)
        cache = output.past_key_values
        # A slice of a 3-D tensor would take the slow batched matrix product.
        logits = head.logits(output.last_hidden_state[:, -1].contiguous())
        if step == 0 and len(different) < len(prompts):
            rows = torch.tensor(which, device=device)
            logits, attention, positions = logits[rows], attention[rows], positions[rows]
            cache.batch_select_indices(rows)
        tokens, logprobs, kept = choose(logits, uniform_BT[live, step], params)
        chosen.append((live, tokens, logprobs, kept))

        ended = torch.isin(tokens, ends)
        if params.stop_strings:
            ended |= _hit_stop(tokenizer, responses, live, tokens, ended, params.stop_strings)
        keep = (~ended).nonzero().squeeze(1)
        if len(keep) == 0:
            break
        if len(keep) < len(live) and step + 1 < params.max_new_tokens:
            live, tokens = live[keep], tokens[keep]
            attention, positions = attention[keep], positions[keep]
            cache.batch_select_indices(keep)
        ids = tokens[:, None]
        attention = torch.cat([attention, attention.new_ones(len(attention), 1)], dim=1)
        positions = positions[:, -1:] + 1
    _fill(responses, chosen, end_ids)
    return responses


def choose(logits_BV: Tensor, uniform_B: Tensor, params: SamplingParams) -> tuple[Tensor, ...]:
    """Draw a token a row by inverting the cumulative distribution at ``uniform_B`` in [0, 1).

    Top-k is applied first, then top-p to what it left (as in transformers).

    Returns:
        ``(tokens_B, logprobs_B, kept_mass_B)``.
    """
    if params.temperature == 0:
        log_z = logits_BV.logsumexp(-1)
        best, tokens = logits_BV.max(-1)
        return tokens, best - log_z, (best - log_z).exp()
    logits = logits_BV / params.temperature
    log_z = logits.logsumexp(-1, keepdim=True)
    vocabulary = logits.shape[1]
    if params.top_p == 1 and not 0 < params.top_k < vocabulary:
        probs = (logits - log_z).exp_()
        tokens = _invert(probs, uniform_B)
        kept = torch.ones_like(uniform_B)
    else:
        width = min(vocabulary, params.top_k or CANDIDATES)
        tokens, kept = _from_nucleus(logits, log_z, uniform_B, width, params)
        # Exact: a nucleus wider than the candidates is found by sorting that row's vocabulary.
        wide = (kept < 0).nonzero().squeeze(1)
        if len(wide):
            tokens[wide], kept[wide] = _from_nucleus(
                logits[wide], log_z[wide], uniform_B[wide], vocabulary, params
            )
    logprobs = (logits.gather(1, tokens[:, None]) - log_z).squeeze(1)
    return tokens, logprobs, kept


def _from_nucleus(
    logits: Tensor, log_z: Tensor, uniform: Tensor, width: int, params: SamplingParams
) -> tuple[Tensor, Tensor]:
    """Tokens and kept mass, from the ``width`` likeliest; kept is -1 where that is too few."""
    top, order = logits.topk(width)
    probs = (top - log_z).exp_()
    total = probs.sum(-1, keepdim=True) if params.top_k else torch.ones_like(log_z)
    before = probs.cumsum(-1) - probs
    inside = before < params.top_p * total  # the token that crosses the threshold is in
    probs = probs * inside
    tokens = order.gather(1, _invert(probs, uniform)[:, None]).squeeze(1)
    kept = probs.sum(-1)
    if not params.top_k and width < logits.shape[1]:
        kept = torch.where(inside[:, -1], -1.0, kept)
    return tokens, kept


def _invert(probs: Tensor, uniform: Tensor) -> Tensor:
    """Index at which the cumulative sum of ``probs`` passes ``uniform`` times its total."""
    cumulative = probs.cumsum(-1)
    total = cumulative[:, -1:].contiguous()
    index = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)
    # Rounding may leave u * total on the total itself: the first index that reaches it is real.
    return torch.minimum(index, torch.searchsorted(cumulative, total)).squeeze(1)


def _stream(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float32)


def _distinct(prompts: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """The different prompts, and which of them each row has."""
    index: dict[tuple[int, ...], int] = {}
    which = [index.setdefault(tuple(prompt.tolist()), len(index)) for prompt in prompts]
    return [prompts[which.index(i)] for i in range(len(index))], which


def _left_pad(prompts: Sequence[Tensor], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        attention[row, width - len(prompt) :] = 1
    return ids.to(device), attention.to(device)


def _end_ids(tokenizer: PreTrainedTokenizerBase, params: SamplingParams) -> set[int]:
    eos = tokenizer.eos_token_id
    return set(params.stop_token_ids) | (set() if eos is None else {eos})


def _hit_stop(
    tokenizer: PreTrainedTokenizerBase,
    responses: list[Response],
    live: Tensor,
    tokens: Tensor,
    ended: Tensor,
    stops: Sequence[str],
) -> Tensor:
    """Rows whose response now ends on a stop string; notes each new token in its response.

    Only a tail is decoded: a token carries at least one byte, so a stop string of n bytes lies in
    the last n tokens, plus up to 4 that share a character with it.
    """
    tail = max(len(stop.encode()) for stop in stops) + 4
    hits = []
    rows = zip(live.tolist(), tokens.tolist(), ended.tolist(), strict=True)
    for row, token, done in rows:
        response = responses[row]
        response.tokens.append(token)
        text = "" if done else tokenizer.decode(response.tokens[-tail:])
        hit = any(stop in text for stop in stops)
        if hit:
            response.finish_reason = "stop"
        hits.append(hit)
    return torch.tensor(hits, device=live.device)


def _fill(responses: list[Response], chosen: list[tuple[Tensor, ...]], ends: set[int]) -> None:
    for response in responses:
        response.tokens.clear()
    for step in chosen:
        columns = (column.tolist() for column in step)
        for row, token, logprob, kept in zip(*columns, strict=True):
            response = responses[row]
            response.tokens.append(token)
            response.logprobs.append(logprob)
            response.kept_mass.append(kept)
    for response in responses:
        if response.tokens[-1] in ends:
            response.finish_reason = "eos"


def _check_lengths(model: nn.Module, prompts: Sequence[Tensor], max_new_tokens: int) -> None:
    longest = max(len(prompt) for prompt in prompts)
    if min(len(prompt) for prompt in prompts) == 0:
        raise ValueError("a prompt has no tokens: give it text, or a tokenizer with a BOS token")
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and longest + max_new_tokens > limit:
        raise ValueError(
            f"a prompt of {longest} tokens and max_new_tokens={max_new_tokens} exceed the"
            f" {limit} positions of the model: shorten one of them"
        )
