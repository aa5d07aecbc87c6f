"""The options of a search, ``hydra.sweeper.*``, checked."""

import importlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import optuna
from optuna.pruners import BasePruner, WilcoxonPruner
from optuna.samplers import BaseSampler, GridSampler, QMCSampler

from rlmodules.metrics.table import better, is_logged_by
from rlmodules.sweeping.search.space import Space
from rlmodules.sweeping.search.study import Direction, experimental

DIRECTIONS: dict[str, Direction] = {"up": "maximize", "down": "minimize"}

ORDERED = (GridSampler, QMCSampler)
"""Samplers that go through one sequence, which their seed decides, and know from the study how far
they are."""


@dataclass
class SearchOptions:
    """What ``conf/hydra/sweeper/search.yaml`` holds; there each is explained."""

    params: Mapping[str, Any] = field(default_factory=dict)
    spaces: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2)
    n_trials: int = 20
    n_jobs: int | None = None
    metrics: Sequence[str] | None = None
    pareto: bool = False
    against: str | None = None
    direction: Any = None
    sampler: Mapping[str, Any] = field(default_factory=dict)
    pruner: Mapping[str, Any] | None = None
    min_units: int | str | None = None
    max_failure_rate: float = 0.5
    storage: str | None = None
    study_name: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("n_trials", 1), ("n_jobs", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"hydra.sweeper.{name}={value!r} must be {least} or more")
        rate = self.max_failure_rate
        if not isinstance(rate, float | int) or not 0 <= rate <= 1:
            raise ValueError(f"hydra.sweeper.max_failure_rate={rate!r} must be between 0 and 1")
        units = self.min_units
        if isinstance(units, str) and units != "quarter":
            raise ValueError(
                f"hydra.sweeper.min_units={units!r} must be a number, quarter, or null"
            )
        if isinstance(units, int) and units < 1:
            raise ValueError(f"hydra.sweeper.min_units={units} must be 1 or more")
        if units is not None and self.pruner is not None:
            raise ValueError(
                "hydra.sweeper.min_units halves, and hydra.sweeper.pruner stops, losing trials:"
                " set one of them to null"
            )
        seed = self.sampler.get("seed")
        if seed is not None and type(seed) is not int:
            raise ValueError(f"hydra.sweeper.sampler.seed={seed!r} must be a whole number, or null")
        if self.metrics and (self.pareto or self.against):
            raise ValueError(
                "hydra.sweeper.metrics names all that counts: leave hydra.sweeper.pareto and"
                " hydra.sweeper.against out"
            )
        if self.against and not self.pareto:
            raise ValueError(
                f"hydra.sweeper.against={self.against} is read by hparams_search=pareto alone"
            )

    def of_algorithm(self, algorithm: str) -> "SearchOptions":
        """With what the space of ``algo=ALGORITHM`` says where nothing else was said.

        Raises:
            ValueError: it is to say what is against the optimized metric, or how long a quarter of
                a run is, and does not; or it says something else.
        """
        space = self.spaces.get(algorithm, {})
        if unknown := sorted(set(space) - {"params", "against", "quarter"}):
            raise ValueError(f"hydra.sweeper.spaces.{algorithm}: nothing reads {unknown[0]}")
        against = self.against or space.get("against")
        if self.pareto and not against:
            raise ValueError(
                f"hparams_search=pareto: nothing is named against the optimized metric of"
                f" algo={algorithm}: hydra.sweeper.against=val/kl, for example (docs/metrics.md)"
            )
        params = {**space.get("params", {}), **self.params}
        against = against if self.pareto else None
        return replace(self, params=params, against=against, spaces={algorithm: space})

    @property
    def quarter(self) -> int | None:
        """Of a run, in optimizer steps, as the algorithm's space says."""
        return next(iter(self.spaces.values()), {}).get("quarter")

    def goals(self, optimized_metric: str, module: str) -> dict[str, Direction]:
        """Metric -> direction.

        Args:
            optimized_metric: of the run; what is searched for if ``metrics`` names nothing.
            module: the algorithm's class, which decides what is logged.

        Raises:
            ValueError: a metric is not logged, its better direction is not known, or another is
                asked for; or several metrics are to be pruned by.
        """
        metrics = list(self.metrics or [optimized_metric, *filter(None, [self.against])])
        for name in metrics:
            if is_logged_by(module, name) is False:
                option = "optimized_metric" if name == optimized_metric else "hydra.sweeper.metrics"
                option = "hydra.sweeper.against" if name == self.against else option
                raise ValueError(f"{option}={name} is not logged by {module}: see docs/metrics.md")
        given = self.direction if isinstance(self.direction, list | tuple) else [self.direction]
        directions = list(given) if self.direction else [None] * len(metrics)
        if len(directions) != len(metrics) or len(set(metrics)) < len(metrics):
            raise ValueError(
                f"hydra.sweeper.direction={self.direction} must have a direction for each of"
                f" {metrics}, which must differ"
            )
        goals = {m: direction_of(m, d) for m, d in zip(metrics, directions, strict=True)}
        if len(goals) > 1 and (self.pruner is not None or self.min_units is not None):
            raise ValueError(
                f"hydra.sweeper.metrics={metrics}: with several nothing can be pruned or halved:"
                " hydra.sweeper.pruner=null hydra.sweeper.min_units=null, or name one"
            )
        if self.pruner is not None or self.min_units is not None:
            require_held_out(metrics[0])
        return goals

    def make_pruner(self, seeds: int) -> BasePruner | None:
        """The pruner of instances; None if nothing is pruned: so few seeds can never decide.

        Raises:
            ValueError: it is another kind of pruner.
        """
        if self.pruner is None:
            return None
        pruner = made(self.pruner, "pruner")
        if not isinstance(pruner, WilcoxonPruner):
            raise ValueError(
                f"hydra.sweeper.pruner={type(pruner).__name__} compares runs at one step, and here"
                " seeds are compared: there is optuna.pruners.WilcoxonPruner, and"
                " hparams_search=halving to stop those that are behind after some iterations"
            )
        threshold = float(self.pruner.get("p_threshold", 0.1))
        if threshold <= 0.5**seeds or seeds == 1:
            return None
        return pruner

    def sampler_for(self, space: Space, salt: str, number: int) -> BaseSampler:
        """The sampler of a study's trial ``number``: its seed is another for each.

        Args:
            salt: what makes another sweep of the same study propose otherwise.
        """
        options = dict(self.sampler)
        seed = options.get("seed")
        kind = target(options["_target_"], "sampler")
        if kind in ORDERED:
            options["seed"] = seed or 0
        elif seed is not None:
            options["seed"] = zlib.crc32(f"{seed}/{number}{salt}".encode())
        if kind is GridSampler:
            options["search_space"] = space.grid()
        return made(options, "sampler")


