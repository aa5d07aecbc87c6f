"""Reward models that are an adapter with a head, as TRL leaves them: used, and gone on with."""

import pytest
import torch
from adapter_helpers import adapter_folder, stir
from pair_helpers import fit
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaForSequenceClassification,
)

from datamodules import rewards
from rlmodules import PairwiseRewardModel, RewardModel, RewardModelConfig
from rlmodules.models import ModelConfig
from rlmodules.models.embedded import tiny_model, tiny_tokenizer
from rlmodules.reward_models import serving

PROMPTS, RESPONSES = ["one: ", "", "and a third? "], ["yes", "no, not at all", "p"]
SMALL = {"batch_size": 4, "num_epochs": 1, "learning_rate": 1e-2, "device": "cpu",
         "max_length": 64, "max_prompt_length": 32}  # fmt: skip


def classifier(labels, kind=LlamaForSequenceClassification):
    """The tiny model with a random head, which the base on disk does not have."""
    config = tiny_model()[0].config
    config.num_labels = labels
    torch.manual_seed(3)
    model = kind(config)
    model.model.load_state_dict(tiny_model()[0].model.state_dict())
    return model


def reward_adapter(folder, labels=1, base="random:tiny", **settings):
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "SEQ_CLS"} | settings
    model = get_peft_model(classifier(labels), LoraConfig(**settings))
    model.peft_config["default"].base_model_name_or_path = base
    stir(model).save_pretrained(folder)
    return str(folder)


def scores(model, tokenizer):
    """Of each text alone, by transformers."""
    texts = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    with torch.no_grad():
        return [model.eval()(input_ids=torch.tensor([tokenizer(t)["input_ids"]])).logits[0]
                for t in texts]  # fmt: skip


def a_base_of_its_own(folder):
    """On disk, as a language model: it has no head, and its config says two labels."""
    tiny_model()[0].save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("own_base", [True, False])
def test_an_adapter_with_its_head_gives_its_rewards(tmp_path, labels, own_base):
    base = a_base_of_its_own(tmp_path / "base") if own_base else "random:tiny"
    folder = reward_adapter(tmp_path / "adapter", labels, base)
    expected = scores(PeftModel.from_pretrained(classifier(labels), folder), tiny_tokenizer())
    label = None if labels == 1 else 2
    found = serving.model(folder, label=label, device="cpu")(PROMPTS, RESPONSES)
    wanted = [s[0] if labels == 1 else s.log_softmax(-1)[2] for s in expected]
    assert found == pytest.approx([float(s) for s in wanted], abs=1e-5)
    assert max(found) - min(found) > 1e-3


def test_an_adapter_on_a_reward_model_needs_no_head_of_its_own(tmp_path):
    base = classifier(1)
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    lora = LoraConfig(r=4, target_modules=["q_proj"])  # no task: the head stays the base's
    model = get_peft_model(base, lora)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    stir(model).save_pretrained(tmp_path / "adapter")
    expected = [float(s[0]) for s in scores(model, tiny_tokenizer())]
    found = serving.model(str(tmp_path / "adapter"), device="cpu")(PROMPTS, RESPONSES)
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["a language model's", "a reward model's, without its head"])
def test_an_adapter_without_its_head_is_no_reward(tmp_path, kind):
    if kind == "a language model's":
        folder = adapter_folder(tmp_path / "adapter", base=a_base_of_its_own(tmp_path / "base"))
    else:
        folder = reward_adapter(tmp_path / "adapter", base=a_base_of_its_own(tmp_path / "base"))
        without_head(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"reward.path='.*adapter' is an adapter without its head"):
        serving.model(folder)
    with pytest.raises(ValueError, match=r"is an adapter: rlmodules.reward_models.serving.model"):
        rewards.model(folder)


def without_head(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    weights = {name: w for name, w in load_file(path).items() if "score" not in name}
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize("adapter", ["continue", "merge"])
@pytest.mark.parametrize("kind", [RewardModel, PairwiseRewardModel])
def test_a_reward_model_goes_on_from_the_adapter_and_its_score(tmp_path, kind, adapter):
    folder = reward_adapter(tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(classifier(1), folder)
    expected = [float(s[0]) for s in scores(theirs, tiny_tokenizer())]
    settings = ModelConfig(name=folder, dtype="float32", adapter=adapter)
    model = kind(RewardModelConfig(**SMALL, model_name=folder, temperature=2.0), settings)
    texts = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    assert model.predict_rewards(texts) == pytest.approx(expected, abs=1e-5)
    trained = {n for n, p in model.base_model.named_parameters() if p.requires_grad}
    assert all(".lora_" in name for name in trained) == (adapter == "continue")
    fit(model)
    model.export(tmp_path / "out")
    again = serving.model(str(tmp_path / "out"), device="cpu")(PROMPTS, RESPONSES)
    assert again == pytest.approx(model.predict_rewards(texts), abs=1e-4)
    assert again != pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("labels", "changes", "said"),
    [
        (3, {}, "has a score of 3 labels .* this model one of 1"),
        (1, {"pooling_strategy": "mean"}, "algo.pooling_strategy=mean"),
    ],
)
def test_a_score_of_another_kind_is_refused(tmp_path, labels, changes, said):
    folder = reward_adapter(tmp_path, labels)
    with pytest.raises(ValueError, match=said):
        RewardModel(RewardModelConfig(**SMALL | changes, model_name=folder))


def test_going_on_from_a_reward_adapter_without_its_score_is_refused(tmp_path):
    folder = reward_adapter(tmp_path)
    without_head(tmp_path)
    with pytest.raises(ValueError, match="without its score"):
        RewardModel(RewardModelConfig(**SMALL, model_name=folder))


def test_an_encoders_head_is_used_as_it_is_and_no_start_for_ours(tmp_path):
    config = BertConfig(vocab_size=259, hidden_size=32, num_hidden_layers=2, intermediate_size=64,
                        num_attention_heads=4, num_labels=1)  # fmt: skip
    torch.manual_seed(0)
    base = BertForSequenceClassification(config)
    base.bert.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    lora = LoraConfig(r=4, target_modules=["query"], task_type="SEQ_CLS")
    model = get_peft_model(base, lora)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    stir(model).save_pretrained(tmp_path / "adapter")
    expected = [float(s[0]) for s in scores(model, tiny_tokenizer())]
    found = serving.model(str(tmp_path / "adapter"), device="cpu")(PROMPTS, RESPONSES)
    assert found == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="without its score"):
        RewardModel(RewardModelConfig(**SMALL, model_name=str(tmp_path / "adapter")))


@pytest.mark.parametrize("kind", [RewardModel, PairwiseRewardModel])
def test_a_saved_reward_model_of_ours_with_adapters_comes_back(tmp_path, kind):
    settings = RewardModelConfig(**SMALL, model_name="random:tiny", use_lora=True)
    model = kind(settings)
    fit(model)
    model.save_model(tmp_path / "model.safetensors")
    model.export(tmp_path / "out")
    texts = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    expected = model.predict_rewards(texts)
    fresh = kind(settings)
    fresh.load_model(tmp_path / "model.safetensors")
    assert fresh.predict_rewards(texts) == expected
    found = kind.from_pretrained(tmp_path / "out")
    assert found.predict_rewards(texts) == pytest.approx(expected, abs=1e-4)
    assert not any(isinstance(part, PeftModel) for part in found.modules())
