"""Write a continuation or an answer; a reward function judges it at the end."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from typing_extensions import Unpack

from datamodules.ends import before_end, end_ids
from datamodules.environments.base import Environment, Options
from datamodules.environments.stops import up_to_stop
from datamodules.rewards.built_in import length_reward
from datamodules.rewards.calling import Conversation, Samples
from datamodules.rewards.weighting import as_reward
from datamodules.text.prompts import (
    Prompt,
    as_prompt,
    asked_text,
    begun,
    encode_prompt,
    is_continued,
    prompt_text,
)
from datamodules.types import Observation, StepResult


class TextGenerationEnv(Environment):
    """One prompt, one response, taken token by token or whole; a stop sequence is not rewarded.

    Args:
        tokenizer: of the policy.
        prompts: strings, chat messages (lists of ``{"role": ..., "content": ...}``) or ``Prompt``s.
        reward_fn: ``(prompts, responses, metadata=None) -> list[float]``, for one response at a
            time ``(prompt, generated, full_text) -> float``, TRL's ``(completions, **columns)``, or
            what else ``datamodules.rewards.calling`` knows by its names; several in a list, or by
            name in a dict, are added up; default: length.
        max_length, stop_sequences, temperature, options: see ``Environment``.

    Raises:
        ValueError: no prompts, or an option out of range; ``reset``: a prompt fills ``max_length``.
    """

    max_length = 512

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str | list[Mapping[str, str]] | Prompt],
        max_length: int | None = None,
        reward_fn: Any = None,
        stop_sequences: Sequence[str] | None = None,
        temperature: float | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            max_length=max_length,
            stop_sequences=stop_sequences,
            temperature=temperature,
            **options,
        )
        if not prompts:
            raise ValueError("prompts is empty: an environment needs at least one")
        self.tokenizer = tokenizer
        self.prompts = list(prompts)
        self._starts = [as_prompt(prompt) for prompt in prompts]
        self.reward_fn = as_reward(length_reward if reward_fn is None else reward_fn)
        self.reward_weights = getattr(self.reward_fn, "weights", None)
        self.columns = {name for start in self._starts for name in _row(start)}
        self.reward_fn.require(self.columns)
        self.current_prompt_idx = 0
        self._index: int | None = None
        self._prompt: Prompt | None = None
        self._begun = ""
        self._response: list[int] = []
        self._done = True

    def __len__(self) -> int:
        return len(self.prompts)

    def prompt(self, index: int) -> Prompt:
        """Of the starting state ``index``."""
        return self._starts[index]

    def reset(self, index: int | None = None) -> Observation:
        """Start over with prompt ``index``, or with the next one in turn."""
        if index is None:
            index = self.current_prompt_idx
            self.current_prompt_idx = (index + 1) % len(self)
        self._index, self._prompt = index, self._starts[index]
        self._prompt_ids = encode_prompt(self.tokenizer, self._prompt)
        if len(self._prompt_ids) >= self.max_length:
            raise ValueError(
                f"prompt {index} has {len(self._prompt_ids)} tokens, which leaves no room for a"
                f" response within env.max_length={self.max_length}: raise it or shorten the"
                f" prompt {prompt_text(self.tokenizer, self._prompt)[:80]!r}"
            )
        self._begun = begun(self.tokenizer, self._prompt)
        self._response = []
        self._done = False
        return self._observation()

    def step(self, action: Tensor | int) -> StepResult:
        """Take the next token, or (given several tokens) the whole response.

        Raises:
            RuntimeError: the episode is over.
            ValueError: a whole response does not fit ``max_length``.
        """
        action = torch.as_tensor(action).reshape(-1)
        if len(action) != 1:
            return self._scored(self.respond(action))
        self._require_running()
        self._response.append(int(action))
        ended = self._ended_by_token()
        truncated = not ended and len(self._prompt_ids) + len(self._response) >= self.max_length
        return self._scored(self._result(done=ended or truncated, truncated=truncated))

    def respond(self, tokens: Tensor) -> StepResult:
        """Take one whole response [A]; ``score`` gives its reward."""
        self._require_running()
        tokens = torch.as_tensor(tokens).reshape(-1)
        total = len(self._prompt_ids) + len(tokens)
        if total > self.max_length:
            raise ValueError(
                f"prompt and response have {total} tokens, env.max_length is {self.max_length}:"
                " raise it, or lower max_new_tokens"
            )
        self._response = tokens.tolist()
        ended = self._ended_by_token(whole=True)
        return self._result(done=True, truncated=not ended)

    def attach(self, policy: Any) -> None:
        """See ``Environment``; refuses before anything is sampled.

        Raises:
            ValueError: episodes are to be scored in threads, and the reward wants the main one.
        """
        super().attach(policy)
        if self.timeout_s is not None and self.reward_fn.in_main:
            raise ValueError(
                f"env.timeout_s={self.timeout_s} scores each episode in a thread, and"
                " reward.run_in=main wants the main one: leave env.timeout_s at null"
                " (reward.timeout_s limits a reward)"
            )

    def score(self, episodes: Sequence["TextGenerationEnv"]) -> list[tuple[float | None, dict]]:
        """One call of the reward function for all episodes."""
        samples = Samples(
            [asked_text(self.tokenizer, episode._prompt) for episode in episodes],
            [episode.response for episode in episodes],
            [episode.metadata for episode in episodes],
            [list(episode._response) for episode in episodes],
        )
        return self.reward_fn.scores(samples)

    @property
    def response(self) -> str:
        """The response so far as text, up to a stop sequence, without special tokens.

        A stop sequence that closes what the response has opened (``</answer>``) is part of it.

        It begins with what the prompt has begun of it: a message that is continued, or the
        ``<think>`` that a reasoning model's generation prompt ends in.
        """
        text = self.tokenizer.decode(self._said(), skip_special_tokens=True)
        return up_to_stop(self._begun + text, self.stop_sequences, len(self._begun))

    @property
    def current_prompt(self) -> str | None:
        """The episode's prompt as text, without what it has begun of the response; None before the
        first ``reset``."""
        return None if self._prompt is None else asked_text(self.tokenizer, self._prompt)

    @property
    def current_text(self) -> str:
        """Prompt and response so far, as text."""
        return (self.current_prompt or "") + self.response

    @property
    def steps(self) -> int:
        """Tokens of the response so far."""
        return len(self._response)

    def render(self) -> str:
        """What there is to look at: ``current_text``."""
        return self.current_text

    def fork(self) -> "TextGenerationEnv":
        """Another episode of the same task; of a running one, a copy that goes its own way."""
        other = super().fork()
        if not self._done:
            other._response = list(self._response)
        return other

    def _said(self) -> list[int]:
        """The tokens up to the end token: what a careless caller appends to it does not count."""
        return before_end(self.tokenizer, self._response)

    def _observation(self) -> Observation:
        ids = torch.cat([self._prompt_ids, torch.tensor(self._response, dtype=torch.long)])
        text = prompt_text(self.tokenizer, self._prompt)
        return Observation(ids, torch.ones_like(ids), text, self.metadata)

    @property
    def metadata(self) -> dict[str, Any]:
        """The other columns of the prompt's row; of a conversation also its ``messages``, without
        the one that the response continues, and its ``tools``."""
        return _row(self._prompt)

    def _result(self, *, done: bool, truncated: bool) -> StepResult:
        self._done = done
        return StepResult(
            reward=0.0,
            done=done,
            next_observation=None if done else self._observation(),
            info={"truncated": truncated},
            metrics={"response_length": float(len(self._response))},
        )

    def _ended_by_token(self, whole: bool = False) -> bool:
        """Whether it ends in an end token or holds a stop sequence (looked for in its tail)."""
        if not self._response:
            return False
        ends = end_ids(self.tokenizer)
        if not ends.isdisjoint(self._response if whole else self._response[-1:]):
            return True
        if not self.stop_sequences:
            return False
        # A token has at least a byte, and shares a character with at most 4 others.
        tail = max(len(stop.encode()) for stop in self.stop_sequences) + 4
        text = self.tokenizer.decode(self._response if whole else self._response[-tail:])
        return any(stop in text for stop in self.stop_sequences)

    def _require_running(self) -> None:
        if self._done:
            raise RuntimeError("the episode is over: call reset() before the next step")


def _row(prompt: Prompt) -> dict[str, Any]:
    """See ``TextGenerationEnv.metadata``."""
    if isinstance(prompt.content, str):
        return dict(prompt.metadata)
    messages = prompt.content[:-1] if is_continued(prompt) else prompt.content
    tools = {"tools": list(prompt.tools)} if prompt.tools else {}
    return prompt.metadata | tools | {"messages": Conversation(messages)}
