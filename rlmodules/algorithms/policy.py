"""What every online algorithm does with its policy: act, and say how likely its actions were.

Shapes: B episodes, A actions of the longest, N actions altogether, H hidden size.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from datamodules.environments.base import Environment, Observation, Trajectory
from datamodules.types import TokenBatch, action_mask, sequence_of
from rlmodules.functional import adapt_kl_coefficient, token_logprobs
from rlmodules.models import backbone, projection
from rlmodules.models.adapters import adapters_off
from rlmodules.models.layout import flat_hidden, pack, pad
from rlmodules.sampling.choose import Response, SamplingParams
from rlmodules.sampling.decoding import sample

EVALUATION_TOKENS = 8192
"""Tokens, padding included, of one forward pass without gradients."""


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
            with adapters_off(base_model):
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
    ref_logprobs: Tensor | None
    """[B, A]; None without a reference."""
    values: Tensor
    """[B, A]; zeros without a critic."""

    def without(self, failed: Sequence[bool]) -> "Evaluation":
        """The same, with no actions in the episodes that are marked."""
        positions = [p[:0] if out else p for p, out in zip(self.positions, failed, strict=True)]
        return replace(self, positions=positions, mask=self.mask & ~torch.tensor(failed)[:, None])

    def kl(self) -> Tensor | None:
        """[B, A], the k1 estimate of KL(policy || reference) in nats; None without a reference."""
        return None if self.ref_logprobs is None else self.logprobs - self.ref_logprobs


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
    params = replace(params, stop_strings=tuple(env.stop_sequences))
    return sample(model, tokenizer, prompts, params, seeds)


def fits(
    model: nn.Module, observation: Observation, env: Environment, params: SamplingParams
) -> bool:
    """Whether ``env.max_length`` and the model's positions leave room for a whole response."""
    config = model.config.get_text_config()
    limits = (env.max_length, getattr(config, "max_position_embeddings", None))
    needed = len(observation.input_ids) + params.max_new_tokens
    return all(limit is None or needed <= limit for limit in limits)


def action_hidden(model: nn.Module, tokens: TokenBatch, *, packs: bool = False) -> Tensor:
    """[N, H], the hidden states that the actions were predicted from.

    Nothing follows the last token, so its own hidden state is not computed; episodes without
    actions are not computed either.

    Args:
        packs: one row without padding, in which what neighbouring episodes begin with alike stands
            once (``layout.pack``); otherwise a row an episode.
    """
    rows = [i for i, at in enumerate(tokens.positions) if len(at)] or [0]  # DDP wants a graph
    sequences = [tokens.sequences[i][:-1] for i in rows]
    prompts = [tokens.sequences[i][: first_action(tokens.positions[i])] for i in rows]
    layout = pack(_alike(sequences, prompts)) if packs else pad([[s] for s in sequences])
    where = [at[tokens.positions[i] - 1] for i, at in zip(rows, layout.index, strict=True)]
    device = tokens.mask.device
    hidden = flat_hidden(backbone(model), layout.to(device))
    return hidden[torch.cat(where).to(device)]


def first_action(positions: Tensor) -> int:
    """Where the first action stands: the length of the prompt."""
    return int(positions[0]) if len(positions) else 0


def _alike(sequences: Sequence[Tensor], prompts: Sequence[Tensor]) -> list[list[Tensor]]:
    """Neighbouring sequences of the same prompt, as groups."""
    groups: list[list[Tensor]] = []
    before: Tensor | None = None
    for sequence, prompt in zip(sequences, prompts, strict=True):
        if before is not None and torch.equal(prompt, before):
            groups[-1].append(sequence)
        else:
            groups.append([sequence])
        before = prompt
    return groups


@torch.no_grad()
def evaluate(
    policy: nn.Module,
    reference: Reference | None,
    trajectories: Sequence[Trajectory],
    *,
    temperature: float,
    value_fn: Callable[[Tensor], Tensor] | None = None,
    packs: bool = False,
    recompute: bool = True,
) -> Evaluation:
    """Log-probabilities under policy and reference, and values, of all actions; on the CPU.

    Args:
        value_fn: hidden states [N, H] -> values [N].
        packs: see ``action_hidden``.
        recompute: False takes the policy's log-probabilities as they were when it sampled.
    """
    device = next(policy.parameters()).device
    pairs = [sequence_of(trajectory) for trajectory in trajectories]
    sequences, positions = [list(column) for column in zip(*pairs, strict=True)]
    mask = action_mask(positions)
    logprobs = torch.zeros(mask.shape, dtype=torch.float32)
    values = torch.zeros_like(logprobs)
    ref_logprobs = None if reference is None else torch.zeros_like(logprobs)
    if not recompute:
        # By position, as scoring goes on meanwhile and may mark an episode as failed.
        pairs = zip(trajectories, positions, strict=True)
        sampled = [torch.cat(trajectory.logprobs) for trajectory, at in pairs if len(at)]
        logprobs[mask] = torch.cat([torch.zeros(0), *sampled])
    for rows in _batches(sequences, keep_order=packs):
        if not recompute and reference is None:
            break
        tokens = TokenBatch.collate([sequences[r] for r in rows], [positions[r] for r in rows])
        at = torch.tensor(rows)[tokens.mask.nonzero()[:, 0]], tokens.mask.nonzero()[:, 1]
        tokens = tokens.to(device)
        if recompute:
            hidden = action_hidden(policy, tokens, packs=packs)
            logprobs[at] = _logprobs(policy, hidden, tokens, temperature)
            if value_fn is not None:
                values[at] = value_fn(hidden).cpu()
        if reference is not None:
            with reference.of(policy) as ref:
                hidden = action_hidden(ref, tokens, packs=packs)
                ref_logprobs[at] = _logprobs(ref, hidden, tokens, temperature)
    return Evaluation(sequences, positions, mask, logprobs, ref_logprobs, values)


def _logprobs(model: nn.Module, hidden: Tensor, tokens: TokenBatch, temperature: float) -> Tensor:
    head = projection(model)
    logprobs, _ = token_logprobs(
        hidden, head, tokens.actions, temperature=temperature, with_entropy=False
    )
    return logprobs.cpu()


def _batches(sequences: Sequence[Tensor], *, keep_order: bool) -> Iterator[list[int]]:
    """Rows in batches of at most ``EVALUATION_TOKENS`` tokens: as they come, or short ones first,
    when each is padded to the longest of its batch."""
    batch: list[int] = []
    tokens = 0
    order = range(len(sequences))
    for row in order if keep_order else sorted(order, key=lambda r: len(sequences[r])):
        size = len(sequences[row])
        tokens = tokens + size if keep_order else (len(batch) + 1) * size
        if batch and tokens > EVALUATION_TOKENS:
            yield batch
            batch, tokens = [], size
        batch.append(row)
    yield batch
