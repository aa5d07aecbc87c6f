"""Adapters from stage to stage: every algorithm goes on with one, measured against how it came."""

import copy
import math

import pytest
import torch
from adapter_helpers import adapter_folder, says, stir, trained
from grpo_helpers import config as grpo_config
from helpers import config as ppo_config
from pair_helpers import dataset, fit
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from rlmodules import (
    DPO,
    GRPO,
    ORPO,
    PPO,
    DPOConfig,
    ModelConfig,
    ORPOConfig,
    PairwiseRewardModel,
    RewardModel,
    RewardModelConfig,
)
from rlmodules.models import LoraConfig
from rlmodules.models.embedded import tiny_model, tiny_tokenizer

SMALL = {"model_name": "random:tiny", "batch_size": 4, "gradient_accumulation_steps": 1,
         "num_epochs": 1, "learning_rate": 1e-2, "device": "cpu", "max_length": 64,
         "max_prompt_length": 32}  # fmt: skip


def batch_of(pairs):
    rows = list(range(len(pairs)))
    return pairs.batch(rows, pairs.totals(rows), "train")


def dpo_config(**changes):
    return DPOConfig(**SMALL | changes)


MODULES = {
    "ppo": lambda name, **options: PPO(ppo_config(model_name=name), **options),
    "grpo": lambda name, **options: GRPO(grpo_config(model_name=name, beta=0.1), **options),
    "dpo": lambda name, **options: DPO(dpo_config(model_name=name), **options),
    "orpo": lambda name, **options: ORPO(ORPOConfig(**SMALL | {"model_name": name}), **options),
}
REWARDS = {"reward": RewardModel, "pairwise": PairwiseRewardModel}


