"""Every option is known by name, and is read: none is accepted and then ignored."""

from dataclasses import fields

from rlmodules import DPOConfig, GRPOConfig, ModelConfig, PPOConfig, RewardModelConfig
from rlmodules.schemas.fields import every_field


def test_every_field_lists_each_option_of_each_choice_once():
    found = [(field.path, field.option) for field in every_field()]
    assert len(found) == len(set(found))
    configs = {"ppo": PPOConfig, "grpo": GRPOConfig, "dpo": DPOConfig, "reward": RewardModelConfig}
    for option, config in configs.items():
        assert {path for path, of in found if of == option and path.startswith("algo.")} == {
            f"algo.{field.name}" for field in fields(config)
        }
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
