"""The table of metrics holds all that is logged, and nothing else."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlmodules.metrics.document import PAGE, page
from rlmodules.metrics.metric import EVERY
from rlmodules.metrics.table import TABLE, better, find, is_logged_by, logged_by

ROOT = Path(__file__).parents[2]
SMALL = ["model=tiny", "trainer.precision=32-true", "logger=default"]
SMALL += [f"~callbacks.{name}" for name in ("export", "report", "best", "last")]
ONLINE = [*SMALL, "algo.num_iterations=1", "algo.batch_size=4", "algo.mini_batch_size=2"]
ONLINE += ["algo.gradient_accumulation_steps=1", "algo.max_new_tokens=4", "data.eval_size=2"]
PARTS = [
    "algo.sampler_is=token",
    "env=text",
    "reward=weighted",
    "reward.components={short: length, mine: rewards:mine}",
]
SOLVED = ["env=math", "data.eval_generations=2"]
PAIRS = [*SMALL, "data.eval_size=8", "+trainer.max_steps=1"]
WITH_REFERENCE = ["algo.num_generations=2", "algo.beta=0.1"]
TEACHER = "algo.teacher_model_name_or_path=random:tiny"
RUNS = {
    # module: its runs, which together log all that it ever logs
    "PPO": [["algo=ppo", *ONLINE, "algo.value_warmup_iterations=0", *e] for e in (PARTS, SOLVED)],
    "GRPO": [["algo=grpo", *ONLINE, *WITH_REFERENCE, *env] for env in (PARTS, SOLVED)],
    "Distillation": [["algo=distill", *ONLINE, TEACHER, *env] for env in (PARTS[1:], SOLVED)],
    "SFT": [["algo=sft", *PAIRS]],
    "KTO": [["algo=kto", *PAIRS]],
    "DPO": [["algo=dpo", *PAIRS]],
    "ORPO": [["algo=orpo", *PAIRS]],
    "RewardModel": [["algo=reward", *PAIRS]],
    "PairwiseRewardModel": [["algo=pairwise", *PAIRS]],
    "MultiObjectiveRewardModel": [["algo=multi_objective", *PAIRS]],
}
UNTRIED = {"Distillation": {"rollout/sampler_kl"}}
"""What another engine than ours has to sample for."""
REWARD = """
def mine(completions, log_metric):
    log_metric("words", 2.0)
    return [1.0] * len(completions)
"""


def columns(folder):
    """Names of all that any run below ``folder`` logged."""
    names = set()
    for path in folder.glob("outputs/**/metrics.csv"):
        rows = list(csv.DictReader(path.open()))
        names |= {name for row in rows for name, value in row.items() if value}
    return names


@pytest.mark.parametrize("algorithm", EVERY)
def test_an_algorithm_logs_what_the_table_says_and_no_more(tmp_path, command, algorithm):
    (tmp_path / "rewards.py").write_text(REWARD)
    for run in RUNS[algorithm]:
        command(*run)
    logged = columns(tmp_path)
    assert len(logged) > 10
    unknown = {name for name in logged if not is_logged_by(algorithm, name)}
    assert unknown == set(), f"{algorithm} logs what has no row in rlmodules/metrics"
    missing = {m.name for m in logged_by(algorithm) if not any(map(m.matches, logged))}
    missing -= UNTRIED.get(algorithm, set())
    assert missing == set(), f"rlmodules/metrics says that {algorithm} logs these"


def test_every_metric_that_sources_name_has_a_row():
    """Also of what no run here logs, and of what reads metrics: bars, plots, conf."""
    sources = [p for p in ROOT.glob("rlmodules/**/*.py") if p.parent.name != "metrics"]
    pages = [page for page in ROOT.glob("docs/*.md") if page != PAGE]
    places = [*sources, *ROOT.glob("conf/**/*.yaml"), ROOT / "README.md", *pages]
    literal = re.compile(r"(?<![\w/.{])((?:train|val|rollout|time)/[a-z_]+(?:@\w+)?)(?![\w/{.*])")
    found = {name: path for path in places for name in literal.findall(path.read_text())}
    assert len(found) > 40
    unknown = {name: str(path) for name, path in found.items() if not is_known(name)}
    assert unknown.keys() <= {"val/rewards"}, unknown  # which option_changes.py writes on purpose


def is_known(name):
    begins_a_pattern = any(m.is_pattern and m.name.startswith(name) for m in TABLE)
    return find(name) is not None or (name.endswith(("_", "pass")) and begins_a_pattern)


def test_rows_are_whole_and_found():
    assert len({metric.name for metric in TABLE}) == len(TABLE)
    for metric in TABLE:
        assert find(metric.name) is metric and set(metric.by) <= set(EVERY)
        assert metric.better in ("up", "down", "")
        assert metric.what.endswith(".") and not metric.healthy.endswith(".")
        assert metric.otherwise == "" or metric.otherwise.endswith(".")
        assert metric.is_pattern == bool(metric.examples)
        for name in metric.examples:
            assert find(name) is metric
    assert find("rollout/reward_std").name == "rollout/reward_std"  # no part of a reward
    assert find("val/pass@") is None and find("val/reward_x") is find("val/reward_NAME")


def test_what_an_algorithm_logs_is_known_before_it_runs():
    assert is_logged_by("rlmodules.PPO", "val/pass@4")
    assert not is_logged_by("PPO", "val/accuracy") and not is_logged_by("DPO", "val/reward")
    assert is_logged_by("MyOwn", "val/reward") is None and logged_by("MyOwn") is None
    assert (better("val/reward"), better("val/loss"), better("val/response_length")) == (
        "up",
        "down",
        "",
    )
    assert better("val/of_nobody") == ""


def test_the_page_is_current():
    assert PAGE.read_text() == page(), "run python -m rlmodules.metrics.document"


def test_the_table_needs_no_torch():
    code = "import sys, rlmodules.metrics.table; print({'torch', 'lightning'} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert said.stdout == "set()\n", said.stderr
