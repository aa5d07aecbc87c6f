"""All that travels between an environment and the policy, and what data modules ask of the latter.

``Observation`` -> ``Response`` -> ``StepResult``, turn by turn, make a ``Trajectory``; the episodes
of an iteration, with the ``Evaluation`` of their tokens, make a ``Rollout``; of it the policy makes
the ``Experience`` that it is trained on (``experience.py``).

Shapes: B episodes, T tokens of one, A actions (tokens the policy sampled) of the longest.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from datamodules.experience import Experience


@dataclass
class Observation:
    """What the policy sees before it acts."""

    input_ids: Tensor
    """[T], the whole context so far: prompt, earlier responses and the environment's answers."""
    attention_mask: Tensor
    """[T], all ones: an observation carries no padding."""
    prompt: str
    """The episode's prompt as text."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What the data file says of this prompt besides its text."""


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
    """End tokens besides those of the model and its tokenizer (``datamodules.ends``)."""

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
    """Of the policy; where ``kept_mass`` is -1, of what top-k and top-p left of it."""
    kept_mass: list[float] = field(default_factory=list)
    """Probability of the tokens that top-k and top-p left to choose from, per token; -1 where what
    drew it does not say."""
    finish_reason: str = "length"
    """``eos`` (an end token), ``stop`` (a stop string) or ``length`` (max_new_tokens)."""


@dataclass
class StepResult:
    """What one step led to."""

    reward: float
    done: bool
    next_observation: Observation | None = None
    """None once the episode is over."""
    info: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Trajectory:
    """One whole episode: ``actions[k]`` answered ``observations[k]`` and earned ``rewards[k]``."""

    observations: list[Observation]
    actions: list[Tensor]
    """Token ids as they were sampled, [A_k] each; never tokenized again."""
    rewards: list[float]
    logprobs: list[Tensor]
    """Of the actions' tokens, under the policy that sampled them, [A_k] each."""
    done: bool
    total_reward: float
    metrics: dict[str, float] = field(default_factory=dict)
    """Numbers by name, as the environment gave them; ``truncated`` where no room was left."""
    failed: bool = False
    """The environment raised or hung: nothing is learned from it."""
    finish_reason: str = ""
    """Of the last response (see ``Response``), or ``length`` where the context had no room for
    another; empty before the first."""
    kept_mass: list[float] = field(default_factory=list)
    """Of all responses' tokens (see ``Response``)."""
    unscored: bool = False
    """No reward applies to it (``None``), which is another thing than a reward of 0."""


def sequence_of(trajectory: Trajectory) -> tuple[Tensor, Tensor]:
    """An episode as one token sequence [T] and the positions [A] that the policy sampled.

    The last observation holds all that came before it, so nothing is tokenized again: each action
    stands right behind the observation that it answered. Of a failed episode no position is
    given: nothing is learned from it.
    """
    last = trajectory.observations[-1].input_ids
    sequence = torch.cat([last, trajectory.actions[-1]])
    positions = []
    for observation, action in zip(trajectory.observations, trajectory.actions, strict=True):
        start = len(observation.input_ids)
        assert torch.equal(sequence[start : start + len(action)], action), "context was rewritten"
        positions.append(torch.arange(start, start + len(action)))
    return sequence, torch.cat(positions)[: 0 if trajectory.failed else None]


def action_rewards(trajectories: Sequence[Trajectory], mask: Tensor) -> Tensor:
    """[B, A]: each action's reward on its last token, zeros elsewhere."""
    rewards = torch.zeros(mask.shape, dtype=torch.float32)
    for row, trajectory in enumerate(trajectories):
        if trajectory.failed:
            continue
        end = -1
        for action, reward in zip(trajectory.actions, trajectory.rewards, strict=True):
            end += len(action)
            rewards[row, end] += reward
    return rewards


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


