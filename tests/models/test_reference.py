"""The reference holds what is trained a second time, and nothing else."""

import pytest
import torch
from adapter_helpers import IDS, says, stir
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from torch.testing import assert_close
from transformers import LlamaForCausalLM

from rlmodules.models import TINY, LoraConfig, ModelConfig, PolicyModel, Reference, load_model
from rlmodules.models.embedded import tiny_model


def peft(**settings):
    config = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | settings
    return get_peft_model(tiny_model()[0], PeftLoraConfig(**config))


def some_frozen():
    model = tiny_model()[0]
    model.model.embed_tokens.requires_grad_(False)  # tied: the projection too
    model.model.layers[0].requires_grad_(False)
    return model


def quantized(bits):
    lora = LoraConfig(r=4)
    return load_model(ModelConfig(TINY, quantization=bits, lora=lora, dtype="float32"))


LAYER = 4 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128 + 2 * 64)
"""Bytes of a layer of the tiny model."""
EMBEDDINGS, NORM = 4 * 259 * 64, 4 * 64
ADAPTERS = 2 * 4 * 4 * (64 + 64 + 64 + 32)
"""Rank 4 on q_proj and v_proj of two layers."""
COPIED = {
    "all is trained": (lambda: tiny_model()[0], 2 * LAYER + EMBEDDINGS + NORM),
    "a layer and the norm are": (some_frozen, LAYER + NORM),
    "fresh adapters": (peft, 0),
    "trained adapters": (lambda: stir(peft()), ADAPTERS),
    "a fresh copy of the embeddings": (lambda: peft(modules_to_save=["embed_tokens"]), 0),
    "a trained one": (
        lambda: stir(peft(modules_to_save=["embed_tokens"])),
        ADAPTERS + EMBEDDINGS,
    ),
    "4 bits": (lambda: quantized("4bit"), 0),
    "8 bits": (lambda: quantized("8bit"), 0),
}


def storages(module):
    held = [*module.parameters(), *module.buffers()]
    return {w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for w in held}


@pytest.mark.parametrize("case", COPIED)
def test_what_is_trained_is_copied_and_nothing_else(case):
    make, expected = COPIED[case]
    policy = PolicyModel(make())
    before, buffers = storages(policy), {b.data_ptr() for b in policy.buffers()}
    said = says(policy.base_model)
    reference = Reference(policy)
    after = storages(torch.nn.ModuleList([policy, reference]))
    new = sum(size for at, size in after.items() if at not in before)
    small = sum(b.nbytes for b in reference.buffers()) if reference.model else 0  # of rotations
    assert new - small == expected and small < 200 and buffers
    stir(policy.base_model)
    assert (says(policy.base_model) - said).abs().max() > 0.05
    with reference.of(policy) as referred:
        assert_close(says(referred.base_model), said, rtol=1e-5, atol=1e-5)


def test_tied_embeddings_stay_one_tensor_in_both():
    for model in (tiny_model()[0], some_frozen()):
        policy = PolicyModel(model)
        for held in (policy, Reference(policy).model):
            inner = held.base_model
            assert isinstance(inner, LlamaForCausalLM)
            assert inner.lm_head.weight is inner.model.embed_tokens.weight


def test_what_is_frozen_in_both_is_not_trained_after_all():
    policy = PolicyModel(some_frozen())
    reference = Reference(policy)
    policy.base_model.requires_grad_(True)
    with (
        pytest.raises(ValueError, match=r"frozen when the module was made.*requires_grad_\(True\)"),
        reference.of(policy),
    ):
        pass


def test_a_shared_weight_moves_with_both():
    policy = PolicyModel(some_frozen())
    reference = Reference(policy)
    both = torch.nn.ModuleList([policy, reference]).to(torch.float64)
    pairs = zip(
        policy.base_model.parameters(), reference.model.base_model.parameters(), strict=True
    )
    assert [a is b for a, b in pairs].count(True) == 10
    assert_close(both[0].base_model(IDS).logits, reference.model.base_model(IDS).logits)
