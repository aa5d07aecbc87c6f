"""Every number that an option takes: a wrong one is refused by the option's name."""

import contextlib
import math
import sys
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import Any

import pytest
from hydra.utils import get_object
from report_helpers import make_run

from datamodules import (
    DemonstrationDataModule,
    PreferenceDataModule,
    RolloutDataModule,
    TextGenerationEnv,
    UnpairedPreferenceDataModule,
    rewards,
)
from datamodules.checks import require_seed, require_types
from datamodules.rollouts.collector import PreferenceCollector
from rlmodules import GRPOConfig, LoraConfig, PPOConfig, RewardModelConfig
from rlmodules.engines.vllm import VLLM
from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.reward_models.scalar import RewardModel
from rlmodules.schemas.derive import all_sources
from rlmodules.schemas.nodes import NODES
from rlmodules.schemas.nodes import LoraConfig as LoraNode
from rlmodules.tasks.benchmark import benchmark
from rlmodules.tasks.compare import compare_runs
from rlmodules.tasks.doctor import doctor
from rlmodules.tasks.estimate import estimate
from rlmodules.tasks.inspect import inspect

TRIED = (-1, 0, math.nan, math.inf, -math.inf, 10**400)
SIGNED = {"tool_bonus", "missing_eos_penalty"}
"""Fields that a negative number is right for."""
FROM_0 = {
    "weight_decay", "entropy_coef", "value_coef", "kl_penalty_coef", "value_warmup_iterations",
    "top_k", "gamma", "lam", "max_resamples", "center_rewards_coefficient", "warmup_steps",
    "warmup_ratio", "label_smoothing", "dropout_prob", "lora_dropout", "dropout", "r", "seed",
    "eval_size", "num_held_out", "demonstrations", "tool_bonus", "error_penalty", "heldout",
    "missing_eos_penalty", "min_gap", "retries", "rows", "episodes", "eval_samples",
    "lmbda", "num_fewshot",
}  # fmt: skip
"""Fields that 0 is right for: it switches something off, or is one of a range."""


def takes(owner, name, value) -> bool:
    """What the table above says of a field; ``beta`` of DPO and KTO is a scale, else a weight."""
    if value == math.inf:
        return name == "max_grad_norm"  # no clipping
    if value == 10**400:
        return False
    if value == 0 and name == "temperature":
        return owner == "judge"
    if value == 0 and name == "beta":
        return owner not in ("DPOConfig", "KTOConfig")
    return name in SIGNED if value == -1 else name in FROM_0 if value == 0 else False


def numbers(node):
    """The fields of a schema that are numbers -> whether they are whole."""
    kinds = {f.name: str(f.type if isinstance(f.type, str) else getattr(f.type, "__name__", f.type))
             for f in fields(node)}  # fmt: skip
    return {name: kind.startswith("int") for name, kind in kinds.items()
            if kind.removesuffix(" | None") in ("int", "float")}  # fmt: skip


@cache
def reward_folder(tmp):
    config = RewardModelConfig(model_name="random:tiny", max_length=64, max_prompt_length=32)
    RewardModel(config).export(tmp)
    return str(tmp)


def maker(group, name, target, folder):
    """What takes the options of a schema."""
    made = get_object(target)
    if group == "algo":
        return made.config_class
    if group == "env":
        tokenizer = tiny_tokenizer()
        prompts = (["a"],) if name in ("text", "preference") else ()
        sandbox = {"sandbox": "unsafe"} if name == "code" else {}
        return partial(made, tokenizer, *prompts, **sandbox)
    if group == "reward":
        given = {
            "function": {"path": "datamodules.rewards.built_in:length_reward"},
            "model": {"path": reward_folder(folder)},
            "judge": {"url": "http://127.0.0.1:9/v1", "model": "m"},
            "weighted": {"components": {"short": "length"}},
        }
        return partial(made, **given.get(name, {}))
    if name == "compare" and not (folder.parent / "run").exists():
        make_run(folder.parent / "run", 0.5)
    return {
        "base": made,
        "estimate": partial(estimate, None, None, None, {}),
        "rollouts": partial(RolloutDataModule, TextGenerationEnv, prompts=["a"]),
        "preferences": partial(PreferenceDataModule, "a.jsonl"),
        "unpaired": partial(UnpairedPreferenceDataModule, "a.jsonl"),
        "demonstrations": partial(DemonstrationDataModule, "a.jsonl"),
        "collect_preferences": PreferenceCollector,
        "inspect": partial(looked_at, inspect),
        "doctor": partial(looked_at, doctor),
        "benchmark": partial(looked_at, benchmark, tasks=["arc_easy"]),
        "push": made,
        "vllm": partial(VLLM, sys.executable),
        "compare": partial(compare_runs, str(folder.parent / "run")),
    }[name]


