"""Every algorithm, quantized, recomputing and offloading: the same learning in less memory."""

import json

import pytest
import torch
from grpo_helpers import config as grpo_config
from grpo_helpers import data as grpo_data
from helpers import assert_same, run
from helpers import config as ppo_config
from helpers import data as ppo_data
from pair_helpers import data, fit
from torch.testing import assert_close

from datamodules import PreferenceDataModule
from rlmodules import (
    DPO,
    GRPO,
    ORPO,
    PPO,
    DPOConfig,
    ModelConfig,
    MultiObjectiveConfig,
    MultiObjectiveRewardModel,
    ORPOConfig,
    PairwiseRewardModel,
    RewardModel,
    RewardModelConfig,
)
from rlmodules.models import TINY, LoraConfig, offload
from rlmodules.models.embedded import tiny_model, tiny_tokenizer
from rlmodules.models.quantized import held_as, quantized_layers
from rlmodules.resuming.changes import compare
from rlmodules.resuming.table import Effect, effect_of

SMALL = {"model_name": TINY, "batch_size": 4, "gradient_accumulation_steps": 1, "num_epochs": 1,
         "learning_rate": 1e-3, "device": "cpu", "max_length": 64,
         "max_prompt_length": 32}  # fmt: skip
NO_DROPOUT = SMALL | {"dropout_prob": 0.0}


MODULES = {
    "ppo": lambda model, **o: PPO(ppo_config(num_iterations=1, ppo_epochs=1, **o), model),
    "grpo": lambda model, **o: GRPO(grpo_config(num_iterations=1, beta=0.1, **o), model),
    "dpo": lambda model, **o: DPO(DPOConfig(**SMALL | o), model),
    "orpo": lambda model, **o: ORPO(ORPOConfig(**SMALL | o), model),
    "reward": lambda model, **o: RewardModel(RewardModelConfig(**NO_DROPOUT | o), model),
    "pairwise": lambda model, **o: PairwiseRewardModel(RewardModelConfig(**NO_DROPOUT | o), model),
}
MODULES["multi_objective"] = lambda model, **o: MultiObjectiveRewardModel(
    MultiObjectiveConfig(**NO_DROPOUT | o, objectives=["good", "short"]), model
)
DATA = {"ppo": ppo_data, "grpo": grpo_data}


def rows_file(folder, names):
    """Texts with a score for each name."""
    scores = [{name: (i * k) % 7 for k, name in enumerate(names, 1)} for i in range(8)]
    rows = [{"prompt": f"p{i}", "response": f" r{i}"} | score for i, score in enumerate(scores)]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def data_of(module, folder):
    if not isinstance(module, MultiObjectiveRewardModel):
        return data(module.config)
    path = rows_file(folder, module.objectives)
    sizes = {"batch_size": 4, "max_length": 64, "max_prompt_length": 32}
    return PreferenceDataModule(path, objectives=module.objectives, eval_size=0, **sizes)


