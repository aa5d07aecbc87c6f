"""A checkpoint whose config and weights disagree, or whose weights are damaged, is refused."""

import json
import logging
from pathlib import Path

import pytest
import torch
from architectures import build
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from datamodules import rewards
from rlmodules import PPO, PPOConfig, RewardModel, RewardModelConfig
from rlmodules.models import LoraConfig, ModelConfig, load_backbone, load_model
from rlmodules.models.embedded import tiny_model, tiny_tokenizer

LOADERS = pytest.mark.parametrize("load", [load_model, load_backbone])
BERT = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT |= {"intermediate_size": 16, "max_position_embeddings": 64}


def untied(**changes):
    config = tiny_model()[0].config
    for name, value in ({"tie_word_embeddings": False} | changes).items():
        setattr(config, name, value)
    return LlamaForCausalLM(config)


def edit(folder: Path, **changes) -> None:
    """Say something else in ``config.json``."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def weights(folder: Path, change) -> None:
    """``change`` the weights, a dict, of ``folder``."""
    file = folder / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


# --------------------------------------------------------------- what does not fit


@LOADERS
@pytest.mark.parametrize(
    ("built", "said", "message"),
    [
        (untied, {"num_hidden_layers": 3}, r"lacks 9 weights .*layers\.2\..* and 5 more"),
        (untied, {"num_hidden_layers": 1}, r"holds 9 weights .*layers\.1\..* and 5 more"),
        (untied, {"hidden_size": 32}, r"\d+ weights have other shapes .* is \[64\], not \[32\]"),
        (untied, {"vocab_size": 300}, r"embed_tokens\.weight is \[259, 64\], not \[300, 64\]"),
        (untied, {"attention_bias": True}, r"lacks 8 weights .*self_attn\.\w_proj\.bias"),
        (lambda: untied(attention_bias=True), {"attention_bias": False}, r"holds 8 .*_proj\.bias"),
        (lambda: build("mixtral"), {"num_hidden_layers": 1}, r"holds \d+ weights .*layers\.1\."),
        (lambda: build("mixtral"), {"num_hidden_layers": 3}, r"lacks \d+ weights .*layers\.2\."),
        (lambda: build("mixtral"), {"num_local_experts": 6}, r"experts\.down_proj is \[4, .*\[6, "),
        (lambda: build("gpt2"), {"n_layer": 1}, r"holds \d+ weights .*h\.1\."),
        (lambda: build("gpt2"), {"n_layer": 3}, r"lacks 12 weights .*h\.2\."),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_refused_by_name(
    tmp_path, load, built, said, message
):
    built().save_pretrained(tmp_path)
    load(ModelConfig(name=str(tmp_path)))
    edit(tmp_path, **said)
    with pytest.raises(ValueError, match=rf"model\.name='{tmp_path}'.*{message}"):
        load(ModelConfig(name=str(tmp_path)))


@LOADERS
def test_one_missing_tensor_is_enough(tmp_path, load):
    untied().save_pretrained(tmp_path)
    weights(tmp_path, lambda state: state.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match=r"lacks 1 weights .*layers\.1\.mlp\.up_proj\.weight"):
        load(ModelConfig(name=str(tmp_path)))


@LOADERS
@pytest.mark.parametrize("silenced", [False, True])
def test_a_missing_piece_of_the_experts_is_found(tmp_path, load, silenced, monkeypatch):
    logger = logging.getLogger("transformers.modeling_utils")
    monkeypatch.setattr(logger, "disabled", silenced)  # as a run's logging leaves it
    build("mixtral").save_pretrained(tmp_path)
    name = "model.layers.0.block_sparse_moe.experts.3.w1.weight"
    weights(tmp_path, lambda state: state.pop(name))
    with pytest.raises(ValueError, match=r"made of several of the file's.*experts\.gate_up_proj"):
        load(ModelConfig(name=str(tmp_path)))
    assert logger.disabled == silenced


# ------------------------------------------------------------------------- heads


@pytest.mark.parametrize(
    ("built", "kind"),
    [
        (lambda: untied().model, "a backbone"),
        (lambda: LlamaForSequenceClassification(untied().config), "a classifier"),
        (lambda: BertModel(BertConfig(**BERT)), "an encoder"),
    ],
)
def test_a_policy_without_a_head_of_its_own_is_refused(tmp_path, built, kind):
    built().save_pretrained(tmp_path)
    load_backbone(ModelConfig(name=str(tmp_path)))
    with pytest.raises(ValueError, match=r"lacks .*without the head that predicts tokens"):
        load_model(ModelConfig(name=str(tmp_path)))


def test_a_head_that_is_the_embedding_is_not_missing(tmp_path):
    tiny_model()[0].model.save_pretrained(tmp_path)
    model = load_model(ModelConfig(name=str(tmp_path)))
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize(
    "built",
    [
        untied,
        lambda: LlamaForSequenceClassification(untied().config),
        lambda: BertForMaskedLM(BertConfig(**BERT)),  # without a pooler, which nothing reads
    ],
)
def test_a_backbone_is_taken_out_of_whatever_has_a_head(tmp_path, built):
    model = built()
    model.save_pretrained(tmp_path)
    found = load_backbone(ModelConfig(name=str(tmp_path))).state_dict()
    expected = model.base_model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_layers_that_predict_several_tokens_ahead_may_be_left_out(tmp_path):
    """As of GLM-4.5 and DeepSeek-V3: one more layer than ``num_hidden_layers``."""
    config = build("glm4_moe").config
    config.num_hidden_layers += 1
    type(build("glm4_moe"))(config).save_pretrained(tmp_path)
    edit(tmp_path, num_hidden_layers=config.num_hidden_layers - 1, num_nextn_predict_layers=1)
    load_model(ModelConfig(name=str(tmp_path)))
    edit(tmp_path, num_nextn_predict_layers=0)
    with pytest.raises(ValueError, match=r"holds \d+ weights"):
        load_model(ModelConfig(name=str(tmp_path)))


@LOADERS
def test_buffers_and_masks_of_old_checkpoints_are_no_weights(tmp_path, load):
    untied().save_pretrained(tmp_path)
    old = {
        "model.rotary_emb.inv_freq": torch.ones(8),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.layers.0.self_attn.masked_bias": torch.ones(1),
        "v_head.summary.weight": torch.ones(1, 64),
    }
    weights(tmp_path, lambda state: state.update(old))
    load(ModelConfig(name=str(tmp_path)))


# ------------------------------------------------------------------------- NaN


@LOADERS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused_by_its_name(tmp_path, load, dtype, value):
    untied().save_pretrained(tmp_path)

    def damage(state):
        state["model.layers.1.mlp.up_proj.weight"][5, 7] = value

    weights(tmp_path, damage)
    with pytest.raises(ValueError, match=r"1 of its weights hold NaN .*1\.mlp\.up_proj\.weight"):
        load(ModelConfig(name=str(tmp_path), dtype=dtype))


@pytest.mark.parametrize(
    "make",
    [
        lambda model: PPO(PPOConfig(model_name="given"), model=model, tokenizer=tiny_tokenizer()),
        lambda model: RewardModel(RewardModelConfig(model_name="given"), base_model=model.model),
    ],
)
def test_a_model_that_is_given_is_looked_at_too(make):
    model = untied()
    make(model)
    model.model.norm.weight.data[3] = float("nan")
    with pytest.raises(ValueError, match=r"1 of its weights hold NaN .*norm\.weight"):
        make(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("adapter", ["continue", "merge"])
def test_adapters_that_are_not_finite_are_refused_by_name(tmp_path, adapter, value):
    untied().save_pretrained(tmp_path / "base")
    base = load_model(ModelConfig(name=str(tmp_path / "base"), lora=LoraConfig(r=2)))
    base.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter/adapter_model.safetensors"
    state = load_file(file)
    name = next(n for n in state if "layers.1.mlp.up_proj.lora_B" in n)
    state[name][3, 1] = value
    save_file(state, file, metadata={"format": "pt"})
    config = ModelConfig(name=str(tmp_path / "adapter"), adapter=adapter)
    with pytest.raises(ValueError, match=r"adapter' .*no number for .*1\.mlp\.up_proj\.lora_B"):
        load_model(config)


def test_large_weights_are_finite(tmp_path):
    model = untied()
    model.lm_head.weight.data.fill_(3e38)
    model.save_pretrained(tmp_path)
    load_model(ModelConfig(name=str(tmp_path)))


def test_an_exported_reward_model_is_loaded_whole_too(tmp_path):
    config = RewardModelConfig(model_name="given", max_length=64, max_prompt_length=32)
    model = RewardModel(config, base_model=untied().model, tokenizer=tiny_tokenizer())
    model.export(tmp_path)
    edit(tmp_path, num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"lacks 9 weights"):
        RewardModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("said", [{"num_hidden_layers": 3}, {"hidden_size": 32}])
def test_a_classifier_that_rewards_has_all_of_its_weights(tmp_path, said):
    LlamaForSequenceClassification(untied().config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    edit(tmp_path, **said)
    with pytest.raises(ValueError, match=r"reward\.path=.*it has no weights.*layers\.\d"):
        rewards.model(str(tmp_path))
