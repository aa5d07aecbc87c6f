"""Every option is known by name, and is read: none is accepted and then ignored."""

import re
from dataclasses import fields

import pytest
import torch
from grpo_helpers import config as grpo_config
from omegaconf import OmegaConf
from test_config import composed, module_of

from datamodules import MathEnv, PreferenceDataModule, RolloutDataModule
from rlmodules import (
    GRPO,
    DPOConfig,
    GRPOConfig,
    ModelConfig,
    PPOConfig,
    RewardModel,
    RewardModelConfig,
    schemas,
)
from rlmodules.functional import grpo_loss
from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.reward_models.multi_objective import (
    MultiObjectiveConfig,
    MultiObjectiveRewardModel,
)
from rlmodules.schemas.fields import every_field

schemas.register()
TOKENIZER = tiny_tokenizer()


def test_every_field_lists_each_option_of_each_choice_once():
    found = [(field.path, field.option) for field in every_field()]
    assert len(found) == len(set(found))
    configs = {"ppo": PPOConfig, "grpo": GRPOConfig, "dpo": DPOConfig, "reward": RewardModelConfig}
    for option, config in configs.items():
        algos = [path.split(".")[1] for path, of in found if of == option and path[:5] == "algo."]
        assert set(algos) == {field.name for field in fields(config)}
    assert {path.split(".")[1] for path, of in found if path.startswith("model.")} == {
        field.name for field in fields(ModelConfig)
    }
    elsewhere = (
        ("model.lora.r", "base"),
        ("data.eval_size", "rollouts"),
        ("data.eval_size", "preferences"),
        ("env.reward_weights", "math"),
        ("env.on_error", "custom"),
        ("reward.label", "model"),
        ("task.min_gap", "collect_preferences"),
        ("trainer.precision", "default"),
        ("callbacks.best.monitor", "preferences"),
        ("logger.wandb.offline", "wandb"),
        ("paths.output_root", "default"),
        ("seed", ""),
        ("export.merge", ""),
    )
    assert set(elsewhere) <= set(found)


def test_a_field_says_its_type_default_and_text():
    known = {(field.path, field.option): field for field in every_field()}
    rate = known["algo.value_learning_rate", "ppo"]
    assert (rate.kind, rate.default) == ("float | None", None)
    assert rate.text == "Of the value head; None takes ``learning_rate``."
    assert known["algo.loss_weights", "dpo"].kind == "list[float] | None"
    assert known["algo.loss_type", "dpo"].kind == "Any"
    assert (known["seed", ""].kind, known["seed", ""].default) == ("int", 0)


# ------------------------------------------------------------------------ data


def env(tokenizer, prompts=None):
    raise AssertionError("nobody makes it")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"eval_size": -1, "prompts": ["a"]}, "data.eval_size=-1 must be a whole number, 0"),
        ({"max_resamples": 1, "prompts": ["a"]}, "data.max_resamples=1 replaces groups"),
        ({"split": "test", "path": "a.jsonl"}, "data.split='test' names a part of a Hugging Face"),
        ({"split": "test", "path": "package:openings_train.txt"}, "data.split='test' names a part"),
        ({"split": "test", "prompts": ["a"]}, "data.split='test' has no use"),
        ({"prompt_column": "q", "prompts": ["a"]}, "data.prompt_column='q' has no use"),
        ({"eval_prompts": ["a"], "eval_path": "b.txt", "prompts": ["c"]}, "either data.eval_pro"),
        ({"eval_prompts": ["a"]}, "data.eval_prompts goes with data.path or data.prompts"),
        ({"eval_path": "a.txt"}, "data.eval_path goes with data.path or data.prompts"),
    ],
)
def test_data_options_that_nothing_would_read_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        RolloutDataModule(env, **options)


@pytest.mark.parametrize("option", ["prompts", "path", "eval_prompts", "eval_path"])
def test_an_environment_that_is_made_already_takes_no_prompts(option):
    made = MathEnv(TOKENIZER, num_problems=4, num_held_out=2)
    value = ["Write."] if option.endswith("prompts") else "prompts.txt"
    with pytest.raises(ValueError, match=f"data.{option} has no use: the environment is made"):
        RolloutDataModule(made, **{option: value})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"eval_size": -1}, "data.eval_size=-1 must be a whole number, 0"),
        ({"split": "test"}, "data.split='test' names a part"),
        ({"eval_path": "b.csv", "eval_split": "test"}, "data.eval_split='test' names a part"),
        ({"eval_split": "validation"}, "data.eval_split='validation' names a part"),
    ],
)
def test_preference_data_options_that_nothing_would_read_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        PreferenceDataModule("pairs.jsonl", **options)


def test_a_split_of_a_dataset_is_no_mistake_beside_a_file():
    RolloutDataModule(env, path="org/name", split="test", eval_path="held_out.jsonl")
    PreferenceDataModule("org/name", split="test", eval_path="b.csv")


# ------------------------------------------------------------------ algorithms