def direction_of(metric: str, given: Direction | None) -> Direction:
    """
    Raises:
        ValueError: it is not known, or ``given`` is no direction or the worse one.
    """
    if given not in (None, *DIRECTIONS.values()):
        raise ValueError(f"hydra.sweeper.direction={given} must be minimize, maximize, or null")
    own = DIRECTIONS.get(better(metric))
    if own is None and given is None:
        raise ValueError(
            f"{metric} is better neither up nor down: say hydra.sweeper.direction=minimize or"
            " maximize"
        )
    if own is not None and given not in (None, own):
        raise ValueError(
            f"hydra.sweeper.direction={given}: {metric} is better the other way, which null takes"
        )
    direction = given or own
    assert direction is not None
    return direction


def require_held_out(metric: str) -> None:
    """
    Raises:
        ValueError: trials cannot be compared by it half-way.
    """
    if not metric.startswith("val/"):
        raise ValueError(
            f"optimized_metric={metric} is not of held-out data (val/...), by which trials are"
            " compared half-way: choose one that is, or set hydra.sweeper.pruner=null and"
            " hydra.sweeper.min_units=null"
        )


def target(path: Any, what: str) -> Any:
    """
    Raises:
        ValueError: there is no such class.
    """
    module, _, name = str(path).rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"hydra.sweeper.{what}._target_={path}: there is none ({error})") from None


def made(options: Mapping[str, Any], what: str) -> Any:
    """The object that ``{_target_: ..., ...}`` describes.

    Raises:
        ValueError: it takes no such options.
    """
    given = {name: value for name, value in options.items() if name != "_target_"}
    try:
        with experimental():
            return target(options["_target_"], what)(**given)
    except (TypeError, ImportError) as error:
        raise ValueError(f"hydra.sweeper.{what}: {error}") from error


optuna.logging.set_verbosity(optuna.logging.WARNING)
