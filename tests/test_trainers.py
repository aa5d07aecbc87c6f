"""The façades for scripts: the contract's snippets, what they return, the files they leave."""

import lightning as L
import pytest
import torch
from helpers import count_e
from hydra import compose, initialize
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pair_helpers import CHOSEN, REJECTED, dataset
from pair_helpers import PROMPTS as QUESTIONS
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from datamodules import PreferenceDataset, Prompt
from rlmodules import (
    DistillationTrainer,
    DPOConfig,
    DPOTrainer,
    GRPOTrainer,
    KTOTrainer,
    LoraConfig,
    ModelConfig,
    ORPOConfig,
    ORPOTrainer,
    PairwiseRewardModel,
    PPOConfig,
    PPOTrainer,
    RewardModel,
    RewardModelConfig,
    RewardModelTrainer,
    SFTTrainer,
    schemas,
)
from rlmodules.callbacks import DataCheck, RunRecord, SaveLast
from rlmodules.checks import device_options
from rlmodules.models import resolve_precision
from rlmodules.models.embedded import tiny_tokenizer

QUICK = {
    "model_name": "random:tiny",
    "batch_size": 4,
    "mini_batch_size": 2,
    "ppo_epochs": 1,
    "max_new_tokens": 6,
    "learning_rate": 1e-2,
    "num_iterations": 3,
    "device": "cpu",
}
QUIET = {"enable_progress_bar": False, "logger": False}
PLAIN = QUIET | {"precision": "32-true"}
SMALL = {"model_name": "random:tiny", "batch_size": 4, "learning_rate": 3e-3, "device": "cpu"}
PROMPTS = ["Write a poem about...", "Explain quantum..."]


def test_the_contracts_snippet_runs_and_returns_metric_lists(tokenizer, tmp_path):
    calls = []

    def my_reward_fn(prompts, responses, metadata=None):
        calls.append((list(prompts), list(responses)))
        rewards = []
        for response in responses:
            score = response.count("e") / 4
            rewards.append(score)
        return rewards

    config = PPOConfig(**QUICK)
    trainer = PPOTrainer(
        config=config,
        tokenizer=tokenizer,
        reward_fn=my_reward_fn,
        output_dir=tmp_path,
        **QUIET,
    )
    metrics = trainer.train(PROMPTS, num_iterations=2)
    assert {len(values) for values in metrics.values()} == {2}
    assert metrics["iteration"] == [1.0, 2.0]
    assert {"rollout/reward", "rollout/kl", "train/policy_loss"} <= set(metrics)
    assert len(calls) == 2  # one call of the reward an iteration, with all episodes
    assert sorted(calls[0][0]) == sorted(PROMPTS * 2)


def test_without_a_reward_longer_is_better(tmp_path):
    trainer = PPOTrainer(PPOConfig(**QUICK), output_dir=tmp_path, **QUIET)
    metrics = trainer.train(PROMPTS, num_iterations=1)
    assert 0 <= metrics["rollout/reward"][0] <= 0.06  # a hundredth for each of at most 6 words


def test_the_same_seed_gives_the_same_run_and_another_another(tmp_path):
    def reward_curve(seed):
        config = PPOConfig(**QUICK | {"seed": seed, "temperature": 1.0})
        trainer = PPOTrainer(config, reward_fn=count_e, output_dir=tmp_path / str(seed), **QUIET)
        return trainer.train(PROMPTS)["train/policy_loss"]

    assert reward_curve(0) == reward_curve(0) != reward_curve(1)


def test_held_out_prompts_are_judged_every_eval_every_iterations(tmp_path):
    config = PPOConfig(**QUICK | {"eval_every": 2, "num_iterations": 4})
    trainer = PPOTrainer(config, output_dir=tmp_path, **QUIET)
    metrics = trainer.train(PROMPTS, eval_prompts=["A third"])
    assert len(metrics["val/reward"]) == 2
    assert len(metrics["rollout/reward"]) == 4


def test_save_every_counts_iterations(tmp_path):
    saved = []
    config = PPOConfig(**QUICK | {"save_every": 2, "num_iterations": 5})
    trainer = PPOTrainer(config, output_dir=tmp_path, **QUIET)
    trainer.module.on_save_checkpoint = lambda checkpoint: saved.append(
        trainer.module.current_epoch + 1
    )
    trainer.train(PROMPTS)
    assert saved[:2] == [2, 4]
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()


