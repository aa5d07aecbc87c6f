"""A grid's jobs, the names of their folders, and what a sweep remembers of itself."""

import re
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from rlmodules.sweeping.folders import folder_names
from rlmodules.sweeping.grid import covering, make_grid
from rlmodules.sweeping.plan import PLAN, Plan, read_plan, require_same, write_plan


def grid(*overrides):
    return make_grid(OverridesParser.create().parse_overrides(list(overrides)))


def names(*overrides):
    return [str(job.folder) for job in grid(*overrides).jobs]


def test_every_combination_is_a_job_in_the_order_of_the_command():
    found = grid("algo=ppo", "algo.learning_rate=1e-5,3e-5", "seed=range(0,2)", "+x.y='a b',null")
    assert [str(job.folder) for job in found.jobs[:3]] == [
        "lr=1e-5,seed=0,y=a-b",
        "lr=1e-5,seed=0,y=null",
        "lr=1e-5,seed=1,y=a-b",
    ]
    assert len(found.jobs) == 8
    job = found.jobs[-2]
    assert job.overrides == ("algo=ppo", "algo.learning_rate=3e-05", "seed=1", "+x.y='a b'")
    assert job.swept == {"algo.learning_rate": 3e-5, "seed": 1, "x.y": "a b"}
    assert found.fixed == {"algo": "ppo"}
    assert found.space["x.y"] == ["a b", None]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["seed=0"], ["run"]),
        (["seed=0,1"], ["seed=0", "seed=1"]),
        (["algo=ppo,grpo"], ["algo=ppo", "algo=grpo"]),
        (["algo.size=1,2", "data.size=3"], ["size=1", "size=2"]),
        (
            ["algo.size=1,2", "data.size=3,4"],
            [f"algo.size={a},data.size={b}" for a in (1, 2) for b in (3, 4)],
        ),
        (["data.path=/a/b/c.jsonl,/a/d.jsonl"], ["path=c.jsonl", "path=d.jsonl"]),
        (["data.path=a/c.txt,b/c.txt"], ["path=a-c.txt", "path=b-c.txt"]),
        (["x=[1,2],[3]"], ["x=1,2", "x=3"]),
        (["reward.path='m:f','m:g'"], ["path=m-f", "path=m-g"]),
        (["seed=0,1", "seed=2,3"], ["seed=2", "seed=3"]),
    ],
)
def test_a_folder_is_named_by_what_differs(overrides, expected):
    assert names(*overrides) == expected


HARD = [
    {"data.prompt": "../../etc", "seed": 0},
    {"data.prompt": "x" * 300, "seed": 0},
    {"data.prompt": "x" * 300 + "y", "seed": 0},
    {"data.prompt": "a b", "seed": 0},
    {"data.prompt": "a-b", "seed": 0},
    {"data.prompt": "A-b", "seed": 0},
    {"data.prompt": "", "seed": 0},
    {"data.prompt": "日本", "seed": 0},
    {"data.prompt": "中国", "seed": 0},
    {"data.prompt": "..", "seed": 0},
    {"data.prompt": None, "seed": 0},
    {"data.prompt": "null", "seed": 0},
    {"data.prompt": ["null"], "seed": 0},
    {"data.prompt": {"a": 1}, "seed": 0},
    {"data.prompt": 1, "seed": 0},
    {"data.prompt": 1.0, "seed": 0},
    {"data.prompt": True, "seed": 0},
    {"data.prompt": "line\nbreak", "seed": 0},
]


def test_names_are_safe_short_and_no_other_jobs():
    made = folder_names(HARD)
    assert len({name.casefold() for name in made}) == len(HARD)
    for name in made:
        assert re.fullmatch(r"[A-Za-z0-9_.,=+@-]{1,100}", name), name
        assert name.strip(".- ") == name
    assert folder_names(HARD) == made, "a name is the same another time"
    assert folder_names([{"x": "..", "y": 0}]) == ["x=..,y=0"]
    assert folder_names([{}]) == ["run"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("algo.lr=interval(1e-6,1e-4)", r"a range has no end of values: list some \(algo\.lr="),
        ("seed=0,0", "seed=0,0: a value is there twice"),
        ("seed=range(3,3)", "there are no values"),
    ],
)
def test_what_is_no_list_of_values_is_refused(override, said):
    with pytest.raises(ValueError, match=said):
        grid(override)


def test_no_job_is_told_of_the_sweep():
    found = grid("sweep.retry_failed=true", "seed=0,1")
    assert found.fixed == {} and found.jobs[0].overrides == ("seed=0",)


def test_of_many_jobs_some_with_every_value_are_composed():
    jobs = grid("a=range(0,10)", "b=range(0,10)", "c=1").jobs
    assert covering(jobs, 100) == list(jobs)
    some = covering(jobs, 99)
    assert len(some) == 19
    assert {o for job in some for o in job.overrides} == {o for job in jobs for o in job.overrides}


def test_a_sweep_is_kept_whole(tmp_path):
    assert read_plan(tmp_path) is None
    plan = Plan(grid("algo=ppo", "x=[1],null", "seed=0,1"), "process", ("python", "train.py"))
    write_plan(tmp_path, plan)
    assert read_plan(tmp_path) == plan and (tmp_path / PLAN).is_file()


FIRST = ["algo=ppo", "algo.learning_rate=1e-5,3e-5", "seed=0,1"]


@pytest.mark.parametrize(
    ("again", "changes"),
    [
        (FIRST, []),
        (FIRST[::-1], []),
        (["algo=ppo", "algo.learning_rate=0.00003,0.00001", "seed=1,0"], []),
        ([*FIRST, "sweep.retry_failed=true", "logger=none", "paths.output_root=x"], []),
        ([*FIRST, "model=tiny"], ["model: (none) -> tiny"]),
        (["algo=grpo", *FIRST[1:]], ["algo: ppo -> grpo"]),
        ([*FIRST, "seed=0,1,2"], ["seed: 0,1 -> 0,1,2"]),
        (FIRST[:2], ["seed: 0,1 -> (none)"]),
    ],
)
def test_the_same_sweep_goes_on_and_another_is_refused_by_what_differs(tmp_path, again, changes):
    write_plan(tmp_path, Plan(grid(*FIRST), "process", ()))
    old = read_plan(tmp_path).grid
    if not changes:
        require_same(tmp_path, old, grid(*again))
        return
    with pytest.raises(ValueError, match="holds a sweep of other options") as refused:
        require_same(tmp_path, old, grid(*again))
    assert [line[2:] for line in str(refused.value).splitlines() if line[:2] == "  "] == changes


def test_folders_are_relative_so_that_a_sweep_can_be_moved(tmp_path):
    assert not any(job.folder.is_absolute() for job in grid("data.path=/a,/b").jobs)
    assert all(len(Path(job.folder).parts) == 1 for job in grid("data.path=/a,/b").jobs)
