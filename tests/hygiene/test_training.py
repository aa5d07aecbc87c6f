"""Training steps on the card that is none: how often each makes the processor wait, and where.

The table is what is there, with its reason; a line more is a regression, a line less is welcome.
Lightning's own loop around the steps does not run here: it is the modules' hooks that are called.
"""

import distillation_helpers
import grpo_helpers
import helpers
import kto_helpers
import pytest
import sft_helpers
import torch
from card_helpers import card
from card_run_helpers import minibatch
from pair_helpers import dataset

from datamodules.preferences.dataset import PreferenceBatch
from rlmodules import (
    DPO,
    GRPO,
    KTO,
    ORPO,
    PPO,
    SFT,
    DPOConfig,
    KTOConfig,
    ORPOConfig,
    PairwiseRewardModel,
    RewardModel,
    RewardModelConfig,
    SFTConfig,
)

CLIPPING = {"rlmodules/algorithms/gradients.py:clip_gradients": 1}
"""Is the gradient finite, and longer than it may be? Asked before the optimizer steps."""
METRICS = {"rlmodules/algorithms/means.py:_read": 1}
"""All that a step has measured, read together when it is logged or kept for a checkpoint."""
PPO_METRICS = {"rlmodules/algorithms/means.py:_read": 2}
"""And the KL of an accumulation window, which may stop an iteration early."""
FORWARD = {"rlmodules/models/layout.py:flat_hidden": 1}
"""transformers looks whether positions are those of packed sequences, once a forward pass."""
FORWARD_OF_TWO = {"rlmodules/models/layout.py:flat_hidden": 2}
"""Policy and reference."""
FORWARD_OF_THREE = {"rlmodules/models/layout.py:flat_hidden": 3}
"""And the policy on responses to other prompts."""


def pairs_config(cls, **more):
    settings = {"model_name": "random:tiny", "device": "cpu", "gradient_accumulation_steps": 1}
    return cls(**settings | more)


def ppo():
    return PPO(helpers.config(early_stop_kl=0.5, ppo_epochs=1, mini_batch_size=8))


def critic_alone():
    return PPO(helpers.config(value_warmup_iterations=1, mini_batch_size=8))


def grpo(**changes):
    return lambda: GRPO(grpo_helpers.config(**changes))


ONLINE = {
    "ppo": (ppo, FORWARD | PPO_METRICS),
    "ppo, critic alone": (critic_alone, FORWARD | METRICS),
    "grpo": (grpo(), FORWARD | METRICS),
    "grpo, with a reference": (
        grpo(beta=0.1, num_epochs=2, loss_type="grpo"),
        FORWARD | METRICS,
    ),
    "gspo": (grpo(importance_sampling_level="sequence"), FORWARD | METRICS),
    "sapo": (grpo(loss_type="sapo"), FORWARD | METRICS),
    "luspo": (grpo(loss_type="luspo", importance_sampling_level="sequence"), FORWARD | METRICS),
    "distillation": (distillation_helpers.module, FORWARD_OF_TWO | METRICS),
    "cispo": (grpo(loss_type="cispo", epsilon_high=5.0), FORWARD | METRICS),
}


def reward(cls):
    return lambda: cls(pairs_config(RewardModelConfig, dropout_prob=0.0))


def dpo(**changes):
    return lambda: DPO(pairs_config(DPOConfig, **changes))


OFFLINE = {
    "dpo": (dpo(), FORWARD_OF_TWO),
    "dpo, several losses": (dpo(loss_type=["sigmoid", "sft"]), FORWARD_OF_TWO),
    "dpo, without a reference": (dpo(reference_free=True), FORWARD),
    "simpo": (dpo(reference_free=True, loss_type="simpo"), FORWARD),
    "orpo": (lambda: ORPO(pairs_config(ORPOConfig)), FORWARD),
    "sft": (lambda: SFT(pairs_config(SFTConfig)), FORWARD),
    "kto": (lambda: KTO(pairs_config(KTOConfig)), FORWARD_OF_THREE),
    "apo_zero_unpaired": (
        lambda: KTO(pairs_config(KTOConfig, loss_type="apo_zero_unpaired")),
        FORWARD_OF_TWO,
    ),
    "dft": (lambda: SFT(pairs_config(SFTConfig, loss_type="dft")), FORWARD),
    "reward": (reward(RewardModel), FORWARD),
    "pairwise": (reward(PairwiseRewardModel), FORWARD),
}


def pairs(module):
    if isinstance(module, SFT):
        return sft_helpers.batch_of(sft_helpers.dataset(4))
    if isinstance(module, KTO):
        return kto_helpers.batch_of(kto_helpers.dataset(4))
    examples = dataset(4, close=module.closes_texts).examples
    lengths = sum(len(e.sequences[0]) - e.prompt_length for e in examples)
    totals = {"num_examples": 4.0, "num_response_tokens": lengths, "num_text_tokens": lengths}
    return PreferenceBatch(examples, torch.arange(4), totals, "train")


def optimizer_of(module):
    if isinstance(module, PPO | GRPO):
        return module.configure_optimizers()
    return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], fused=True)


def step(module, batch, optimizer):
    """Forward, backward, clipping and optimizer, and the state that a checkpoint would hold."""
    module.training_step(batch, 0).backward()
    module.configure_gradient_clipping(optimizer)
    optimizer.step()
    optimizer.zero_grad()
    module.iteration_state()


@pytest.mark.parametrize("name", ONLINE)
def test_an_online_step_waits_where_the_table_says(name, to_card, monkeypatch):
    make, waits = ONLINE[name]
    with card(monkeypatch) as trace:
        module = to_card(make, trace)
        batch, optimizer = minibatch(module), optimizer_of(module)
        before = [p.detach().inner.clone() for p in module.parameters() if p.requires_grad]
        trace.crossings.clear()
        step(module, batch, optimizer)
        after = [p.detach().inner for p in module.parameters() if p.requires_grad]
    assert trace.waits == CLIPPING | waits
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("name", OFFLINE)
def test_a_step_on_pairs_waits_where_the_table_says(name, to_card, monkeypatch):
    make, waits = OFFLINE[name]
    with card(monkeypatch) as trace:
        module = to_card(make, trace)
        step(module, pairs(module), optimizer_of(module))
    assert trace.waits == CLIPPING | METRICS | waits


@pytest.mark.parametrize("name", ("ppo", "dpo", "reward"))
def test_what_a_step_computes_is_what_it_computes_on_the_processor(name, to_card, monkeypatch):
    make, _ = (ONLINE | OFFLINE)[name]
    with card(monkeypatch) as trace:
        module = to_card(make, trace)
        batch = (minibatch if name in ONLINE else pairs)(module)
        here = module.training_step(batch, 0).detach().inner
        metrics = module.iteration_state()["train_metrics"]
        plain = to_card(make, trace).to("cpu")
        there = plain.training_step(batch.to("cpu") if name in ONLINE else batch, 0)
    assert torch.allclose(here, there.detach(), atol=1e-6)
    expected = plain.iteration_state()["train_metrics"]["sums"]
    assert metrics["sums"] == pytest.approx(expected, abs=1e-5)
