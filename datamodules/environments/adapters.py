"""Foreign environments: whatever makes one becomes an ``Environment``.

``ScoreEpisodeEnv`` runs classes written for AITraining's GRPO (``--rl-env-module``) unchanged.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from datamodules.environments.base import Environment, check_options
from datamodules.environments.text import TextGenerationEnv
from datamodules.guard import Failure
from datamodules.rewards.functions import finite_number
from datamodules.text.prompts import Prompt, as_prompt

OPTIONS = ("on_error", "timeout_s", "max_length", "stop_sequences")
"""How an environment is played: settings of every ``Environment``, whether its class takes them."""


class ScoreEpisodeEnv(TextGenerationEnv):
    """An object with ``build_dataset`` and ``score_episode`` as an environment of one turn.

    Args:
        scorer: ``build_dataset(tokenizer)`` gives rows (a list or a ``datasets.Dataset``) with
            ``prompt`` (text or chat messages) and ``case_idx``;
            ``score_episode(model=..., tokenizer=..., completion=..., case_idx=...)`` gives a
            number for the response's text. ``model`` is the policy in training (None outside of
            one). Episodes are scored one after the other, as the scorer may expect.
        tokenizer, text_options: as of ``TextGenerationEnv``.

    Raises:
        ValueError: there are no rows, or one lacks ``prompt`` or ``case_idx``.
    """

    def __init__(
        self, scorer: Any, tokenizer: PreTrainedTokenizerBase, **text_options: Any
    ) -> None:
        self.scorer, self.policy = scorer, None
        name = f"{type(scorer).__name__}.build_dataset"
        rows = scorer.build_dataset(tokenizer)
        if not isinstance(rows, Iterable):
            raise ValueError(f"{name} returned {rows!r}, expected rows")
        prompts = [_row_prompt(row, f"{name}, row {i}") for i, row in enumerate(rows)]
        if not prompts:
            raise ValueError(f"{name} gave no rows: an environment needs at least one")
        super().__init__(tokenizer, prompts, **text_options)

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

    It is given ``tokenizer`` and ``prompts`` where its signature names them. A class whose
    ``__init__`` takes ``**kwargs`` accepts besides what its base classes' name; a function with
    ``**kwargs`` accepts everything. ``OPTIONS`` that it does not accept are set on the environment
    that it makes; the adapter of a foreign one is given all of them. None leaves their default.

    Args:
        factory: a class or a function, as a rule with keywords bound by ``functools.partial``
            (``_partial_: true`` in conf/env), or an environment, which is returned as it is.

    Raises:
        ValueError: prompts that it has no use for, or none though it needs them; an argument that
            it lacks or does not know; or it made something that is no environment.
    """
    if isinstance(factory, Environment):
        return factory
    target, args, keywords = _target(factory)
    name = f"{target.__module__}.{getattr(target, '__qualname__', type(target).__name__)}"
    options = {k: keywords.pop(k) for k in OPTIONS if k in keywords}
    options = {k: v for k, v in options.items() if v is not None}
    accepts = _accepts(target)
    if prompts is not None and not accepts("prompts"):
        raise ValueError(
            f"{name} has starting states of its own and takes no prompts: leave out data.prompts"
            " and data.path (data.path=null)"
        )
    given = keywords | {k: v for k, v in options.items() if accepts(k)}
    if accepts("tokenizer"):
        given["tokenizer"] = tokenizer
    if prompts is not None:
        given["prompts"] = prompts
    _check_arguments(target, name, args, given)
    try:
        made = target(*args, **given)
    except (ValueError, OSError, ImportError):
        raise  # it says what is wrong
    except Exception as error:
        raise ValueError(f"{name} could not be made: {Failure(error)}") from error
    if isinstance(made, Environment):
        return _with_options(made, {k: v for k, v in options.items() if not accepts(k)})
    if all(callable(getattr(made, method, None)) for method in ("build_dataset", "score_episode")):
        return ScoreEpisodeEnv(made, tokenizer, **options)
    raise ValueError(
        f"{name} made a {type(made).__name__}, which is no environment: subclass"
        " datamodules.Environment (reset, respond, score and __len__), or give it"
        " build_dataset(tokenizer) and score_episode(model, tokenizer, completion, case_idx)"
    )


def _row_prompt(row: Any, where: str) -> Prompt:
    for column in ("prompt", "case_idx"):
        if column not in row:
            raise ValueError(f"{where}: there is no {column!r}; there are {sorted(row)}")
    try:
        content = as_prompt(row["prompt"]).content
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return Prompt(content, {name: value for name, value in row.items() if name != "prompt"})


def _target(factory: Any) -> tuple[Callable[..., Any], tuple, dict[str, Any]]:
    """What is called in the end, and the arguments that are bound already."""
    args: tuple = ()
    keywords: dict[str, Any] = {}
    while isinstance(factory, functools.partial):
        args, keywords = (*factory.args, *args), factory.keywords | keywords
        factory = factory.func
    if not callable(factory):
        raise ValueError(
            f"env is {factory!r}: give a class, a function, or env._target_=my_pkg.my_module.MyEnv"
        )
    return factory, args, keywords


def _accepts(target: Callable[..., Any]) -> Callable[[str], bool]:
    """Whether ``target`` takes a keyword of some name."""
    if not inspect.isclass(target):
        parameters = inspect.signature(target).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return lambda name: True
        return {p.name for p in parameters}.__contains__
    names: set[str] = set()
    for cls in target.__mro__:
        if "__init__" not in vars(cls) or cls is object:
            continue
        parameters = inspect.signature(cls.__init__).parameters.values()
        names |= {p.name for p in parameters}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names.__contains__


def _check_arguments(
    target: Callable[..., Any], name: str, args: tuple, given: dict[str, Any]
) -> None:
    """A misspelt or missing argument, told apart from what the constructor itself raises."""
    try:
        inspect.signature(target).bind(*args, **given)
    except (TypeError, ValueError) as error:  # ValueError: built in, without a signature
        raise ValueError(
            f"{name} cannot be made: {error}. Prompts come from data.prompts or data.path; give"
            " other arguments as env.ARGUMENT=VALUE, or +env.ARGUMENT=VALUE where conf/env does"
            " not name them"
        ) from error


def _with_options(env: Environment, options: dict[str, Any]) -> Environment:
    check_options(
        on_error=options.get("on_error", env.on_error),
        timeout_s=options.get("timeout_s", env.timeout_s),
        stop_sequences=options.get("stop_sequences"),
    )
    for name, value in options.items():
        setattr(env, name, tuple(value) if name == "stop_sequences" else value)
    return env
