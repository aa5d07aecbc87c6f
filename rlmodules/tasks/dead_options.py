"""Options that a command sets, and that change nothing in its run because of another option.

What contradicts another option, or has no effect on the loss that was chosen, is mostly refused
before a run begins. Here is what is let through, for it does no harm: each row is certain, and
``tests/tasks/test_dead_options.py`` runs each with the option and without it.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from rlmodules.resuming.changes import flatten

Settings = Mapping[str, Any]
"""A run's, by the options' paths."""


class Idle(NamedTuple):
    """Options that do nothing ``when`` the settings are so; ``why`` says it, and the remedy."""

    options: tuple[str, ...]
    when: Callable[[Settings], bool]
    why: str


def takes_one_step(s: Settings) -> bool:
    """Whether an iteration is one optimizer step, so that every ratio in it is exactly 1."""
    epochs = s.get("algo.ppo_epochs", s.get("algo.num_epochs", 1))
    window = s["algo.mini_batch_size"] * s["algo.gradient_accumulation_steps"]
    return s["algo.batch_size"] * epochs <= window


def warms_up_alone(s: Settings) -> bool:
    """Whether a critic warms up to the end, and the policy stays as it is."""
    iterations = s["algo.num_iterations"]
    return s["algo.value_warmup_iterations"] >= iterations and s["trainer.max_epochs"] == iterations


IDLE = (
    Idle(
        ("algo.sampler_is_cap",),
        lambda s: s["algo.sampler_is"] == "none",
        "algo.sampler_is=none weighs no token; token and sequence do",
    ),
    Idle(
        ("algo.kl_horizon",),
        lambda s: s["algo.kl_penalty_coef"] == 0,
        "algo.kl_penalty_coef=0 stays 0 however it is steered; start above 0",
    ),
    Idle(
        ("algo.value_learning_rate",),
        lambda s: s["algo.value_coef"] == 0,
        "algo.value_coef=0 has the critic learn nothing; set it above 0",
    ),
    Idle(
        ("algo.early_stop_kl", "algo.target_kl"),
        takes_one_step,
        "an iteration is one optimizer step, after which none is left to skip; lower"
        " algo.mini_batch_size or algo.gradient_accumulation_steps",
    ),
    Idle(
        ("algo.clip_ratio", "algo.entropy_coef", "algo.early_stop_kl", "algo.target_kl"),
        warms_up_alone,
        "algo.value_warmup_iterations is all of algo.num_iterations, so the policy never learns",
    ),
    Idle(
        ("algo.epsilon", "algo.epsilon_high", "algo.delta"),
        takes_one_step,
        "an iteration is one optimizer step, in which all ratios are 1: nothing is clipped; lower"
        " algo.mini_batch_size or algo.gradient_accumulation_steps",
    ),
    Idle(
        ("algo.discopop_tau",),
        lambda s: "discopop" not in s["algo.loss_type"],
        "algo.loss_type has no discopop",
    ),
    Idle(
        ("algo.warmup_ratio", "algo.warmup_steps"),
        lambda s: s["algo.lr_scheduler_type"] == "constant",
        "algo.lr_scheduler_type=constant does not warm up; constant_with_warmup does",
    ),
    Idle(
        ("algo.lora_rank", "algo.lora_alpha", "algo.lora_dropout"),
        lambda s: not s["algo.use_lora"],
        "algo.use_lora=false; the adapters of model.lora.r have options of their own",
    ),
    Idle(
        ("model.lora.alpha", "model.lora.target_modules"),
        lambda s: s["model.lora.r"] == 0,
        "model.lora.r=0 adds no adapters; give them a rank",
    ),
    Idle(
        ("algo.max_new_tokens",),
        lambda s: s["algo.eval_samples"] == 0,
        "algo.eval_samples=0 answers no prompt",
    ),
    Idle(
        ("data.eval_path", "data.eval_prompts", "data.eval_split", "data.eval_generations",
         "data.eval_batch_size", "algo.eval_samples"),
        lambda s: s["data.eval_size"] == 0,
        "data.eval_size=0 evaluates nothing",
    ),
    Idle(("resume.allow",), lambda s: s["ckpt_path"] is None, "ckpt_path=null goes on with no run"),
)  # fmt: skip


def dead_options(overrides: Collection[str], settings: Mapping[str, Any]) -> dict[str, str]:
    """Options that the command sets -> why they change nothing in this run.

    Args:
        overrides: the command's, ``algo.kl_target=0.1``.
        settings: what they made the run to be, nested.
    """
    known = dict(flatten(settings))
    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    return {option: idle.why for idle in IDLE for option in idle.options
            if option in given and _holds(idle, known)}  # fmt: skip


def _holds(idle: Idle, known: Settings) -> bool:
    """False also where the run has not the options that it depends on."""
    try:
        return idle.when(known)
    except KeyError:
        return False