def trainable(module):
    return {name for name, p in module.base_model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", MODULES)
def test_a_policy_is_the_adapter_on_its_base_and_trains_it_alone(tmp_path, name):
    folder = adapter_folder(tmp_path)
    module = MODULES[name](folder, model_config=ModelConfig(name=folder, dtype="float32"))
    expected = says(PeftModel.from_pretrained(tiny_model()[0], folder))
    assert_close(says(module.base_model), expected, rtol=1e-5, atol=1e-5)
    assert len(trainable(module)) == 28 and all("default" in n for n in trainable(module))
    stir(module.base_model)
    reference = getattr(module, "reference", None)
    assert (reference is None) == (name == "orpo")
    if reference is not None:
        with reference.of(module.policy) as referred:
            assert_close(says(referred.base_model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", REWARDS)
def test_a_reward_model_starts_from_the_policys_transformer(tmp_path, kind):
    folder = adapter_folder(tmp_path)
    module = REWARDS[kind](
        RewardModelConfig(**SMALL | {"model_name": folder}),
        ModelConfig(name=folder, dtype="float32"),
    )
    theirs = PeftModel.from_pretrained(tiny_model()[0], folder).get_base_model().model
    assert_close(says(module.base_model), says(theirs), rtol=1e-5, atol=1e-5)
    assert len(trainable(module)) == 28
    history, _ = fit(module)
    assert history[-1]["train/loss"] < math.log(2)


# ------------------------------------------------------------------------ the first pass


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4,
                                      resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1))  # fmt: skip


def opt():
    return OPTForCausalLM(OPTConfig(vocab_size=259, hidden_size=32, ffn_dim=64,
                                    num_hidden_layers=2, num_attention_heads=4, dropout=0.1,
                                    attention_dropout=0.1, word_embed_proj_dim=32))  # fmt: skip


def adapted():
    config = copy.deepcopy(tiny_model()[0].config)
    config.attention_dropout = 0.1
    model = type(tiny_model()[0])(config)
    return stir(get_peft_model(model, PeftLoraConfig(
        task_type="CAUSAL_LM", r=4, lora_dropout=0.1, target_modules="all-linear")))  # fmt: skip


DROPPERS = [gpt2, opt, adapted]


@pytest.mark.parametrize("make", DROPPERS, ids=lambda f: f.__name__)
def test_dpos_first_loss_is_log_2_whatever_dropout_a_model_came_with(make):
    torch.manual_seed(0)
    model = make().train()
    ids = torch.arange(3, 40)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)  # it drops
    with pytest.warns(UserWarning, match=r"dropout \(\[0.1\]\), which is off now"):
        module = DPO(dpo_config(), model=model, tokenizer=tiny_tokenizer())
    module.train()
    loss, metrics = module.losses(batch_of(dataset()))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert float(metrics["margin"]) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("make", DROPPERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", [PPO, GRPO])
def test_the_first_passs_ratio_is_1_whatever_dropout_a_model_came_with(make, kind):
    from datamodules.experience import TokenBatch

    torch.manual_seed(0)
    c = ppo_config() if kind is PPO else grpo_config(beta=0.1)
    with pytest.warns(UserWarning, match="which is off now"):
        module = kind(c, model=make().train(), tokenizer=tiny_tokenizer())
    tokens = TokenBatch.collate([torch.arange(3, 20)], [torch.arange(8, 17)])
    module.eval()
    old = module.policy.score(tokens).logprobs
    with module.reference.of(module.policy) as reference:
        refs = reference.score(tokens).logprobs
    module.train()
    assert torch.equal((module.policy.score(tokens).logprobs - old).exp(), torch.ones(9))
    assert torch.equal(refs, old)


def test_what_policies_may_not_have_reward_models_may():
    drops = ModelConfig(name="random:tiny", lora=LoraConfig(r=4, dropout=0.1))
    for name in MODULES:
        with pytest.raises(ValueError, match=r"model.lora.dropout=0.1: .* noise in every ratio"):
            MODULES[name]("random:tiny", model_config=drops)
    reward = RewardModel(RewardModelConfig(**SMALL, use_lora=True, lora_dropout=0.2))
    rates = {m.p for m in reward.base_model.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.2}


def test_an_adapters_own_dropout_is_kept_by_a_reward_model_and_off_in_a_policy(tmp_path):
    folder = adapter_folder(tmp_path, lora_dropout=0.3)
    rates = lambda m: {p.p for p in m.base_model.modules() if isinstance(p, torch.nn.Dropout)}  # noqa: E731
    assert rates(RewardModel(RewardModelConfig(**SMALL | {"model_name": folder}))) == {0.3}
    with pytest.warns(UserWarning, match=r"\[0.3\]"):
        assert rates(DPO(dpo_config(model_name=folder))) == {0.0}


# ------------------------------------------------------------------------ the table of DPO


def test_the_references_table_is_of_the_adapter_as_it_came(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one, scaled = adapter_folder(tmp_path / "1"), adapter_folder(tmp_path / "2", lora_alpha=4)
    histories = {}
    for case, name, precompute in (
        ("computed", one, False), ("table", one, True), ("read", one, True),
        ("scaled computed", scaled, False), ("scaled", scaled, True),
        ("fresh", "random:tiny", True),
    ):  # fmt: skip
        config = dpo_config(model_name=name, num_epochs=2, precompute_ref_log_probs=precompute)
        lora = LoraConfig(r=4) if case == "fresh" else LoraConfig()
        module = DPO(config, ModelConfig(name=name, lora=lora))
        histories[case] = [row["train/loss"] for row in fit(module)[0]]
        assert histories[case][0] == pytest.approx(math.log(2), abs=1e-4)
    assert histories["table"] == pytest.approx(histories["computed"], abs=1e-6)
    assert histories["read"] == histories["table"]
    assert histories["scaled"] == pytest.approx(histories["scaled computed"], abs=1e-6)
    assert len(list((tmp_path / "cache" / "rlmodules" / "reference").iterdir())) == 3


def test_a_given_trained_peft_model_is_compared_with_itself(tmp_path):
    module = DPO(dpo_config(), model=trained(), tokenizer=tiny_tokenizer())
    loss, _ = module.losses(batch_of(dataset()))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert not any("reference" in name for name in module._saved_names())
