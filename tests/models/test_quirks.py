"""What some architectures do that a trained model must not suffer from."""

import pytest
import torch
from architectures import build
from peft import PeftModel
from transformers import AutoModelForCausalLM

from rlmodules import LoraConfig
from rlmodules.models import PolicyModel, add_lora
from rlmodules.models.quirks import require_gradients, require_kept


def test_a_class_that_zeroes_what_it_loads_is_not_trained(tmp_path):
    model = build("youtu")
    with torch.no_grad():
        model.lm_head.weight[0] = 1.0
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not again.lm_head.weight[0].any()  # or there would be nothing to refuse
    with pytest.raises(ValueError, match=r"YoutuForCausalLM sets .* padding .*model.lora.r=16"):
        PolicyModel(model)
    PolicyModel(model.requires_grad_(False))


@pytest.mark.parametrize("name", ["llama:tied", "gemma2", "gpt2", "opt", "bart"])
def test_what_others_load_is_kept(name):
    require_kept(build(name))


def test_a_model_that_counts_padding_tokens_in_texts_is_refused():
    with pytest.raises(ValueError, match=r"XLMWithLMHeadModel: .* not supported"):
        PolicyModel(build("xlm:causal"))


@pytest.mark.parametrize("make", [PolicyModel, lambda model: require_gradients(model.base_model)])
def test_a_model_that_gives_gradients_in_training_mode_alone_is_refused(make):
    with pytest.raises(ValueError, match=r"no gradient passes through ReformerModel in evaluation"):
        make(build("reformer"))


@pytest.mark.parametrize("name", ["ctrl", "git", "gpt2", "mamba"])
def test_gradients_of_others_pass(name):
    require_gradients(build(name).base_model)


@pytest.mark.parametrize(
    ("name", "left"), [("laguna", "shared_experts.up_proj"), ("inkling2_text", "weight_proj")]
)
def test_what_peft_would_not_find_again_is_not_adapted(tmp_path, name, left):
    with pytest.warns(UserWarning, match=f"all-linear leaves out .*{left}"):
        model = add_lora(build(name), LoraConfig(r=2), "CAUSAL_LM").eval()
    for own, weight in model.named_parameters():
        if "lora_B" in own:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build(name), tmp_path).eval()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        logits, plain = (m(input_ids=ids).logits for m in (model, build(name)))
        assert torch.equal(again(input_ids=ids).logits, logits)
    assert not torch.allclose(logits, plain, atol=0.01)
    with pytest.raises(ValueError, match=r"target_modules=\['.*_proj'\] .* not be found again"):
        named = [left.rpartition(".")[2]]
        add_lora(build(name), LoraConfig(r=2, target_modules=named), "CAUSAL_LM")
