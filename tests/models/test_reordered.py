"""Weights in the order of a product: the same bits, never those of before a step."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from datamodules.types import SamplingParams
from rlmodules.models import PolicyModel, copies
from rlmodules.models import reordered as module
from rlmodules.models.reordered import Reordered
from rlmodules.sampling import decoding
from rlmodules.sampling.decoding import Decoding, sample

SIZES = {"vocab_size": 300, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
needs_operators = pytest.mark.skipif(
    not module._can_reorder(), reason="this CPU's products in bfloat16 are not oneDNN's"
)


def policy(dtype=torch.bfloat16, *, tied=True, biased=False):
    torch.manual_seed(0)
    config = (Qwen2Config if biased else LlamaConfig)(**SIZES, tie_word_embeddings=tied)
    model = (Qwen2ForCausalLM if biased else LlamaForCausalLM)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name:
                parameter.normal_()
    return PolicyModel(model.to(dtype).eval())


def states():
    return torch.randn(5, SIZES["hidden_size"], generator=torch.Generator().manual_seed(3))


def next_states(model):
    ids = torch.tensor([[3, 5, 7, 9], [4, 8, 6, 2]])
    with torch.no_grad():
        return model.next_states(ids, None, torch.arange(4)[None].expand(2, -1), None)[0]


@needs_operators
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("mixed", [True, False])
def test_products_have_the_same_bits(tied, mixed, biased):
    dtype = torch.float32 if mixed else torch.bfloat16
    model = policy(dtype, tied=tied, biased=biased)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed), torch.no_grad():
        weights = Reordered(model)
        assert len(weights.copies) == 2 * 7 + 1
        plain = next_states(model), model._projection.logits(states())
        with weights.used():
            assert type(model.base_model.model.layers[0].mlp.up_proj.forward) is copies._Forward
            assert model._projection.product == weights.product
            there = next_states(model), model._projection.logits(states())
        for mine, theirs in zip(there, plain, strict=True):
            assert torch.equal(mine, theirs)
    assert all("forward" not in vars(part) for part in model.modules())
    assert model.product is nn.functional.linear


@needs_operators
def test_a_weight_that_was_stepped_is_read_itself():
    model = policy()
    weights = Reordered(model)
    before = next_states(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after = next_states(model)
    assert not torch.equal(before, after)
    with weights.used():
        assert torch.equal(next_states(model), after)


@needs_operators
@pytest.mark.parametrize(
    "why", ["frozen", "float32", "small", "of a card", "other bits", "autocast"]
)
def test_what_is_not_copied_is_multiplied_as_ever(why, monkeypatch):
    model = policy(torch.float32 if why in ("float32", "autocast") else torch.bfloat16)
    model.requires_grad_(why != "frozen")
    if why == "small":
        monkeypatch.setattr(copies, "SMALLEST", 10**6)
    if why == "of a card":
        model.to("meta")
    if why == "other bits":
        monkeypatch.setattr(
            Reordered, "product", lambda self, x, w, b: nn.functional.linear(x, w) * 2
        )
    if why == "autocast":  # copied for mixed precision, used outside of it
        with torch.autocast("cpu", torch.bfloat16):
            weights = Reordered(model)
        assert weights.copies
    else:
        weights = Reordered(model)
        assert not weights.copies
    if why != "of a card":
        plain = next_states(model)
        with weights.used():
            assert torch.equal(next_states(model), plain)


def test_layers_that_compute_otherwise_are_left_alone():
    """LoRA's base layers are frozen; a forward of somebody's own stays."""
    model = policy()
    layer = model.base_model.model.layers[0].mlp.up_proj
    layer.forward = own = lambda x: nn.functional.linear(x, layer.weight) * 0
    weights = Reordered(model)
    with weights.used():
        assert layer.forward is own
    assert layer.forward is own


@needs_operators
def test_of_lora_the_adapters_alone_are_copied():
    adapted = LoraConfig(r=128, target_modules=["up_proj"], init_lora_weights=False)
    model = PolicyModel(get_peft_model(policy().base_model, adapted).bfloat16())
    plain, weights = next_states(model), Reordered(model)
    assert len(weights.copies) == 2 * 2
    with weights.used():
        assert torch.equal(next_states(model), plain)


@needs_operators
def test_texts_are_the_same_with_copies_and_without(monkeypatch):
    model, made = policy(), []
    prompts = [torch.tensor([3, 5, 7]), torch.tensor([9, 4]), torch.tensor([8] * 6)]
    params = SamplingParams(max_new_tokens=24, temperature=1.0)
    count = lambda *given: made.append(Reordered(*given)) or made[-1]  # noqa: E731
    monkeypatch.setattr(decoding, "Reordered", count)
    with_copies = sample(model, None, prompts, params, [1, 2, 3])
    assert len(made) == 1 and made[0].copies
    monkeypatch.setattr(decoding, "REORDERED_STEPS", 10**9)
    without = sample(model, None, prompts, params, [1, 2, 3])
    assert len(made) == 1
    for mine, theirs in zip(with_copies, without, strict=True):
        assert mine.tokens == theirs.tokens
        assert_close(torch.tensor(mine.logprobs), torch.tensor(theirs.logprobs), rtol=0, atol=0)


@pytest.mark.parametrize(("rows", "steps", "made"), [(2, 30, 1), (2, 5, 0), (33, 30, 0)])
def test_copies_are_made_for_few_rows_that_go_on(rows, steps, made, monkeypatch):
    found = []
    monkeypatch.setattr(decoding, "Reordered", lambda model: found.append(1) or Reordered(model))
    going = Decoding(policy(), None)
    prompts = [torch.tensor([3, 5, 7])] * rows
    going.admit(prompts, [SamplingParams(max_new_tokens=steps)] * rows, range(rows))
    for _ in range(2):
        going.step()
    assert len(found) == made
