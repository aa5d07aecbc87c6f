"""Every option is changed, and the run must differ or refuse it: a part of the walk, and its tools.

The whole: ``PYTHONPATH=. python benchmarks/walk_options.py``.
"""

import inspect
import json
import random
import re
from pathlib import Path

import pytest
import yaml
from hydra.utils import get_object

from benchmarks import walk_options
from rlmodules.schemas.fields import CONF, Field, every_field
from rlmodules.tasks.option_changes import BASES, CHANGES, base_of
from rlmodules.tasks.option_walk import changed, outcome_of, walk

FIELDS = list(every_field())
IN_THE_SUITE = 8
"""Options a test run changes; each is a tiny run of a second."""


def test_a_part_of_the_options_do_something(tmp_path, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    part = random.Random(0).sample(walk_options.probed("^(ppo|dpo):algo"), IN_THE_SUITE)
    for finding in walk_options.found(part, tmp_path):
        assert finding.verdict in ("differs", "refused"), finding


def findings(outcomes, *, changes=None):
    """Of three options whose runs end as told; the base run's outcome is ``outcomes[()]``."""
    fields = [Field(f"algo.{name}", "ppo", "int", 1, "") for name in ("a", "b", "c")]
    run = lambda overrides: outcomes[tuple(o for o in overrides if o != "base")]  # noqa: E731
    return {
        finding.field.path[-1]: finding.verdict
        for finding in walk(
            fields, run, lambda f: ("base",), changes or {}, lambda o: {"algo.a": 3}
        )
    }


def test_the_walk_tells_dead_options_from_those_that_do_something():
    was = {"weights": "1", "metrics": "2"}
    outcomes = {
        (): was,
        ("algo.a=6",): was | {"metrics": "3"},
        ("algo.b=1",): dict(was),
        ("algo.c=1",): "ValueError: algo.c=1 must be 2",
    }
    assert findings(outcomes) == {"a": "differs", "b": "dead", "c": "refused"}
    outcomes[("algo.c=1",)] = "RuntimeError: shapes differ"
    assert findings(outcomes)["c"] == "broken"  # an error that does not name it
    assert findings(outcomes | {(): "it fails without them"}) == dict.fromkeys("abc", "broken")


def test_a_change_may_want_a_context_which_both_runs_have():
    outcomes = {
        (): {"w": "1"},
        ("x=1",): {"w": "2"},
        ("x=1", "algo.a=9"): {"w": "2"},
        ("algo.b=1",): {"w": "2"},
        ("algo.c=1",): {"w": "1", "file": ""},
    }
    told = findings(outcomes, changes={"algo.a": ("x=1", "algo.a=9")})
    assert told == {"a": "dead", "b": "differs", "c": "differs"}


@pytest.mark.parametrize(
    ("kind", "value", "other"),
    [
        ("bool", True, "x=false"),
        ("bool", False, "x=true"),
        ("int", 8, "x=16"),
        ("int", 0, "x=1"),
        ("int | None", None, "x=1"),
        ("float", 0.2, "x=0.1"),
        ("float | None", None, "x=0.5"),
        ("str", "a", None),
        ("Any", 3, None),
    ],
)
def test_an_option_is_changed_by_its_type(kind, value, other):
    assert changed(Field("x", "", kind, None, ""), value) == other


def test_what_a_run_left_is_compared_without_times_and_its_own_options(tmp_path):
    folder = tmp_path / "outputs" / "2026-01-02" / "03-04-05"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("a,time/s\n1,2\n")
    (folder / "config.yaml").write_text("a: 1")
    (folder / "README.md").write_text("a: 1")  # a model card names the settings
    (folder / "run.json").write_text('{"overrides": ["a=1"]}')
    (folder / "report.json").write_text(json.dumps({"seconds": 3, "history": [{"time/x": 1}]}))
    (folder / "model.safetensors").write_bytes(b"1")
    one = outcome_of(tmp_path)
    (folder / "metrics.csv").write_text("a,time/s\n1,9\n")
    (folder / "config.yaml").write_text("a: 2")
    (folder / "README.md").write_text("a: 2")
    (folder / "run.json").write_text('{"overrides": ["a=2"]}')
    (folder / "report.json").write_text(json.dumps({"seconds": 4, "history": [{"time/x": 2}]}))
    folder.rename(folder.with_name("09-09-09"))
    assert outcome_of(tmp_path) == one and len(one) == 6
    (folder.with_name("09-09-09") / "model.safetensors").write_bytes(b"2")
    assert outcome_of(tmp_path) != one


def test_every_option_is_walked_or_named_with_the_tests_that_show_it():
    for field in FIELDS:
        key = walk_options.key(field)
        shown = [test for p, test in walk_options.ELSEWHERE.items() if re.fullmatch(p, key)]
        told = f"{field.option}:{field.path}" in CHANGES or field.path in CHANGES
        by_type = field.kind.removesuffix(" | None") in ("bool", "int", "float")
        assert shown or told or by_type, f"{key}: say in CHANGES how it is changed"
    for test in walk_options.ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (Path(__file__).parents[1] / file).read_text(), test


def test_changes_and_bases_are_of_options_that_there_are():
    keys = {walk_options.key(field) for field in FIELDS} | {field.path for field in FIELDS}
    assert set(CHANGES) <= keys
    choices = {(f.path.partition(".")[0], f.option) for f in FIELDS}
    assert {(group, option) for group, bases in BASES.items() for option in bases} <= choices
    assert base_of(Field("seed", "", "int", 0, "")) == BASES["algo"]["ppo"]


@pytest.mark.parametrize("group", ["callbacks", "logger"])
def test_callbacks_and_loggers_take_what_is_said_of_them(group):
    """What their YAML says are parameters of what it names: none is swallowed by ``**kwargs``."""
    for path in (CONF / group).glob("*.yaml"):
        for name, part in (yaml.safe_load(path.read_text()) or {}).items():
            if name == "defaults" or set(part) == {"_target_"}:
                continue
            taken = inspect.signature(get_object(part["_target_"])).parameters
            assert set(part) - {"_target_"} <= set(taken), f"{path.name}: {name}"
