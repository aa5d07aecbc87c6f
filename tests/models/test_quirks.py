"""What some architectures do that a trained model must not suffer from."""

import pytest
import torch
from architectures import build
from transformers import AutoModelForCausalLM

from rlmodules.models import PolicyModel
from rlmodules.models.quirks import require_kept


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
