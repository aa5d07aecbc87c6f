"""Episodes of several turns in which the model calls tools.

A ``Scene`` is one task with its state, its tools (methods with type hints and docstrings) and its
judgement; ``ToolEnv`` plays it. The model calls a tool in the form of Hermes and Qwen models, or in
the one that its own chat template teaches (``call_forms``)::

    <tool_call>{"name": "book", "arguments": {"hotel_id": 3, "nights": 2}}</tool_call>

Whatever is wrong with a call is told to the model as the tool's answer and never stops the run.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from typing_extensions import Unpack

from datamodules.checks import require_finite, require_whole
from datamodules.ends import before_end, end_ids
from datamodules.environments.base import Environment, Options
from datamodules.environments.toolbox import Toolbox
from datamodules.text.chat import Message, opening, reply
from datamodules.types import Observation, StepResult


class Scene(ABC):
    """One task in its starting state. Every episode plays a deep copy of its own."""

    messages: Sequence[Message]
    """The conversation's beginning: system and user messages."""

    def begin(self) -> None:  # noqa: B027
        """Prepare the episode: called once, before ``messages`` and ``tools`` are looked at."""

    @abstractmethod
    def tools(self) -> Sequence[Callable[..., Any]]:
        """Functions that the model may call (see ``Toolbox``); what they raise is told to it."""

    @abstractmethod
    def judge(self, answer: str) -> tuple[float, dict[str, float]]:
        """Reward and metrics of the finished episode, from its state and the model's last words
        (empty if it never answered)."""

    def solution(self) -> Sequence[str]:
        """The responses that solve it, turn after turn; wanted of examples only."""
        raise NotImplementedError(f"{type(self).__name__} has no solution to be shown")

    def hear(
        self, response: str, calls: Sequence[str], answers: Sequence[Message]
    ) -> list[Message]:
        """Take note of a turn; what is said to the model next, and nothing ends the episode.

        Args:
            response: as the model wrote it.
            calls: its tool calls, as ``Toolbox.call`` takes them; none in an answer.
            answers: of the tools. By default they are all that is said.
        """
        return list(answers)

    def turn_reward(self) -> float:
        """Reward of the turn just played, its tool calls included."""
        return 0.0


