"""Every search composes for every algorithm; what is written is read, or refused by name."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from search_helpers import plan

from rlmodules import schemas
from rlmodules.sweeping.search.begin import corners, make_plan
from rlmodules.sweeping.search.options import SearchOptions
from rlmodules.sweeping.search.rules import Halve, StopLosers

CONF = Path(__file__).parents[2] / "conf"
ALGORITHMS = sorted(path.stem for path in (CONF / "algo").glob("*.yaml"))
SEARCHES = sorted({path.stem for path in (CONF / "hparams_search").glob("*.yaml")} - {"grid"})
NO_SECOND = "multi_objective"
"""It logs one metric, and others by the names of the user's own objectives."""


@pytest.fixture(autouse=True)
def clean_hydra():
    schemas.register()
    yield
    GlobalHydra.instance().clear()


def composed(*overrides, hydra=True):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=hydra)


def planned(*overrides):
    """The plan of ``python train.py -m OVERRIDES``; what is swept is not composed."""
    config = composed(*(o for o in overrides if not re.search(r"=.*(,|\()", o)))
    return make_plan(config, overrides)


def test_these_are_all():
    assert SEARCHES == ["halving", "optuna", "pareto"]
    assert set(composed("hparams_search=optuna").hydra.sweeper.spaces) == set(ALGORITHMS)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_search_is_planned_for_every_algorithm(algorithm, search):
    told = [f"algo={algorithm}", f"hparams_search={search}"]
    if (algorithm, search) == (NO_SECOND, "pareto"):
        with pytest.raises(ValueError, match="nothing is named against"):
            planned(*told)
        told.append("hydra.sweeper.against=val/mse_safety")
    made = planned(*told)
    assert len(made.space.parameters) >= 2 and made.space.seeds == (0, 1, 2)
    assert len(made.goals) == (2 if search == "pareto" else 1)
    if search == "halving":
        assert isinstance(made.rule, Halve) and made.options.n_trials == 8
    assert isinstance(made.rule, StopLosers) == (search == "optuna")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_value_of_every_space_is_accepted_by_the_algorithm(algorithm):
    """Both ends of every range, and each choice beside them, compose and make a config."""
    from hydra.utils import get_class

    made = planned(f"algo={algorithm}", "hparams_search=optuna")
    settings = corners(made.space)
    for name, parameter in made.space.parameters.items():
        for value in getattr(parameter.distribution, "choices", ()):
            settings.append((*settings[0], parameter.override(value)))
        assert name.startswith("algo.")
    for overrides in settings:
        cfg = composed(f"algo={algorithm}", *overrides[1:], hydra=False)
        known = OmegaConf.to_container(cfg.algo, resolve=True)
        options = {k: v for k, v in known.items() if not k.startswith("_")}
        get_class(cfg.module).config_class(**options)


def test_the_yaml_explains_every_option_and_no_other():
    known = {f.name for f in fields(SearchOptions)}
    written = OmegaConf.load(CONF / "hydra" / "sweeper" / "search.yaml")
    given = {str(name) for name in written if not str(name).startswith("_")} - {"defaults"}
    assert given == known - {"sampler"}


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "nsgaii"])
def test_every_sampler_is_made(sampler):
    made = planned(
        "hparams_search=optuna",
        f"hydra/sweeper/sampler={sampler}",
        "algo.learning_rate=1e-5,1e-4",
        "algo.value_learning_rate=1e-3",
        "algo.kl_penalty_coef=0.1",
    )
    name = type(made.options.sampler_for(made.space, "", 0)).__name__.lower()
    assert name.startswith(sampler)


def test_a_grid_has_no_intervals():
    with pytest.raises(ValueError, match="a grid has no interval: write choice"):
        planned("hparams_search=optuna", "hydra/sweeper/sampler=grid")


# ------------------------------------------------- the command line and params


def test_the_command_line_replaces_takes_out_and_adds():
    made = planned(
        "hparams_search=optuna",
        "algo.learning_rate=interval(1e-6,1e-5)",  # other values
        "algo.lam=0.9",  # one value: no longer searched
        "algo.gamma=0.99,1.0",  # one more
        "model=tiny",
        "seed=5,6",
        "sweep.retry_failed=true",
    )
    assert set(made.space.parameters) == {
        "algo.learning_rate",
        "algo.value_learning_rate",
        "algo.kl_penalty_coef",
        "algo.gamma",
    }
    rate = made.space.parameters["algo.learning_rate"].distribution
    assert (rate.low, rate.high, rate.log) == (1e-6, 1e-5, False)
    assert made.space.fixed == ("hparams_search=optuna", "algo.lam=0.9", "model=tiny")
    assert made.space.seeds == (5, 6)


