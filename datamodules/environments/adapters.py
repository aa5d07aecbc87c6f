"""Foreign environments: whatever makes one becomes an ``Environment``.

``ScoreEpisodeEnv`` runs classes written for AITraining's GRPO (``--rl-env-module``) unchanged.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from typing_extensions import Unpack

from datamodules.environments.base import Environment, Options
from datamodules.environments.text import TextGenerationEnv
from datamodules.guard import Failure, attempt
from datamodules.rewards.functions import finite_number
from datamodules.text.prompts import Prompt, as_prompt


class ScoreEpisodeEnv(TextGenerationEnv):
    """An object with ``build_dataset`` and ``score_episode`` as an environment of one turn.

    Args:
        scorer: ``build_dataset(tokenizer)`` gives rows (a list or a ``datasets.Dataset``) with
            ``prompt`` (text or chat messages) and ``case_idx``;
            ``score_episode(model=..., tokenizer=..., completion=..., case_idx=...)`` gives a
            number for the response's text. ``model`` is the policy in training (None outside of
            one). Episodes are scored one after the other, as the scorer may expect.
        tokenizer: of the policy.
        options: see ``Environment``.

    Raises:
        ValueError: there are no rows, or one lacks ``prompt`` or ``case_idx``.
    """

    def __init__(
        self, scorer: Any, tokenizer: PreTrainedTokenizerBase, **options: Unpack[Options]
    ) -> None:
        self.scorer, self.policy = scorer, None
        name = f"{type(scorer).__name__}.build_dataset"
        rows = scorer.build_dataset(tokenizer)
        if not isinstance(rows, Iterable):
            raise ValueError(f"{name} returned {rows!r}, expected rows")
        prompts = [_row_prompt(row, f"{name}, row {i}") for i, row in enumerate(rows)]
        if not prompts:
            raise ValueError(f"{name} gave no rows: an environment needs at least one")
        super().__init__(tokenizer, prompts, **options)

    @torch.no_grad()
    def score(self, episodes: Sequence["ScoreEpisodeEnv"]) -> list[tuple[float, dict]]:
        """One call of ``score_episode`` for each episode.

        Raises:
            ValueError: it returned something other than a finite number.
        """
        return [(self._score_episode(episode), {}) for episode in episodes]

    def _score_episode(self, episode: "ScoreEpisodeEnv") -> float:
        case_idx = episode._prompt.metadata["case_idx"]
        reward = self.scorer.score_episode(
            model=self.policy,
            tokenizer=self.tokenizer,
            completion=episode.response,
            case_idx=case_idx,
        )
        number = finite_number(reward)
        if number is None:
            raise ValueError(
                f"{type(self.scorer).__name__}.score_episode returned {reward!r}, which is no"
                f" finite number\n  case_idx: {case_idx!r}\n  response: {episode.response!r}"
            )
        return number


def make_environment(
    factory: Callable[..., Any] | Environment,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt] | None = None,
) -> Environment:
    """Whatever ``factory`` makes, as an ``Environment``.

    It is given ``tokenizer``, ``prompts`` and those ``Options`` that are among its ``parameters``
    (a function with ``**kwargs`` takes all). Other options are set on the environment that it
    makes, and the adapter of a foreign one has all of them set. None leaves their default.

    Args:
        factory: a class or a function, as a rule with keywords bound by ``functools.partial``
            (``_partial_: true`` in conf/env), or an environment, which is returned as it is.

    Raises:
        ValueError: prompts that it has no use for, or none though it needs them; an argument that
            it lacks or does not know; or it made something that is no environment.
    """
    if isinstance(factory, Environment):
        return factory
    if not callable(factory):
        raise ValueError(
            f"env is {factory!r}: give a class, a function, or env._target_=my_pkg.my_module.MyEnv"
        )
    target, args, keywords = factory, (), {}
    while isinstance(target, functools.partial):  # Hydra's are a kind of their own, and stay nested
        args, keywords = (*target.args, *args), target.keywords | keywords
        target = target.func
    name = f"{target.__module__}.{getattr(target, '__qualname__', type(target).__name__)}"
    options = {k: keywords.pop(k) for k in Options.__annotations__ if k in keywords}
    supplied = options | {"tokenizer": tokenizer, "prompts": prompts}
    taken = parameters(target)
    if inspect.isclass(target) or all(p.kind is not p.VAR_KEYWORD for p in taken.values()):
        supplied = {k: v for k, v in supplied.items() if k in taken}
    if prompts is not None and "prompts" not in supplied:
        raise ValueError(
            f"{name} has starting states of its own and takes no prompts: leave out data.prompts"
            " and data.path (data.path=null)"
        )
    keywords |= {k: v for k, v in supplied.items() if v is not None}
    made = _called(target, name, args, keywords)
    if isinstance(made, Environment):
        made.set_options(**{k: v for k, v in options.items() if k not in keywords})
        _require_starts(made, name)
        return made
    if all(callable(getattr(made, method, None)) for method in ("build_dataset", "score_episode")):
        return ScoreEpisodeEnv(made, tokenizer, **options)
    raise ValueError(
        f"{name} made a {type(made).__name__}, which is no environment: subclass"
        " datamodules.Environment (reset, respond, score and __len__), or give it"
        " build_dataset(tokenizer) and score_episode(model, tokenizer, completion, case_idx)"
    )


def _require_starts(env: Environment, name: str) -> None:
    """
    Raises:
        ValueError: it does not say how many starting states it has, or has none.
    """
    count = attempt(lambda: len(env))
    if isinstance(count, Failure) or count < 1:
        what = f"raised {count}" if isinstance(count, Failure) else f"returned {count}"
        raise ValueError(
            f"{name}.__len__ {what}: it must return the number of starting states, at least 1"
        )


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What ``target`` can be given: the parameters of its signature, and of a class besides those
    of its bases that ``**kwargs`` hand on to, up to ``**options`` that are said to be ``Options``.
    """
    makers = [target]
    if inspect.isclass(target):
        makers = [vars(c)["__init__"] for c in target.__mro__[:-1] if "__init__" in vars(c)]
    taken: dict[str, inspect.Parameter] = {}
    for maker in makers:
        own = inspect.signature(maker).parameters
        taken = taken | {k: p for k, p in own.items() if k not in taken}
        rest = [p.annotation for p in own.values() if p.kind is p.VAR_KEYWORD]
        if not rest or "Unpack[" in str(rest[0]):
            break
    return taken


def _called(target: Callable[..., Any], name: str, args: tuple, keywords: dict[str, Any]) -> Any:
    """A misspelt or missing argument, told apart from what the constructor itself raises."""
    try:
        inspect.signature(target).bind(*args, **keywords)
    except (TypeError, ValueError) as error:  # ValueError: built in, without a signature
        raise ValueError(
            f"{name} cannot be made: {error}. Prompts come from data.prompts or data.path; give"
            " other arguments as env.ARGUMENT=VALUE, or +env.ARGUMENT=VALUE where conf/env does"
            " not name them"
        ) from error
    try:
        return target(*args, **keywords)
    except (ValueError, OSError, ImportError):
        raise  # it says what is wrong
    except Exception as error:
        raise ValueError(f"{name} could not be made: {Failure(error)}") from error


def _row_prompt(row: Any, where: str) -> Prompt:
    for column in ("prompt", "case_idx"):
        if column not in row:
            raise ValueError(f"{where}: there is no {column!r}; there are {sorted(row)}")
    try:
        content = as_prompt(row["prompt"]).content
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return Prompt(content, {name: value for name, value in row.items() if name != "prompt"})
