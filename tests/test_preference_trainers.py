"""The façades of preference learning, called as their documentation shows."""

import pytest
import torch
from pair_helpers import CHOSEN, PROMPTS, REJECTED, dataset

from datamodules import PreferenceDataset
from rlmodules import (
    DPOConfig,
    DPOTrainer,
    ORPOConfig,
    ORPOTrainer,
    PairwiseRewardModel,
    RewardModel,
    RewardModelConfig,
    RewardModelTrainer,
)
from rlmodules.models.embedded import tiny_model

QUIET = {"enable_progress_bar": False, "logger": False, "precision": "32-true"}
TINY = {"model_name": "random:tiny", "batch_size": 4, "learning_rate": 3e-3, "device": "cpu"}


@pytest.mark.parametrize(
    ("trainer_class", "config_class"),
    [(DPOTrainer, DPOConfig), (ORPOTrainer, ORPOConfig)],
    ids=["dpo", "orpo"],
)
def test_a_preference_trainer_trains_saves_and_resumes(trainer_class, config_class, tmp_path):
    tokenizer = tiny_model()[1]
    pairs = PreferenceDataset(
        prompts=PROMPTS,
        chosen=CHOSEN,
        rejected=REJECTED,
        tokenizer=tokenizer,
        max_length=512,
        max_prompt_length=256,
    )
    c = config_class(**TINY, gradient_accumulation_steps=1, num_epochs=6, eval_every=4)
    trainer = trainer_class(config=c, tokenizer=tokenizer, output_dir=tmp_path, **QUIET)
    metrics = trainer.train(pairs, eval_dataset=dataset(4))
    assert len(metrics["train/loss"]) == 12
    assert len(metrics["val/accuracy"]) == 3
    assert metrics["train/loss"][-1] < metrics["train/loss"][0]
    trainer.save_model(tmp_path / "model")
    assert (tmp_path / "model" / "config.json").is_file()
    assert (tmp_path / "report.txt").is_file() and (tmp_path / "curves.png").is_file()

    longer = config_class(**TINY, gradient_accumulation_steps=1, num_epochs=8)
    again = trainer_class(config=longer, output_dir=tmp_path / "again", **QUIET)
    metrics = again.train(pairs, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert len(metrics["train/loss"]) == 16


@pytest.mark.parametrize("kind", [RewardModel, PairwiseRewardModel])
def test_a_reward_model_trains_on_texts_and_is_saved(kind, tmp_path):
    c = RewardModelConfig(**TINY, warmup_steps=0, dropout_prob=0.0)
    model = kind(c)
    trainer = RewardModelTrainer(
        model=model, tokenizer=model.tokenizer, config=c, device="cpu", output_dir=tmp_path, **QUIET
    )
    chosen = [p + r for p, r in zip(PROMPTS, CHOSEN, strict=True)]
    rejected = [p + r for p, r in zip(PROMPTS, REJECTED, strict=True)]
    metrics = trainer.train_on_preferences(
        chosen_texts=chosen,
        rejected_texts=rejected,
        num_epochs=10,
        batch_size=8,
        eval_chosen_texts=chosen[:3],
        eval_rejected_texts=rejected[:3],
    )
    assert len(metrics["train/loss"]) == 10
    assert metrics["val/accuracy"][-1] == 1.0
    trainer.save_model(tmp_path / "reward_model.pt")
    other = RewardModelTrainer(kind(c), output_dir=tmp_path, **QUIET)
    other.load_model(tmp_path / "reward_model.pt")
    assert other.model.predict_rewards(chosen) == pytest.approx(model.predict_rewards(chosen))
    torch.save({}, tmp_path / "pickle.pt")
    with pytest.raises(ValueError, match="no safetensors"):
        other.load_model(tmp_path / "pickle.pt")


def test_long_texts_are_cut_and_lists_of_other_lengths_refused(tmp_path):
    c = RewardModelConfig(**TINY, max_length=16, max_prompt_length=8)
    trainer = RewardModelTrainer(RewardModel(c), output_dir=tmp_path, **QUIET)
    trainer.train_on_preferences(["good " * 50], ["bad " * 50], num_epochs=1, batch_size=1)
    with pytest.raises(ValueError, match="rejected has 2 rows, chosen has 1"):
        trainer.train_on_preferences(["a"], ["b", "c"])
