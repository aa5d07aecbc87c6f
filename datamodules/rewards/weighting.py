"""Several rewards as one: their weighted sum, and each by its name."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from datamodules.guard import Failure, attempt, run_all
from datamodules.rewards.calling import Metadata, Samples
from datamodules.rewards.functions import RewardFunction, Scored, finite_number, name_of

TAKEN = {"std"}
"""``rollout/reward_std`` is another metric."""


class WeightedReward:
    """``reward = sum of weight x component``; each component is a metric ``reward_NAME``.

    As in TRL, a component that does not apply to a response (None) is left out of its sum; where
    none applies, neither does the whole. Components that need not be in the main thread run side
    by side.

    Args:
        components: name -> what ``RewardFunction`` takes, or one; or a sequence, whose names are
            those of the functions.
        weights: name -> weight, or a weight each in the order of ``components``; default 1.

    Raises:
        ValueError: no components, a name that no metric can have, or weights that do not fit.
    """

    def __init__(
        self,
        components: Mapping[str, Any] | Sequence[Any],
        weights: Mapping[str, float] | Sequence[float] | None = None,
    ) -> None:
        if not components:
            raise ValueError("reward.components is empty: give at least one")
        if not isinstance(components, Mapping):
            components = dict(zip(_names_of(components), components, strict=True))
        for name in components:
            if not re.fullmatch(r"[\w.-]+", str(name)) or name in TAKEN:
                raise ValueError(
                    f"reward.components: {name!r} is no name for a metric: use letters, digits and"
                    f" underscores, and not {', '.join(TAKEN)}"
                )
        self.components = {str(name): as_reward(fn) for name, fn in components.items()}
        self.weights = _weights_of(list(self.components), weights)
        self.name = " + ".join(self.components)

    @property
    def in_main(self) -> bool:
        """Whether some component needs the main thread."""
        return any(reward.in_main for reward in self.components.values())

    def require(self, columns: Collection[str]) -> None:
        """Check that all can be called for rows of these columns (see ``Signature.require``)."""
        for reward in self.components.values():
            reward.require(columns)

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[str], metadata: Metadata = None
    ) -> list[float | None]:
        """The weighted sums, None where nothing applies."""
        return [reward for reward, _ in self.scores(Samples(prompts, responses, metadata))]

    def scores(self, samples: Samples) -> Scored:
        """See ``RewardFunction.scores``.

        Raises:
            RewardError: a component failed.
        """
        beside = [n for n, reward in self.components.items() if not reward.in_main]
        calls = {n: partial(r.scores, samples) for n, r in self.components.items()}
        together = run_all([calls[n] for n in beside], workers=len(beside) or 1)
        found = dict(zip(beside, together, strict=True))
        found |= {name: attempt(calls[name]) for name in self.components if name not in found}
        for scored in found.values():
            if isinstance(scored, Failure):
                raise scored.error
        parts = {name: found[name] for name in self.components}
        return [
            self._sum({n: scored[i] for n, scored in parts.items()}) for i in range(len(samples))
        ]

    def _sum(self, parts: Mapping[str, tuple[float | None, dict[str, float]]]) -> Any:
        """One response's reward and metrics."""
        applying = {name: reward for name, (reward, _) in parts.items() if reward is not None}
        total = sum(self.weights[name] * reward for name, reward in applying.items())
        metrics = {name: value for _, more in parts.values() for name, value in more.items()}
        metrics |= {f"reward_{name}": reward for name, reward in applying.items()}
        return (total if applying else None), metrics


Reward = RewardFunction | WeightedReward


def as_reward(given: Any, weights: Any = None) -> Reward:
    """``given`` behind its checks.

    Args:
        given: a reward; a function; several of them in a list, or by name in a dict.
        weights: of several.

    Raises:
        ValueError: there are weights and not several rewards; or as of the classes.
    """
    if isinstance(given, Mapping | list | tuple):
        return WeightedReward(given, weights)
    if weights is not None:
        raise ValueError(f"reward_weights={weights!r} are of several rewards, and there is one")
    return given if isinstance(given, Reward) else RewardFunction(given)


def _names_of(functions: Sequence[Callable[..., Any]]) -> list[str]:
    """A name each; of those that are called alike, the later ones are numbered."""
    names: list[str] = []
    for fn in functions:
        name = getattr(fn, "name", None) or name_of(fn)
        name = name if " " in name else re.split(r"[.:]", name)[-1]  # a function's own, as in TRL
        name = re.sub(r"\W+", "_", name).strip("_")
        alike = sum(
            re.fullmatch(rf"{re.escape(name)}(_\d+)?", known) is not None for known in names
        )
        names.append(f"{name}_{alike + 1}" if alike or name in TAKEN else name)
    return names


def _weights_of(
    names: Sequence[str], weights: Mapping[str, float] | Sequence[float] | None
) -> dict[str, float]:
    if weights is None:
        return dict.fromkeys(names, 1.0)
    if not isinstance(weights, Mapping):
        if len(weights) != len(names):
            raise ValueError(
                f"reward.weights: {len(weights)} weights for the {len(names)} rewards"
                f" {', '.join(names)}: give one to each"
            )
        weights = dict(zip(names, weights, strict=True))
    if different := sorted(set(names) ^ {str(name) for name in weights}):
        raise ValueError(
            f"reward.components {sorted(names)} and reward.weights {sorted(weights)} differ in"
            f" {different}: give a weight to each"
        )
    for name, weight in weights.items():
        if finite_number(weight) is None or isinstance(weight, bool):
            raise ValueError(f"reward.weights: {name!r} weighs {weight!r}, not a finite number")
    return {name: float(weights[name]) for name in names}