def learned(name, model_config, folder, **options):
    """The module after an epoch, and its gradients of the last step."""
    module = MODULES[name](model_config, **options)
    gradients = []
    module.on_before_optimizer_step = lambda _: gradients.append(
        {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
    )
    if name in DATA:
        run(module.config, module, data=DATA[name](module.config))
    else:
        fit(module, data_of(module, folder), folder)
    return module, gradients


def model(bits, **settings):
    lora = LoraConfig() if bits == "full" else LoraConfig(r=4)
    held = bits if bits in ("4bit", "8bit") else "none"
    return ModelConfig(TINY, lora=lora, quantization=held, dtype="float32", **settings)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("bits", ["full", "4bit", "8bit"])
def test_recomputing_and_moving_activations_change_no_gradient(name, bits, monkeypatch, tmp_path):
    module, expected = learned(name, model(bits), tmp_path)
    moved = []
    unpack = offload._unpack
    count = lambda kept: moved.append(isinstance(kept, tuple)) or unpack(kept)  # noqa: E731
    monkeypatch.setattr(offload, "_unpack", count)
    monkeypatch.setattr(offload, "LEAST", 64)
    monkeypatch.setattr(offload, "require_gpu", lambda wanted: None)  # copies are made here too
    settings = {"gradient_checkpointing": True, "activation_offload": True}
    saving, gradients = learned(name, model(bits, **settings), tmp_path)
    assert any(moved)
    for before, after in zip(expected, gradients, strict=True):
        assert before.keys() == after.keys()
        for key in before:
            assert_close(after[key], before[key], rtol=1e-4, atol=1e-7)
    if bits != "full":
        assert held_as(saving.base_model) == bits and len(quantized_layers(saving)) == 14
        trained = {n for n in module._saved_names() if not n.endswith("_extra_state")}
        heads = ("value_head", "head.", "comparison.", "policy.value_head")
        assert all("lora_" in n or n.startswith(heads) for n in trained)
        assert sum("lora_" in n for n in trained) == 28
        assert getattr(getattr(module, "reference", None), "model", None) is None


def test_offloading_is_refused_where_there_is_nothing_to_save(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"model\.activation_offload=true: there is no GPU"):
        MODULES["dpo"](model("4bit", activation_offload=True))


def test_given_models_recompute_and_move_too(monkeypatch):
    monkeypatch.setattr(offload, "require_gpu", lambda wanted: None)
    settings = ModelConfig(TINY, gradient_checkpointing=True, activation_offload=True)
    module = DPO(DPOConfig(**SMALL), settings, model=tiny_model()[0], tokenizer=tiny_tokenizer())
    inner = module.base_model.model
    assert inner.offloads_activations and inner.layers[0].gradient_checkpointing


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_adapters_learn_on_quantized_layers_as_on_wide_ones(bits):
    """The loss of 16 steps on eight pairs, from ln 2 down."""
    losses = {}
    for held in ("lora", bits):
        module = MODULES["dpo"](model(held), learning_rate=1e-2, num_epochs=8)
        history, _ = fit(module)
        losses[held] = [row["train/loss"] for row in history]
    for found in losses.values():
        assert found[0] == pytest.approx(0.693, abs=0.01) and found[-1] < 0.2
    assert losses[bits][4] == pytest.approx(losses["lora"][4], abs=0.1)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantized_run_goes_on_to_the_bit_from_its_adapters_alone(bits, tmp_path):
    def stretch(epochs, folder, last=None):
        module = MODULES["dpo"](model(bits), learning_rate=1e-2, num_epochs=epochs)
        fit(module, folder=folder, save=True, ckpt_path=last)
        return folder / "checkpoints" / "last.ckpt"

    straight = torch.load(stretch(2, tmp_path / "straight"), weights_only=True)
    half = stretch(1, tmp_path / "half")
    resumed = torch.load(stretch(2, tmp_path / "resumed", half), weights_only=True)
    for part in ("state_dict", "optimizer_states", "global_step"):
        assert_same(straight[part], resumed[part], part)
    assert len(straight["state_dict"]) == 28 and half.stat().st_size < 500_000


def test_a_run_is_gone_on_with_as_it_was_begun():
    change = compare({"model.quantization": "4bit"}, {"model.quantization": "none"})
    assert [(c.option, c.effect) for c in change] == [("model.quantization", Effect.REFUSED)]
    for option in ("gradient_checkpointing", "activation_offload"):
        assert effect_of(f"model.{option}") == Effect.NONE


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("steps", [1, 2])
def test_a_step_lets_go_of_its_gradients(name, steps, tmp_path):
    """No forward pass of a window's first batch finds any; that of its second has the first's."""
    small = {"mini_batch_size": 4} if name == "grpo" else {}
    module = MODULES[name](model("full"), gradient_accumulation_steps=steps, **small)
    found, step = [], module.training_step

    def noting(batch, batch_idx):
        held = any(p.grad is not None for p in module.parameters())
        found.append((batch_idx % steps > 0, held))
        return step(batch, batch_idx)

    module.training_step = noting
    if name in DATA:
        run(module.config, module, data=DATA[name](module.config))
    else:
        fit(module, data_of(module, tmp_path), tmp_path)
    assert len(found) > 1 and all(second == held for second, held in found), found
    assert all(p.grad is None for p in module.parameters())