class ToolEnv(Environment):
    """Plays scenes: the model calls tools, turn after turn, until it answers without a call.

    Metrics: ``turns``, ``tool_calls``, ``tool_errors``, ``truncated`` and what the scene's judge
    gives, as a rule ``correct``.

    Args:
        tokenizer: of the policy. Its chat template writes the turns (see ``chat``).
        scenes: starting states.
        examples: scenes that are shown solved before each task; small models need some.
        held_out: indices of scenes kept for evaluation; None leaves the choice to the data module.
        max_turns: responses an episode may have. A call in the last one is still executed.
        tool_bonus: reward of the first call of an episode that a tool answered without an error.
        error_penalty: subtracted for every call that ended in an error.
        options: see ``Environment``. An episode that leaves no room for another response within
            ``max_length`` ends there, ``truncated``.

    Raises:
        ValueError: no scenes, or an option out of range.
    """

    max_length = 1024
    stop_sequences = ("</tool_call>",)
    """A model that goes on would invent the tool's answer. ``()`` allows several calls at once."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        scenes: Sequence[Scene],
        *,
        examples: Sequence[Scene] = (),
        held_out: Sequence[int] | None = None,
        max_turns: int = 4,
        tool_bonus: float = 0.0,
        error_penalty: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(**options)
        if not scenes:
            raise ValueError("scenes is empty: an environment needs at least one")
        require_whole("env", 1, max_turns=max_turns)
        require_finite("env", tool_bonus=tool_bonus, error_penalty=error_penalty)
        if error_penalty < 0:
            raise ValueError(f"env.error_penalty={error_penalty} must not be negative")
        self.tokenizer, self.scenes, self.held_out = tokenizer, scenes, held_out
        self._examples = [message for scene in examples for message in solved(scene)]
        self.max_turns = max_turns
        self.tool_bonus, self.error_penalty = tool_bonus, error_penalty
        self._next, self._done = 0, True

    def __len__(self) -> int:
        return len(self.scenes)

    def reset(self, index: int | None = None) -> Observation:
        """Start scene ``index``, or the next one in turn."""
        if index is None:
            index, self._next = self._next, (self._next + 1) % len(self)
        self.scene = copy.deepcopy(self.scenes[index])
        self.scene.begin()
        self._toolbox = Toolbox(self.scene.tools())
        system, asked = _parts(self.scene.messages)
        self._messages = [*system, *self._examples, *asked]
        self._prompt, ids = opening(self.tokenizer, self._messages, self._toolbox.schemas)
        if len(ids) >= self.max_length:
            raise ValueError(
                f"scene {index} has {len(ids)} tokens, which leaves no room for a response within"
                f" env.max_length={self.max_length}: raise it"
            )
        self._context: list[int] = ids
        self._turns = self._calls = self._errors = 0
        self._answer, self._done = "", False
        return self._observation()

    def respond(self, tokens: Tensor) -> StepResult:
        """Take one whole response [A]: tool calls are executed, an answer ends most episodes."""
        if self._done:
            raise RuntimeError("the episode is over: call reset() before the next step")
        response = torch.as_tensor(tokens).reshape(-1).tolist()
        if len(self._context) + len(response) > self.max_length:
            raise ValueError(
                f"context and response have {len(self._context) + len(response)} tokens,"
                f" env.max_length is {self.max_length}: raise it, or lower max_new_tokens"
            )
        text = self._text(response)
        self._context = self._context + response  # a new list: a fork may hold the old one
        self._turns += 1
        calls = self._toolbox.calls_in(text)
        answered, errors = self._calls - self._errors, self._errors
        messages = self.scene.hear(text, calls, [self._call(call) for call in calls])
        reward = self.scene.turn_reward() - self.error_penalty * (self._errors - errors)
        if not calls:
            self._answer = text
        if answered == 0 and self._calls > self._errors:
            reward += self.tool_bonus
        if not messages:
            cut = not calls and not self._ended(response, text)
            return self._result(reward, done=True, truncated=cut)
        if self._turns == self.max_turns:
            return self._result(reward, done=True, truncated=True)
        context = self._context + reply(self.tokenizer, response, messages)
        if len(context) >= self.max_length:
            return self._result(reward, done=True, truncated=True)
        self._context = context
        return self._result(reward, done=False, truncated=False)

    def score(self, episodes: Sequence["ToolEnv"]) -> list[tuple[float, dict[str, float]]]:
        """Each scene judges its own end."""
        return [episode.scene.judge(episode._answer) for episode in episodes]

    def fork(self) -> "ToolEnv":
        """Another episode; of a running one, a copy with its own state that goes its own way."""
        other = super().fork()
        if not self._done:
            other.scene = copy.deepcopy(self.scene)
            other._toolbox = Toolbox(other.scene.tools())
        return other

    def render(self) -> str:
        """The episode so far, as text."""
        return self.tokenizer.decode(self._context)

    def _text(self, response: list[int]) -> str:
        """Special tokens are kept, for some tokenizers count ``<tool_call>`` among them."""
        return self.tokenizer.decode(before_end(self.tokenizer, response))

    def _ended(self, response: list[int], text: str) -> bool:
        stopped = any(stop in text for stop in self.stop_sequences)
        return stopped or not end_ids(self.tokenizer).isdisjoint(response)

    def _call(self, text: str) -> Message:
        answer, fine = self._toolbox.answer(text)
        self._calls += 1
        self._errors += not fine
        return {"role": "tool", "content": answer}

    def _observation(self) -> Observation:
        ids = torch.tensor(self._context, dtype=torch.long)
        metadata = {"messages": self._messages}
        return Observation(ids, torch.ones_like(ids), self._prompt, metadata)

    def _result(self, reward: float, *, done: bool, truncated: bool) -> StepResult:
        self._done = done
        counts = {"turns": self._turns, "tool_calls": self._calls, "tool_errors": self._errors}
        metrics = {name: float(count) for name, count in counts.items()}
        return StepResult(
            reward=reward,
            done=done,
            next_observation=None if done else self._observation(),
            info={"truncated": truncated},
            metrics=metrics | {"truncated": float(truncated)},
        )


def solved(scene: Scene) -> list[Message]:
    """The conversation in which a scene is solved, its system message left out."""
    scene = copy.deepcopy(scene)
    toolbox = Toolbox(scene.tools())
    messages = _parts(scene.messages)[1]
    for response in scene.solution():
        messages.append({"role": "assistant", "content": response})
        for call in toolbox.calls_in(response):
            messages.append({"role": "tool", "content": toolbox.answer(call)[0]})
    return messages


def _parts(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """The system message, if there is one, and the rest."""
    system = [message for message in messages if message["role"] == "system"]
    return system, [message for message in messages if message["role"] != "system"]
