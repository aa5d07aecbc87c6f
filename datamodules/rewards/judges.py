"""What says which of two responses is better: ``Judge``, and what can become one (``as_judge``).

A reward model becomes a judge by Bradley and Terry (1952): P(A > B) = sigmoid(r(A) - r(B)).
"""

import inspect
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from datamodules.guard import Failure, attempt
from datamodules.rewards.calling import TEXTS, Metadata
from datamodules.rewards.functions import RewardError, finite_number
from datamodules.rewards.scorers import Classifier, comparison_of, reward_of
from datamodules.rewards.weighting import Reward, as_reward

Texts = Sequence[str]


class Judge:
    """P(first response is better) of each of a batch of pairs, checked.

    Args:
        fn: ``(prompts, firsts, seconds, metadata) -> list[float]``, each in [0, 1]. It is asked
            once a pair: one that favours a side should look both ways itself.
        name: shown in errors.
    """

    def __init__(self, fn: Callable[..., Sequence[float]], name: str) -> None:
        self.fn, self.name = fn, name
        self.require: Callable[[Collection[str]], None] = lambda columns: None
        """Checks that it can judge rows of these columns."""

    def __call__(
        self, prompts: Texts, firsts: Texts, seconds: Texts, metadata: Metadata = None
    ) -> list[float]:
        """
        Raises:
            RewardError: it raised, or returned something other than a probability for each pair.
        """
        metadata = metadata or [{}] * len(prompts)
        found = attempt(lambda: list(self.fn(prompts, firsts, seconds, metadata)))
        if isinstance(found, Failure):
            if isinstance(found.error, RewardError):
                raise found.error  # says what is wrong already
            what = f"{type(found.error).__name__}: {found.error}"
            raise RewardError(f"{self.name} raised {what}") from found.error
        if len(found) != len(prompts):
            raise RewardError(f"{self.name} returned {len(found)} results for {len(prompts)} pairs")
        chances = [finite_number(value) for value in found]
        sides = zip(prompts, firsts, seconds, strict=True)
        for pair, value, chance in zip(sides, found, chances, strict=True):
            if chance is None or not 0 <= chance <= 1:
                what = f"returned {value!r}, which is no probability that the first is better"
                raise _error(self.name, what, pair)
        return chances


def win_rates(
    judge: Judge, prompts: Texts, responses: Texts, metadata: Metadata, groups: Sequence[list[int]]
) -> list[float]:
    """How often each response would win against another one of its group, in [0, 1].

    Every two of a group are compared once, the earlier one first; equal ones are a draw.

    Args:
        groups: rows of the responses that are compared with each other, at least two in each.
    """
    pairs = [pair for group in groups for pair in combinations(group, 2)]
    asked = [(a, b) for a, b in pairs if responses[a] != responses[b]]
    chances = judge(
        [prompts[a] for a, _ in asked],
        [responses[a] for a, _ in asked],
        [responses[b] for _, b in asked],
        [metadata[a] for a, _ in asked] if metadata else None,
    )
    chance_of = dict(zip(asked, chances, strict=True))
    rates = [0.0] * len(responses)
    rivals = {row: len(group) - 1 for group in groups for row in group}
    for a, b in pairs:
        chance = chance_of.get((a, b), 0.5)
        rates[a] += chance / rivals[a]
        rates[b] += (1 - chance) / rivals[b]
    return rates


def as_judge(model: Any, tokenizer: PreTrainedTokenizerBase) -> Judge:
    """``model`` as a judge.

    Args:
        model: a ``Judge``; a ``PairScorer`` (``PairwiseRewardModel``) or ``TextScorer``
            (``RewardModel``); a sequence classifier of transformers with one output; a reward
            function (it names ``metadata``, ``responses`` or ``completions``, which is how rewards
            are called), or several (``as_reward``); or a callable
            ``(prompt, response1, response2) -> P(first is better)``, in [0, 1].
        tokenizer: of the model, where it has none of its own.

    Raises:
        ValueError: it is none of those.
    """
    if isinstance(model, Judge):
        return model
    own, name = getattr(model, "tokenizer", None) or tokenizer, type(model).__name__
    if hasattr(model, "compare_ids"):
        return Judge(comparison_of(model, own), name)
    if hasattr(model, "predict_ids"):
        return _by_reward(reward_of(model, own))
    if isinstance(model, nn.Module):
        scorer = Classifier(model, tokenizer, name=f"preference_model={name}")
        _require_tokens(model, tokenizer)
        return _by_reward(reward_of(scorer, name=name))
    if isinstance(model, Reward | dict | list | tuple):
        return _by_reward(as_reward(model))
    if not callable(model):
        raise ValueError(
            f"preference_model={model!r} is neither a model nor a callable: give a reward model, a"
            " reward function (datamodules.rewards.model loads a checkpoint) or"
            " (prompt, response1, response2) -> P(first is better)"
        )
    if _is_reward(model):
        return _by_reward(as_reward(model))
    return _one_by_one(model, _probability)