class Rollout:
    """Whole episodes with their rewards, what the policy says of them, and the seconds it took.

    (A plain class: Lightning would look into a tuple or a dataclass and move what is inside.)

    Args:
        seconds, starts: ``rollout`` and ``evaluate``; starting state of each episode.
        resampled: groups that were left out, for their rewards were all equal.
        reward_weights: of the parts of the reward, by name (``Environment.reward_weights``).
    """

    def __init__(
        self,
        trajectories: list[Trajectory],
        evaluation: Evaluation,
        seconds: dict[str, float],
        starts: Sequence[int] = (),
        resampled: int = 0,
        reward_weights: Mapping[str, float] | None = None,
    ) -> None:
        self.trajectories, self.evaluation, self.seconds = trajectories, evaluation, seconds
        self.starts, self.resampled, self.reward_weights = starts, resampled, reward_weights

    @classmethod
    def empty(cls) -> "Rollout":
        """No episode at all: the share of a process that none is left for."""
        none = torch.zeros(0, 1)
        return cls([], Evaluation([], [], none.bool(), none, None, none), {})


class ActionSpec(Protocol):
    """What an environment asks of responses to it; every ``Environment`` is one."""

    @property
    def stop_sequences(self) -> Sequence[str]: ...
    @property
    def max_length(self) -> int | None: ...
    @property
    def temperature(self) -> float: ...


class Policy(Protocol):
    """What ``RolloutDataModule`` asks of ``trainer.lightning_module``: an online algorithm."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def base_model(self) -> nn.Module:
        """The language model, which environments may look at (``Environment.attach``)."""

    def act(
        self, observations: Sequence[Observation], *, seeds: Sequence[int], env: ActionSpec
    ) -> list[Response]:
        """A response to each observation, drawn by the random stream of its seed."""

    def fits(self, observation: Observation, env: ActionSpec) -> bool:
        """Whether there is room for a whole response to ``observation``."""

    def evaluate(self, trajectories: Sequence[Trajectory]) -> Evaluation:
        """What policy, reference and critic say of each action, on the CPU."""

    def experience(self, rollout: Rollout) -> Experience:
        """What there is to learn from the episodes of an iteration."""

    def whole(self) -> AbstractContextManager[None]:
        """Within, each process acts and evaluates by itself; all enter together."""

    def sum_over_ranks(self, x: Tensor) -> Tensor:
        """Sum over all processes, on the CPU."""

    def train(self, mode: bool = True) -> Any:
        """Switch to training or, with False, to inference, as ``nn.Module`` does."""


class TextLearner(Protocol):
    """What an ``ExampleDataModule`` asks of ``trainer.lightning_module``."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def learns_from(self) -> str:
        """Which kind of rows: one of ``LEARNERS``."""

    @property
    def closes_texts(self) -> bool:
        """Whether responses end with the end token (``datamodules.text.encoding.encode``)."""


def as_policy(module: object) -> Policy:
    """``module``, known to have all that is asked of a policy.

    Raises:
        ValueError: it lacks something.
    """
    _require_members(module, Policy, "data=rollouts takes one that samples, as algo=ppo and grpo")
    return cast(Policy, module)


LEARNERS = {
    "preferences": "pairs or scores, as algo=dpo, orpo and reward",
    "demonstrations": "demonstrations, as algo=sft",
    "unpaired": "responses that are desirable or not, as algo=kto",
}
"""Kind of rows -> which algorithms learn from them."""


def as_text_learner(module: object, kind: str) -> TextLearner:
    """``module``, known to have all that is asked of one.

    Args:
        kind: of the rows.

    Raises:
        ValueError: it lacks something, or learns from other rows.
    """
    remedy = f"data={kind} takes one that learns from {LEARNERS[kind]}"
    _require_members(module, TextLearner, remedy)
    learner = cast(TextLearner, module)
    if learner.learns_from != kind:
        name = type(module).__name__
        raise ValueError(f"the algorithm {name} learns from {learner.learns_from}: {remedy}")
    return learner


def _require_members(module: object, protocol: type, remedy: str) -> None:
    # Not isinstance: from Python 3.12 on it does not find the submodules of an nn.Module.
    names = [name for name in dir(protocol) if not name.startswith("_")]
    if missing := [name for name in names if getattr(module, name, None) is None]:
        raise ValueError(
            f"the algorithm {type(module).__name__} has no {', '.join(missing)}: {remedy}"
        )