@pytest.mark.parametrize(
    ("written", "values", "texts"),
    [
        ("interval(1e-6,1e-4)", [1e-6, 1e-4], ["1e-06", "0.0001"]),
        ("tag(log,interval(1e-6,1e-4))", [1e-5], ["1e-05"]),
        ("int(interval(1,8))", [1, 8], ["1", "8"]),
        ("tag(log,int(interval(1,64)))", [64], ["64"]),
        ("range(1,5)", [1, 4], ["1", "4"]),
        ("range(2,9,3)", [2, 8], ["2", "8"]),
        ("range(0.5,2,0.5)", [0.5, 1.5], ["0.5", "1.5"]),
        ("1,2,x", [1, "x"], ["1", "x"]),
        ("null,true", ["null", True], ["null", "True"]),
        ("choice('a b',\"c,d\")", ["a b", "c,d"], ["a\\ b", "c\\,d"]),
        ("[sigmoid,sft],[ipo]", ["[sigmoid,sft]"], ["[sigmoid,sft]"]),
    ],
)
def test_hydra_s_syntax_is_read_and_written_back(written, values, texts):
    parameter = plan(f"algo.x={written}").space.parameters["algo.x"]
    assert [parameter.override(v) for v in values] == [f"algo.x={text}" for text in texts]
    for value in values:
        assert parameter.distribution._contains(parameter.distribution.to_internal_repr(value))


def test_values_of_intervals_have_four_digits_and_stay_inside():
    parameter = plan("algo.x=interval(1.23456e-5,9.87654e-5)").space.parameters["algo.x"]
    assert parameter.rounded(3.141592e-5) == 3.142e-5
    assert parameter.rounded(1.23411e-5) == 1.23456e-5  # 1.234 would lie outside
    assert parameter.rounded(9.8765e-5) == 9.876e-5
    assert parameter.rounded(9.87654e-5) == 9.87654e-5


def test_a_range_leaves_its_end_out():
    distribution = plan("algo.x=range(1,5)").space.parameters["algo.x"].distribution
    assert (distribution.low, distribution.high) == (1, 4)


@pytest.mark.parametrize(
    ("arguments", "changes", "named"),
    [
        (["algo.x=interval(2,1)"], {}, r"interval\(2.*, 1.*\) must begin before"),
        (["algo.x=tag(log,interval(0,1))"], {}, "must begin above 0"),
        (["algo.x=tag(log,choice(1,2))"], {}, r"tag\(log, ...\) is of an interval"),
        (["algo.x=tag(fast,interval(0,1))"], {}, r"there is no tag\(fast, ...\)"),
        (["algo.x=1,1"], {}, "each has to be another"),
        (["algo=ppo,grpo"], {}, "algo= cannot be searched over"),
        (["algo.learning_rate=1e-5"], {}, "nothing to search"),
        (["seed=interval(1,2)"], {}, "seeds are a list"),
        ([], {"params": {"algo.lam": "0.9"}}, "algo.lam=0.9 is one value"),
        ([], {"seeds": [0, 0]}, r"hydra\.sweeper\.seeds=\[0, 0\]"),
        ([], {"sampler": {"seed": "x"}}, r"hydra\.sweeper\.sampler\.seed='x' must be a whole"),
        ([], {"n_trials": 0}, r"hydra\.sweeper\.n_trials=0"),
        ([], {"n_jobs": 0}, r"hydra\.sweeper\.n_jobs=0"),
        ([], {"max_failure_rate": 2}, r"max_failure_rate=2 must be between 0 and 1"),
        ([], {"min_units": "half"}, r"min_units='half'"),
        ([], {"direction": "minimize"}, "direction=minimize: val/reward is better the other way"),
        ([], {"direction": "up"}, "direction=up must be minimize"),
        ([], {"metrics": ["val/accuracy"]}, "val/accuracy is not logged by rlmodules.PPO"),
        ([], {"metrics": ["val/response_length"]}, "is better neither up nor down"),
        ([], {"against": "val/kl"}, "is read by hparams_search=pareto alone"),
        ([], {"pareto": True}, "nothing is named against"),
        ([], {"sampler": {"_target_": "optuna.samplers.Nope"}}, "sampler._target_=optuna"),
        ([], {"sampler": {"_target_": "optuna.samplers.TPESampler", "n": 1}}, "sampler: .*'n'"),
        ([], {"spaces": {"ppo": {"param": {}}}}, "spaces.ppo: nothing reads param"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(arguments, changes, named):
    with pytest.raises(ValueError, match=named):
        plan(*arguments, **changes)


def test_a_metric_that_is_neither_up_nor_down_takes_a_direction():
    made = plan(metrics=["val/response_length"], direction="minimize")
    assert made.goals == {"val/response_length": "minimize"}
    assert plan(metrics=["val/kl"]).goals == {"val/kl": "minimize"}


def test_storage_is_a_url():
    from rlmodules.sweeping.search.study import open_storage

    with pytest.raises(ValueError, match=r"storage='study.db' must be null"):
        open_storage("study.db", Path("."))
    with pytest.raises(ValueError, match="cannot be opened"):
        open_storage("nope://host/db", Path("."))


def test_help_takes_an_interval_for_where_it_begins():
    from rlmodules.schemas.help import _first_values

    told = ["algo.learning_rate=tag(log,interval(1e-5,1e-4))", "seed=1,2", "algo=ppo"]
    assert _first_values(told) == ["algo.learning_rate=1e-05", "seed=1", "algo=ppo"]
