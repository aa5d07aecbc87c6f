"""Options that the doctor calls dead change nothing, and it calls none dead that do something."""

import warnings

import pytest

from benchmarks.walk_options import Runs
from rlmodules.tasks.dead_options import IDLE, dead_options
from rlmodules.tasks.option_changes import BASES

ALGO = BASES["algo"]
PPO, GRPO, DPO = ALGO["ppo"], ALGO["grpo"], ALGO["dpo"]
TINY = ("algo.mini_batch_size=8", "algo.batch_size=8")
PARTS = {"algo": {}, "model": {"lora": {"r": 4}}, "data": {}, "trainer": {}, "ckpt_path": None}
DEAD = [
    # a run, what it is told besides, the options that then do nothing
    (GRPO, (*TINY, "algo.num_epochs=1"),
     ("algo.epsilon=0.0001", "algo.epsilon_high=0.0002", "algo.delta=1.0003",
      "algo.sampler_is_cap=0.5")),
    (PPO, ("algo.kl_penalty_coef=0", "algo.value_coef=0", "data.eval_size=0"),
     ("algo.kl_horizon=20", "algo.value_learning_rate=0.5", "data.eval_generations=3",
      "data.eval_path=nowhere.txt", "model.lora.alpha=64", "model.lora.target_modules=[q_proj]",
      "resume.allow=[algo.temperature]")),
    (PPO, ("data.eval_size=0",), ("data.eval_prompts=[Nine,Ten]",)),
    (PPO, (*TINY, "algo.ppo_epochs=1"), ("algo.early_stop_kl=1e-9",)),
    (PPO, (*TINY, "algo.ppo_epochs=1"), ("algo.target_kl=1e-9",)),
    (PPO, ("algo.value_warmup_iterations=2",),
     ("algo.clip_ratio=0.0001", "algo.entropy_coef=0.5", "algo.early_stop_kl=1e-9")),
    (DPO, ("algo.lr_scheduler_type=constant",), ("algo.warmup_ratio=0.9", "algo.discopop_tau=0.5")),
    (ALGO["reward"], ("algo.lr_scheduler_type=constant",),
     ("algo.warmup_steps=0", "algo.lora_rank=2", "algo.lora_alpha=64", "algo.lora_dropout=0.5")),
    (ALGO["sft"], ("algo.eval_samples=0",), ("algo.max_new_tokens=9",)),
    (ALGO["sft"], ("data.eval_size=0",),
     ("data.eval_path=${oc.env:WALKED}/others.jsonl", "data.eval_batch_size=1",
      "algo.eval_samples=3")),
]  # fmt: skip
NEVER_RUN = {"data.eval_split"}
"""Of data sets with parts; read where ``data.eval_path`` is."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of overrides what a run leaves, and what it was told; each is run once."""
    made, known = Runs(tmp_path_factory.mktemp("runs")), {}

    def run(*overrides):
        if overrides not in known:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                known[overrides] = made(overrides)
        return known[overrides], nested(made.values(overrides))

    return run


def nested(flat):
    """Settings by path as they stand in a run."""
    found = {}
    for path, value in flat.items():
        if not isinstance(value, dict):
            *groups, name = path.split(".")
            place = found
            for group in groups:
                place = place.setdefault(group, {})
            place[name] = value
    return found


@pytest.mark.parametrize(("base", "told", "dead"), DEAD, ids=lambda x: x[-1] if x else "-")
def test_what_is_called_dead_changes_nothing(base, told, dead, runs, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    without, _ = runs(*base, *told)
    left, settings = runs(*base, *told, *dead)
    assert isinstance(left, dict) and left == without
    named = {override.partition("=")[0] for override in dead}
    assert named <= set(dead_options([*base, *told, *dead], settings))


def test_every_option_that_may_be_called_dead_is_run():
    tried = {option.partition("=")[0] for *_, dead in DEAD for option in dead}
    assert {option for idle in IDLE for option in idle.options} - NEVER_RUN == tried


STEP = {"batch_size": 8, "mini_batch_size": 4, "gradient_accumulation_steps": 2}
READ = [
    # options that are read, and the settings that have them be so
    ("sampler_is_cap", {"sampler_is": "token"}),
    ("kl_horizon", {"kl_penalty_coef": 0.05}),
    ("value_learning_rate", {"value_coef": 0.5}),
    ("early_stop_kl", STEP | {"ppo_epochs": 2}),
    ("early_stop_kl", STEP | {"ppo_epochs": 1, "batch_size": 16}),
    ("clip_ratio", {"value_warmup_iterations": 1, "num_iterations": 2}),
    ("epsilon", STEP | {"num_epochs": 2}),
    ("discopop_tau", {"loss_type": ["sft", "discopop"]}),
    ("warmup_ratio", {"lr_scheduler_type": "constant_with_warmup"}),
    ("lora_rank", {"use_lora": True}),
    ("max_new_tokens", {"eval_samples": 1}),
    ("max_new_tokens", {}),  # of what has no such option to wait for
]


@pytest.mark.parametrize(("option", "algo"), READ)
def test_what_another_option_has_read_is_not_called_dead(option, algo):
    settings = PARTS | {"algo": algo, "trainer": {"max_epochs": 2}}
    assert dead_options([f"algo.{option}=1"], settings) == {}


def test_only_what_the_command_sets_is_named_by_whatever_sign():
    settings = PARTS | {"algo": {"sampler_is": "none"}}
    assert dead_options(["algo.sampler_is=none"], settings) == {}
    found = dead_options(["++algo.sampler_is_cap=2", "model.lora.alpha=8"], settings)
    assert (
        list(found) == ["algo.sampler_is_cap"] and "weighs no token" in found["algo.sampler_is_cap"]
    )
    assert dead_options(["resume.allow=[seed]"], settings | {"ckpt_path": "last"}) == {}
    assert dead_options(["data.eval_path=x"], settings | {"data": {"eval_size": None}}) == {}
