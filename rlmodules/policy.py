"""What every online algorithm does with its policy: act, and say how likely its actions were.

Shapes: B episodes, A actions of the longest, N actions altogether, H hidden size.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from datamodules.environments.base import Environment, Observation, Trajectory
from datamodules.experience import TokenBatch, sequence_of
from rlmodules.functional import adapt_kl_coefficient, token_logprobs
from rlmodules.models import hidden_states, projection
from rlmodules.sampling import Response, SamplingParams, sample

EVALUATION_TOKENS = 8192
"""Padded tokens of one forward pass without gradients."""


class Reference(nn.Module):
    """The frozen policy that KL is measured against.

    With LoRA it is the policy itself with its adapters switched off; otherwise a frozen copy, of
    which no checkpoint holds anything.
    """

    def __init__(self, base_model: nn.Module) -> None:
        super().__init__()
        self.is_adapter_free = hasattr(base_model, "disable_adapter")
        if not self.is_adapter_free:
            self.model = copy.deepcopy(base_model).requires_grad_(False)

    @contextlib.contextmanager
    def of(self, base_model: nn.Module) -> Iterator[nn.Module]:
        """The reference of ``base_model``, for as long as the context lasts."""
        if self.is_adapter_free:
            with base_model.disable_adapter():
                yield base_model
        else:
            yield self.model


class AdaptiveKLController(nn.Module):
    """The coefficient of the KL penalty, steered so that the KL comes to its target."""

    def __init__(self, init_kl_coef: float, target: float, horizon: float) -> None:
        super().__init__()
        self.value = init_kl_coef  # a plain number: half precision must not round it
        self.target, self.horizon = target, horizon

    def update(self, kl: float, num_sequences: int) -> None:
        """Take the KL (nats a token) measured on ``num_sequences`` episodes of all processes."""
        self.value = adapt_kl_coefficient(
            self.value,
            kl,
            target=self.target,
            horizon=self.horizon,
            num_sequences=num_sequences,
        )

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.value, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.value = float(state)


@dataclass(frozen=True)
class Evaluation:
    """Episodes as token sequences, and what policy, reference and critic say of each action."""

    sequences: list[Tensor]
    positions: list[Tensor]
    mask: Tensor
    """[B, A]"""
    logprobs: Tensor
    """[B, A]"""
    ref_logprobs: Tensor
    """[B, A]"""
    values: Tensor
    """[B, A]; zeros without a critic."""


def act(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    observations: Sequence[Observation],
    params: SamplingParams,
    seeds: Sequence[int],
    env: Environment,
) -> list[Response]:
    """Sample a response to each observation.

    Raises:
        ValueError: a response might not fit ``env.max_length``, or the environment was made for
            another temperature.
    """
    if env.temperature not in (1.0, params.temperature):
        raise ValueError(
            f"env.temperature={env.temperature} but the policy samples at {params.temperature}:"
            " set algo.temperature, or leave env.temperature at 1.0"
        )
    longest = max(len(observation.input_ids) for observation in observations)
    if env.max_length is not None and longest + params.max_new_tokens > env.max_length:
        raise ValueError(
            f"a prompt of {longest} tokens and algo.max_new_tokens={params.max_new_tokens} exceed"
            f" env.max_length={env.max_length}: raise it, or lower algo.max_new_tokens"
        )
    prompts = [observation.input_ids for observation in observations]
    return sample(model, tokenizer, prompts, params, seeds)


def action_hidden(model: nn.Module, tokens: TokenBatch) -> Tensor:
    """[N, H], the hidden states that the actions were predicted from.

    Padding is on the right of a causal model, so no mask is needed, and nothing follows the last
    token, so its own hidden state is not computed.
    """
    return tokens.before_actions(hidden_states(model, tokens.input_ids[:, :-1], None))


@torch.no_grad()
def evaluate(
    policy: nn.Module,
    reference: Reference,
    trajectories: Sequence[Trajectory],
    *,
    temperature: float,
    value_fn: Callable[[Tensor], Tensor] | None = None,
) -> Evaluation:
    """Log-probabilities under policy and reference, and values, of all actions; on the CPU.

    Args:
        value_fn: hidden states [N, H] -> values [N].
    """
    device = next(policy.parameters()).device
    pairs = [sequence_of(trajectory) for trajectory in trajectories]
    sequences, positions = [list(column) for column in zip(*pairs, strict=True)]
    counts = torch.tensor([len(p) for p in positions])
    mask = torch.arange(int(counts.max()))[None, :] < counts[:, None]
    logprobs = torch.zeros(mask.shape, dtype=torch.float32)
    ref_logprobs, values = torch.zeros_like(logprobs), torch.zeros_like(logprobs)
    for rows in _similar_lengths(sequences):
        tokens = TokenBatch.collate([sequences[r] for r in rows], [positions[r] for r in rows])
        tokens = tokens.to(device)
        at = (torch.tensor(rows)[tokens.rows.cpu()], _column_of(tokens.mask.cpu()))
        hidden = action_hidden(policy, tokens)
        logprobs[at] = _logprobs(policy, hidden, tokens, temperature)
        if value_fn is not None:
            values[at] = value_fn(hidden).cpu()
        with reference.of(policy) as ref:
            ref_logprobs[at] = _logprobs(ref, action_hidden(ref, tokens), tokens, temperature)
    return Evaluation(sequences, positions, mask, logprobs, ref_logprobs, values)


def _logprobs(model: nn.Module, hidden: Tensor, tokens: TokenBatch, temperature: float) -> Tensor:
    head = projection(model)
    logprobs, _ = token_logprobs(
        hidden, head, tokens.actions, temperature=temperature, with_entropy=False
    )
    return logprobs.cpu()


def _column_of(mask: Tensor) -> Tensor:
    """[N], the index of each action within its episode."""
    return mask.nonzero()[:, 1]


def _similar_lengths(sequences: Sequence[Tensor]) -> Iterator[list[int]]:
    """Rows in batches of at most ``EVALUATION_TOKENS`` padded tokens, short ones first."""
    batch: list[int] = []
    for row in sorted(range(len(sequences)), key=lambda r: len(sequences[r])):
        if batch and (len(batch) + 1) * len(sequences[row]) > EVALUATION_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    yield batch