@pytest.fixture
def local_model(model, tokenizer, tmp_path):
    """The tiny model as a folder in Hugging Face format."""
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
def test_the_saved_model_loads_with_transformers(local_model, tmp_path, rank):
    config = PPOConfig(**QUICK | {"model_name": local_model})
    trainer = PPOTrainer(
        config,
        reward_fn=count_e,
        model_config=ModelConfig(name=local_model, dtype="float32", lora=LoraConfig(r=rank)),
        output_dir=tmp_path / "run",
        precision="32-true",
        **QUIET,
    )
    trainer.train(PROMPTS)
    trainer.save_model(tmp_path / "out")
    assert (tmp_path / "out" / "adapter_config.json").exists() == (rank > 0)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer("What it says", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        ours = trainer.module.base_model(input_ids=ids).logits
        torch.testing.assert_close(loaded(input_ids=ids).logits, ours, rtol=0, atol=1e-5)
        base = AutoModelForCausalLM.from_pretrained(local_model, dtype=torch.float32)
        assert not torch.allclose(base(input_ids=ids).logits, ours, atol=1e-4)
    head = load_file(tmp_path / "out" / "value_head" / "value_head.safetensors")
    trained = trainer.module.policy.value_head.state_dict()
    assert all(torch.equal(head[name], trained[name].float()) for name in trained)


def test_devices_are_named_as_torch_names_them():
    assert device_options(None) == {"accelerator": "auto", "devices": "auto"}
    assert device_options("cpu") == {"accelerator": "cpu", "devices": 1}
    assert device_options("cuda:1") == {"accelerator": "gpu", "devices": [1]}
    with pytest.raises(ValueError, match=r"algo\.device='tpux'"):
        device_options("tpux")


# --------------------------------------------------------------------- preferences


@pytest.mark.parametrize(
    ("trainer_class", "config_class"),
    [(DPOTrainer, DPOConfig), (ORPOTrainer, ORPOConfig)],
    ids=["dpo", "orpo"],
)
def test_a_preference_trainer_trains_saves_and_resumes(trainer_class, config_class, tmp_path):
    tokenizer = tiny_tokenizer()
    pairs = PreferenceDataset(
        prompts=QUESTIONS,
        chosen=CHOSEN,
        rejected=REJECTED,
        tokenizer=tokenizer,
        max_length=512,
        max_prompt_length=256,
    )
    c = config_class(**SMALL, gradient_accumulation_steps=1, num_epochs=6, eval_every=4)
    trainer = trainer_class(config=c, tokenizer=tokenizer, output_dir=tmp_path, **PLAIN)
    metrics = trainer.train(pairs, eval_dataset=dataset(4))
    assert len(metrics["train/loss"]) == 12
    assert len(metrics["val/accuracy"]) == 3
    assert metrics["train/loss"][-1] < metrics["train/loss"][0]
    trainer.save_model(tmp_path / "model")
    assert (tmp_path / "model" / "config.json").is_file()
    assert (tmp_path / "report.txt").is_file() and (tmp_path / "curves.png").is_file()

    longer = config_class(**SMALL, gradient_accumulation_steps=1, num_epochs=8)
    again = trainer_class(config=longer, output_dir=tmp_path / "again", **PLAIN)
    metrics = again.train(pairs, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert len(metrics["train/loss"]) == 16


@pytest.mark.parametrize("kind", [RewardModel, PairwiseRewardModel])
def test_a_reward_model_trains_on_texts_and_is_saved(kind, tmp_path):
    c = RewardModelConfig(**SMALL, warmup_steps=0, dropout_prob=0.0)
    model = kind(c)
    trainer = RewardModelTrainer(
        model=model, tokenizer=model.tokenizer, config=c, device="cpu", output_dir=tmp_path, **PLAIN
    )
    chosen = [p + r for p, r in zip(QUESTIONS, CHOSEN, strict=True)]
    rejected = [p + r for p, r in zip(QUESTIONS, REJECTED, strict=True)]
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
    other = RewardModelTrainer(kind(c), output_dir=tmp_path, **PLAIN)
    other.load_model(tmp_path / "reward_model.pt")
    assert other.model.predict_rewards(chosen) == pytest.approx(model.predict_rewards(chosen))
    torch.save({}, tmp_path / "pickle.pt")
    with pytest.raises(ValueError, match="no safetensors"):
        other.load_model(tmp_path / "pickle.pt")


def test_long_texts_are_cut_and_lists_of_other_lengths_refused(tmp_path):
    c = RewardModelConfig(**SMALL, max_length=16, max_prompt_length=8)
    trainer = RewardModelTrainer(RewardModel(c), output_dir=tmp_path, **PLAIN)
    trainer.train_on_preferences(["good " * 50], ["bad " * 50], num_epochs=1, batch_size=1)
    with pytest.raises(ValueError, match="rejected has 2 rows, chosen has 1"):
        trainer.train_on_preferences(["a"], ["b", "c"])


# ------------------------------------------------------------------ as train.py does

ONLINE = ("ppo", "grpo", "distill")
FACADES = {"ppo": PPOTrainer, "grpo": GRPOTrainer, "distill": DistillationTrainer,
           "dpo": DPOTrainer, "orpo": ORPOTrainer, "kto": KTOTrainer,
           "sft": SFTTrainer}  # fmt: skip


@pytest.mark.parametrize("name", FACADES)
def test_a_facade_trains_with_the_options_and_callbacks_of_train_py(name, tmp_path, monkeypatch):
    schemas.register()
    changes = ["eval_every=3", "save_every=7", "max_grad_norm=0.5", "device=cpu"]
    overrides = [f"algo={name}", "model=tiny", f"paths.output_dir={tmp_path}"]
    with initialize("../conf", version_base="1.3"):
        cfg = compose("train", [*overrides, *(f"algo.{change}" for change in changes)])
    given = {}

    class Recorder:
        is_global_zero = False  # it tracks nothing

        def __init__(self, **options):
            given.update(options)

        def fit(self, module, data, **options):
            given["data"] = data

    facade = FACADES[name]
    settings = OmegaConf.to_container(cfg.algo, resolve=True)
    settings |= {"teacher_model_name_or_path": "random:tiny"} if name == "distill" else {}
    trainer = facade(facade.module_class.config_class(**settings), output_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(L, "Trainer", Recorder)
        if name in ONLINE:
            trainer.train(PROMPTS, eval_prompts=["A third"])
        else:
            trainer.train(dataset(), eval_dataset=dataset(3))

    options = OmegaConf.to_container(cfg.trainer, resolve=True)
    options["precision"] = resolve_precision(options["precision"])
    lightnings = {"_target_", "num_nodes", "strategy", "deterministic", "default_root_dir"}
    assert options.keys() - given.keys() == lightnings
    for option in given.keys() - {"callbacks", "logger", "plugins", "data"}:
        assert given[option] == options[option], option
    plan = given["data"].plan if name in ONLINE else given["data"]
    for option in ("batch_size", "epochs", "num_generations", "max_resamples", "seed"):
        if option in cfg.data:
            assert getattr(plan, option) == cfg.data[option], option

    callbacks = {key: instantiate(callback) for key, callback in cfg.callbacks.items()}
    known = {type(c) for c in callbacks.values()} | {RunRecord}  # train.py adds it to conf/'s
    assert {type(c) for c in given["callbacks"]} <= known | {DataCheck}  # train.py's own too
    (last,) = (c for c in given["callbacks"] if isinstance(c, SaveLast))
    assert vars(last) == vars(callbacks["last"])


def starts_with(completions, letter, **kwargs):
    """As TRL's users write them: columns of the rows by name."""
    return [float(text.startswith(first)) for text, first in zip(completions, letter, strict=True)]


def test_rewards_are_given_as_trl_takes_them_and_continued_by_what_they_are(tmp_path):
    prompts = [Prompt(text, {"letter": text[0]}) for text in ("One", "Two", "Three", "Four")]
    c = PPOConfig(**QUICK | {"num_iterations": 1})

    def trainer(reward_fn, **options):
        return PPOTrainer(c, reward_fn=reward_fn, output_dir=tmp_path, **options, **QUIET)

    given = [starts_with, "length"]
    first = trainer(given, reward_weights=[2.0, 1.0])
    metrics = first.train(prompts)
    parts = [metrics[f"rollout/reward_{name}"][0] for name in ("starts_with", "length_reward")]
    assert metrics["rollout/reward"][0] == pytest.approx(2 * parts[0] + parts[1])
    last = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match=r"reward\.weights\.starts_with: 2\.0 -> 3\.0"):
        trainer(given, reward_weights=[3.0, 1.0]).train(prompts, 2, ckpt_path=last)
    with pytest.raises(ValueError, match="a parameter letter, which no row has"):
        trainer(starts_with).train(["One", "Two"])
    with pytest.raises(ValueError, match=r"reward_weights=\[1\.0\] go with several"):
        trainer(None, reward_weights=[1.0])
