"""What is searched: options and the values that they may have.

Written as Hydra's overrides are: ``interval(1e-6, 1e-4)``, ``tag(log, interval(1e-6, 1e-4))``,
``int(interval(1, 8))``, ``range(1, 5)``, ``choice(a, b)`` or ``a,b``. A range leaves its end out,
as it does everywhere in Hydra.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

DIGITS = 4
SEED = "seed"
"""The option of which no value is better than another: its values are a trial's instances."""


@dataclass(frozen=True)
class Parameter:
    """An option that is searched.

    Attributes:
        name: as it stands left of the ``=``, ``algo.learning_rate`` or ``+trainer.min_epochs``.
        texts: of choices: how each is written in an override.
    """

    name: str
    distribution: BaseDistribution
    texts: tuple[str, ...] = ()

    def rounded(self, value: Any) -> Any:
        """A value of an interval with four digits, which a person can read and type."""
        d = self.distribution
        if not isinstance(d, FloatDistribution):
            return value
        return min(max(float(f"{value:.{DIGITS}g}"), d.low), d.high)

    def override(self, value: Any) -> str:
        """``algo.learning_rate=3e-05``"""
        if self.texts:
            assert isinstance(self.distribution, CategoricalDistribution)
            index = int(self.distribution.to_internal_repr(value))
            return f"{self.name}={self.texts[index]}"
        return f"{self.name}={value!r}"

    def described(self) -> str:
        """For comparison with another time's."""
        return distribution_to_json(self.distribution)


@dataclass(frozen=True)
class Space:
    """What a search varies, and what it does not.

    Attributes:
        parameters: by name.
        fixed: the overrides that every job is given.
        seeds: a job each, of every setting.
    """

    parameters: dict[str, Parameter]
    fixed: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        return {name: parameter.distribution for name, parameter in self.parameters.items()}

    def rounded(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The setting that a trial with these parameters runs."""
        return {name: self.parameters[name].rounded(value) for name, value in params.items()}

    def overrides(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """What a job of this setting is told, but for its seed."""
        setting = self.rounded(params)
        return (*self.fixed, *(self.parameters[name].override(setting[name]) for name in setting))

    def grid(self) -> dict[str, list[Any]]:
        """Every value of every parameter.

        Raises:
            ValueError: one of them has an interval.
        """
        values = {}
        for name, parameter in self.parameters.items():
            distribution = parameter.distribution
            if isinstance(distribution, CategoricalDistribution):
                values[name] = list(distribution.choices)
            elif isinstance(distribution, IntDistribution) and not distribution.log:
                low, high, step = distribution.low, distribution.high, distribution.step
                values[name] = list(range(low, high + 1, step))
            else:
                raise ValueError(
                    f"{name}: a grid has no interval: write choice(...) or range(...), or take"
                    " another hydra/sweeper/sampler="
                )
        return values


def read_space(params: Mapping[str, Any], arguments: Iterable[str], seeds: Iterable[int]) -> Space:
    """The space of ``hydra.sweeper.params`` and a command line.

    An option of the command line replaces the one of that name in ``params``: by another range, or
    by a value, which ends the search for it. The others of ``params`` stay.

    Args:
        params: option -> its values, in Hydra's syntax.
        arguments: overrides, swept ones among them.
        seeds: of ``hydra.sweeper.seeds``; ``seed=`` on the command line stands for them.

    Raises:
        ValueError: nothing is left to search, or values that no study can hold.
    """
    parser = OverridesParser.create()
    told = parser.parse_overrides(list(arguments))
    given = {_plain(override) for override in told}
    own = [f"{name}={value}" for name, value in params.items() if value is not None]
    searched = [o for o in parser.parse_overrides(own) if _plain(o) not in given]
    parameters, fixed = {}, []
    for override in [*searched, *told]:
        name = override.get_key_element()
        if _plain(override) == SEED:
            seeds = _seeds(override)
        elif override.is_sweep_override():
            parameters[name] = parameter_of(override)
        elif name.startswith("sweep."):
            continue  # of the sweep, and no job's
        elif override in told:
            fixed.append(str(override.input_line))
        else:
            text = override.get_value_element_as_str()
            raise ValueError(f"hydra.sweeper.params: {name}={text} is one value, and no choice")
    if not parameters:
        raise ValueError(
            "there is nothing to search: say what, algo.learning_rate=interval(1e-6,1e-4) for"
            " example, or put it into hydra.sweeper.params"
        )
    return Space(parameters, tuple(fixed), _checked_seeds(seeds))


def parameter_of(override: Override) -> Parameter:
    """
    Raises:
        ValueError: an interval that ends before it begins or, by its logarithm, begins at 0; a
            choice of nothing; or a tag that means nothing here.
    """
    name, value = override.get_key_element(), override.value()
    if unknown := sorted(getattr(value, "tags", set()) - {"log"}):
        raise ValueError(f"{name}: there is no tag({unknown[0]}, ...), only tag(log, ...)")
    log = "log" in getattr(value, "tags", ())
    if isinstance(value, IntervalSweep):
        return Parameter(name, _interval(name, value, log))
    if isinstance(value, RangeSweep) and not value.shuffle:
        numbers = list(value.range())
        if numbers and all(isinstance(number, int) for number in numbers):
            low, high = min(numbers), max(numbers)
            if not log:
                return Parameter(name, IntDistribution(low, high, step=abs(int(value.step))))
    if log:
        raise ValueError(f"{name}: tag(log, ...) is of an interval, tag(log, interval(1e-6, 1e-4))")
    choices: list[Any] = list(override.sweep_iterator(transformer=Transformer.encode))
    texts = tuple(override.sweep_string_iterator())
    if not choices or len(set(texts)) < len(texts):
        raise ValueError(f"{name}: {len(choices)} choices, and each has to be another: {choices}")
    return Parameter(name, CategoricalDistribution(choices), texts)


def _interval(name: str, value: IntervalSweep, log: bool) -> BaseDistribution:
    low, high = value.start, value.end
    if low is None or high is None or not low < high or not math.isfinite(high - low):
        raise ValueError(f"{name}: interval({low}, {high}) must begin before it ends")
    if log and low <= 0:
        raise ValueError(f"{name}: tag(log, interval({low}, {high})) must begin above 0")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def _plain(override: Override) -> str:
    return str(override.key_or_group)


def _seeds(override: Override) -> list[Any]:
    if override.is_discrete_sweep():
        return list(override.sweep_iterator())
    if override.is_sweep_override() or override.is_delete():
        raise ValueError(f"{override.input_line}: seeds are a list, seed=0,1,2 for example")
    return [override.value()]


def _checked_seeds(seeds: Iterable[Any]) -> tuple[int, ...]:
    checked = tuple(seeds)
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) for seed in checked)
    if not checked or not whole or len(set(checked)) < len(checked):
        raise ValueError(
            f"hydra.sweeper.seeds={list(checked)} must be whole numbers, each once: [0, 1, 2], or"
            " seed=0,1,2 on the command line"
        )
    return checked