def _require_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    known = model.get_input_embeddings().num_embeddings
    if known < len(tokenizer):
        raise ValueError(
            f"preference_model={type(model).__name__} knows {known} tokens, the environment's"
            f" tokenizer {len(tokenizer)}: load it with its own by datamodules.rewards.model(path)"
        )


def human_judge(ask: Callable[[str, str, str], Any], otherwise: Judge | None) -> Judge:
    """Verdicts of people, or of whatever stands for them.

    Args:
        ask: ``(prompt, response1, response2)`` -> 1 or True where the first is better, -1 or False
            where the second is, 0 for a draw; numbers between say by how much. None is no opinion.
        otherwise: decides where ``ask`` has no opinion.
    """
    human = _one_by_one(ask, lambda verdict: _probability_of_verdict(verdict, otherwise))
    if otherwise is None:
        return human

    def compare(prompts: Texts, firsts: Texts, seconds: Texts, metadata: Metadata) -> list[float]:
        found = human.fn(prompts, firsts, seconds, metadata)
        left = [row for row, chance in enumerate(found) if chance is None]
        columns = ([column[row] for row in left] for column in (prompts, firsts, seconds, metadata))
        for row, chance in zip(left, otherwise(*columns) if left else [], strict=True):
            found[row] = chance
        return found

    return Judge(compare, human.name)


def _one_by_one(ask: Callable[[str, str, str], Any], read: Callable[[Any], Any]) -> Judge:
    name = getattr(ask, "__qualname__", type(ask).__name__)

    def compare(prompts: Texts, firsts: Texts, seconds: Texts, metadata: Metadata) -> list[Any]:
        found = []
        for pair in zip(prompts, firsts, seconds, strict=True):
            answer = attempt(partial(ask, *pair))
            if isinstance(answer, Failure):
                what = f"raised {type(answer.error).__name__}: {answer.error}"
                raise _error(name, what, pair) from answer.error
            try:
                found.append(read(answer))
            except ValueError as error:
                raise _error(name, f"returned {answer!r}: {error}", pair) from None
        return found

    return Judge(compare, name)


def _probability(answer: Any) -> float:
    number = finite_number(answer)
    if number is None or isinstance(answer, bool) or not 0 <= number <= 1:
        raise ValueError("give the probability, 0 to 1, that the first response is better")
    return number


def _probability_of_verdict(verdict: Any, otherwise: Judge | None) -> float | None:
    if verdict is None and otherwise is not None:
        return None
    if isinstance(verdict, bool):
        return float(verdict)
    number = finite_number(verdict)
    if number is None or not -1 <= number <= 1:
        raise ValueError(
            "give 1 or True where the first response is better, -1 or False where the second is,"
            " 0 for a draw, or a number between; None only where there is a preference_model too"
        )
    return (1 + number) / 2


def _by_reward(reward: Reward) -> Judge:
    def compare(prompts: Texts, firsts: Texts, seconds: Texts, metadata: Metadata) -> list[float]:
        sides = [*zip(prompts, firsts, metadata), *zip(prompts, seconds, metadata)]  # noqa: B905
        keys = [repr(side) for side in sides]
        once = dict(zip(keys, sides, strict=True))  # a response of many pairs is scored once
        rewards = reward(*map(list, zip(*once.values(), strict=True))) if once else []
        of = dict(zip(once, rewards, strict=True))
        if None in rewards:
            prompt, response, _ = list(once.values())[rewards.index(None)]
            raise RewardError(
                f"{reward.name} does not apply (None), so nothing says which response is better"
                f"\n  prompt:   {prompt!r}\n  response: {response!r}"
            )
        scores = torch.tensor([of[key] for key in keys], dtype=torch.float64).view(2, -1)
        return (scores[0] - scores[1]).sigmoid().tolist()

    judge = Judge(compare, reward.name)
    judge.require = reward.require
    return judge


def _is_reward(fn: Callable[..., Any]) -> bool:
    try:
        return not {"metadata", *TEXTS}.isdisjoint(inspect.signature(fn).parameters)
    except (TypeError, ValueError):  # some built-in functions hide theirs
        return False


def _error(name: str, what: str, pair: Sequence[str]) -> RewardError:
    labels = ("prompt:     ", "response 1: ", "response 2: ")
    shown = "".join(f"\n  {label}{text!r}" for label, text in zip(labels, pair, strict=True))
    return RewardError(f"{name} {what}{shown}")
