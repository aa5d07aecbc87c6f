"""``reward=weighted``: several rewards of ``conf/reward`` as one."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from datamodules import rewards
from datamodules.rewards.weighting import Reward, WeightedReward, as_reward
from rlmodules.reward_models import serving

KINDS: dict[str, Callable[..., Any]] = {
    "function": rewards.function,
    "judge": rewards.judge,
    "length": rewards.length,
    "model": serving.model,
    "sentiment": rewards.sentiment,
}
"""The choices of ``conf/reward``, but this one."""


def weighted(
    components: Mapping[str, Any],
    weights: Mapping[str, float] | None = None,
    *,
    timeout_s: float | None = None,
) -> WeightedReward:
    """The weighted sum of rewards; each is logged as ``rollout/reward_NAME``.

    Args:
        components: name -> a reward: ``length`` (a choice of ``reward=`` that needs no option),
            ``my_pkg.my_module:my_fn``, or options of a choice, as ``{path: my:fn}`` and
            ``{reward: judge, url: ..., model: ...}``. ``reward`` may be left out where ``path`` is
            a function's, or where the component is called as the choice.
        weights: name -> weight; 1 for all by default.
        timeout_s: of each component that does not say its own.

    Raises:
        ValueError: a component is none of those, or an option of it is wrong; or as of
            ``WeightedReward``.
    """
    if not isinstance(components, Mapping) or not components:
        raise ValueError(
            f"reward.components={components!r} must be rewards by name: {{short: length}}"
        )
    if weights is not None and not isinstance(weights, Mapping):
        raise ValueError(f"reward.weights={weights!r} must be weights by name: {{short: 0.1}}")
    made = {name: reward_of(given, str(name), timeout_s) for name, given in components.items()}
    return WeightedReward(made, weights)


def rewards_of(given: Any, weights: Any = None) -> Reward:
    """A reward, or several in a list or by name, each a function, a ``Reward`` or as ``reward_of``
    takes it.

    Raises:
        ValueError: see ``as_reward`` and ``reward_of``.
    """
    if isinstance(given, Mapping):
        return as_reward({name: reward_of(one, str(name)) for name, one in given.items()}, weights)
    if isinstance(given, list | tuple):
        return as_reward([reward_of(one) for one in given], weights)
    return as_reward(reward_of(given), weights)


def reward_of(given: Any, name: str = "", timeout_s: float | None = None) -> Any:
    """A reward by name or options (see ``weighted``); what is neither is returned as it is.

    Raises:
        ValueError: there is no such choice, or an option of it is wrong.
    """
    where = f"reward.components.{name}: " if name else ""
    if isinstance(given, str):
        given = {"path": given} if ":" in given else {"reward": given}
    if not isinstance(given, Mapping):
        return given
    options = {"timeout_s": timeout_s} | dict(given)
    kind = options.pop("reward", None) or _kind(options, name)
    if kind not in KINDS:
        raise ValueError(
            f"{where}{kind or dict(given)!r} is no reward: use {', '.join(KINDS)} or"
            " my_pkg.my_module:my_fn, or options of one: {reward: model, path: DIR}"
        )
    try:
        inspect.signature(KINDS[kind]).bind(**options)
    except TypeError as error:
        known = ", ".join(inspect.signature(KINDS[kind]).parameters)
        raise ValueError(f"{where}reward={kind}: {error}; it takes {known}") from None
    try:
        return KINDS[kind](**options)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error


def _kind(options: Mapping[str, Any], name: str) -> str | None:
    """The choice that is meant where none is named."""
    if ":" in str(options.get("path", "")):
        return "function"
    return name if name in KINDS else None