def looked_at(task, **options):
    """What checks the options of a task first."""
    with contextlib.suppress(TypeError, AttributeError):  # no module to make, no trainer to ask
        task(None, None, None, {}, **options)


PACKAGES = {
    "reasoning_gym": "reasoning_gym",
    "verifiers": "verifiers.v1",  # tests/extras has them
    "openenv": "openenv.core",
}
CASES = [(group, name) for group, nodes in NODES.items() for name in nodes]


@pytest.mark.parametrize(("group", "name"), CASES)
def test_a_number_out_of_its_range_is_refused_by_its_name(group, name, tmp_path_factory):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    target = all_sources()[group][name].target
    make = maker(group, name, target, tmp_path_factory.getbasetemp() / "reward")
    for option, whole in numbers(NODES[group][name]).items():
        for value in TRIED:
            if whole and value == 10**400:
                continue  # a whole number that is merely large
            said = f"{name}: {group}.{option}={value}"
            right = takes(getattr(make, "__name__", name), option, value)
            try:
                make(**{option: value})
            except ValueError as error:
                names = {option, "early_stop_kl"} if option == "target_kl" else {option}
                assert any(f"{group}.{name}=" in str(error) for name in names), said
                assert not right, said
            else:
                assert right, said


def test_numbers_of_adapters_are_refused_by_their_names():
    for option in numbers(LoraNode):
        for value in (-1, math.nan, math.inf):
            with pytest.raises(ValueError, match=rf"model\.lora\.{option}={value}"):
                LoraConfig(**{option: value})
    with pytest.raises(ValueError, match=r"model\.lora\.alpha=0 "):
        LoraConfig(r=1, alpha=0)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: PPOConfig(batch_size=2.5), r"algo\.batch_size=2\.5 must be a whole number"),
        (lambda: PPOConfig(batch_size=True), r"algo\.batch_size=True must be a whole number"),
        (lambda: PPOConfig(learning_rate="1e-5"), r"algo\.learning_rate='1e-5' must be a finite"),
        (lambda: PPOConfig(whiten_advantages="no"), r"algo\.whiten_advantages='no' must be true"),
        (lambda: PPOConfig(model_name=None), r"algo\.model_name=None must be text"),
        (lambda: PPOConfig(seed=2**32), r"algo\.seed=4294967296 must be .* to 4294967295"),
        (lambda: PPOConfig(device="gpu0"), r"algo\.device='gpu0'"),
        (lambda: GRPOConfig(scale_rewards=None), r"algo\.scale_rewards=None must be"),
        (lambda: require_seed("seed", "abc"), r"^seed='abc' must be a whole number from 0"),
        (lambda: RewardModelConfig(max_length=-1), r"algo\.max_length=-1 must be 2 or more"),
        (
            lambda: RewardModelConfig(max_length=9, max_prompt_length=9),
            r"algo\.max_prompt_length=9",
        ),
        (lambda: rewards.length(timeout_s=math.nan), r"reward\.timeout_s=nan must be positive"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_its_name(make, what):
    with pytest.raises(ValueError, match=what):
        make()


def test_fields_of_all_kinds_are_checked():
    @dataclass
    class Config:
        weights: list[float] | None = None
        anything: Any = None

    require_types(Config([1, 0.5], object()), "x")
    for wrong in ([math.nan], ["1"], (1.0,), 1.0):
        with pytest.raises(ValueError, match=r"x\.weights=.* must be a list of finite numbers"):
            require_types(Config(wrong), "x")