def test_gspo_is_grpo_with_ratios_of_responses_averaged_by_response():
    """Zheng et al. 2025, eq. 5: the mean over responses of min(s A, clip(s) A)."""
    config = module_of(composed("algo=gspo", "model=tiny")).config
    assert (config.importance_sampling_level, config.loss_type) == ("sequence", "grpo")
    assert (config.epsilon, config.epsilon_high, config.beta) == (3e-4, 4e-4, 0.0)
    window = config.mini_batch_size * config.gradient_accumulation_steps
    assert config.batch_size == 4 * window  # four steps, or every ratio would be 1
    log_ratio = torch.tensor([[0.2, 0.0, 0.1], [-0.1, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    advantages = torch.tensor([[1.0], [-2.0]]).expand(2, 3)
    loss, _ = grpo_loss(
        logprobs_BA=log_ratio - 1,
        old_logprobs_BA=torch.full((2, 3), -1.0),
        advantages_BA=advantages,
        mask_BA=mask,
        num_actions=4,
        max_new_tokens=3,
        loss_type=config.loss_type,
        importance_sampling_level=config.importance_sampling_level,
        epsilon=config.epsilon,
        epsilon_high=config.epsilon_high,
    )
    # s = exp(0.1) is clipped at 1 + 4e-4; s = exp(-0.1) of a negative advantage at 1 - 3e-4.
    assert loss.item() == pytest.approx(-(1.0004 * 1.0 + 0.9997 * -2.0) / 2, rel=1e-5)


@pytest.mark.parametrize("weights", [[1, -0.5], [-1, 0], [5, 5], None])
def test_the_weights_of_objectives_are_of_the_reward_alone(weights):
    options = {"model_name": "random:tiny", "objectives": ["good", "toxic"]}
    model = MultiObjectiveRewardModel(MultiObjectiveConfig(**options, objective_weights=weights))
    rewards, targets = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]])
    loss, _ = model._loss(rewards, targets, targets == 0, 1)
    assert loss.item() == pytest.approx((1 + 4) / 2)
    first, second = weights or (0.5, 0.5)
    assert model.combine(rewards).item() == pytest.approx(first * 1 + second * 2)
    for weights in ([0, 0], [1, float("nan")], [float("inf"), 1]):
        with pytest.raises(ValueError, match="objective_weights"):
            MultiObjectiveConfig(**options, objective_weights=weights)


def test_a_reward_model_of_several_objectives_reads_no_options_of_pairs():
    for options in ({"label_smoothing": 0.1}, {"center_rewards_coefficient": 0.1}):
        with pytest.raises(ValueError, match="they belong to pairs"):
            MultiObjectiveConfig("random:tiny", **options)
    with pytest.raises(ValueError, match=r"num_labels=5, and algo\.objectives names 3"):
        MultiObjectiveConfig("random:tiny", num_labels=5)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.batch_size=8", "data.batch_size=8 contradicts algo.batch_size=64: set algo.batch"),
        ("data.mini_batch_size=8", "contradicts algo.mini_batch_size=16"),
        ("data.epochs=3", "data.epochs=3 contradicts algo.ppo_epochs=1: set algo.ppo_epochs"),
        ("data.gradient_accumulation_steps=2", "contradicts algo.gradient_accumulation_steps=1"),
        ("data.seed=1", "data.seed=1 contradicts algo.seed=0"),
        ("algo.seed=1", "algo.seed=1 contradicts seed=0: set seed alone"),
        ("algo=dpo data.max_length=9", "data.max_length=9 contradicts algo.max_length=512"),
        ("algo=grpo data.num_generations=2", "contradicts algo.num_generations=8"),
        ("algo=grpo data.epochs=3", "data.epochs=3 contradicts algo.num_epochs=1"),
        (
            "algo=multi_objective algo.objectives=[b] data.objectives=[a]",
            "data.objectives=['a'] contradicts algo.objectives=['b']: set algo.objectives alone",
        ),
    ],
)
def test_two_values_for_what_is_one_are_refused(override, sentence):
    settings = OmegaConf.to_container(composed(*override.split()), resolve=True)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        schemas.refuse_contradictions(settings)


@pytest.mark.parametrize(
    "algo", ["ppo", "grpo", "distill", "sft", "kto", "dpo", "orpo", "reward", "multi_objective"]
)
def test_no_default_run_contradicts_itself(algo):
    for more in ((), ("seed=3",)):
        cfg = composed(f"algo={algo}", *more)
        schemas.refuse_contradictions(OmegaConf.to_container(cfg, resolve=True))


@pytest.mark.parametrize("name", ["random:tiny", "wheel:smollm2", "."])
def test_a_model_that_has_no_revisions_takes_none(name):
    with pytest.raises(ValueError, match=r"model\.revision='main' must be left out"):
        ModelConfig(name, revision="main")
    if name != ".":
        with pytest.raises(ValueError, match=r"model\.trust_remote_code=True must be left out"):
            ModelConfig(name, trust_remote_code=True)
    ModelConfig("org/name", revision="main", trust_remote_code=True)


# ---------------------------------------------------------------------- export


def test_there_is_nothing_to_merge_without_adapters():
    lora = ModelConfig("random:tiny", lora=ModelConfig().lora.__class__(r=2))
    plain, adapted = GRPO(grpo_config()), GRPO(grpo_config(), lora)
    scores = RewardModel(RewardModelConfig("random:tiny"))
    for module in (plain, scores):
        module.require_export(merge=None)
        module.require_export(merge=False)
        with pytest.raises(ValueError, match=r"export\.merge=true: there are no adapters to merge"):
            module.require_export(merge=True)
    for merge in (None, False, True):
        adapted.require_export(merge=merge)
    assert all(composed(f"algo={a}").export.merge is None for a in ("ppo", "reward", "pairwise"))


@pytest.mark.parametrize(
    ("saved", "name"), [({"pooling_strategy": "mean"}, "pooling"), ({"temperature": 2.0}, "temper")]
)
def test_a_reward_models_weights_are_not_taken_for_other_scores(saved, name, tmp_path):
    RewardModel(RewardModelConfig("random:tiny", **saved)).save_model(tmp_path / "model")
    with pytest.raises(ValueError, match=f"holds a model with {name}"):
        RewardModel(RewardModelConfig("random:tiny")).load_model(tmp_path / "model")
