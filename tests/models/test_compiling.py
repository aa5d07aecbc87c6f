"""Compiled layers compute what eager ones do; of other models, see tests/scale."""

import pytest
import torch
from compile_helpers import batches, check_compiled

from rlmodules import (
    DPO,
    GRPO,
    KTO,
    ORPO,
    PPO,
    SFT,
    DPOConfig,
    GRPOConfig,
    KTOConfig,
    ORPOConfig,
    PPOConfig,
    RewardModel,
    RewardModelConfig,
    SFTConfig,
)
from rlmodules.models import ModelConfig, PolicyModel, Reference, backbone, compiling
from rlmodules.models.compiling import compile_layers, layers_of
from rlmodules.models.embedded import tiny_model


@pytest.mark.skipif(not compiling.has_compiler(), reason="no C++ compiler")
def test_compiled_layers_say_what_eager_ones_do():
    check_compiled("llama", packs=True)


def test_a_body_that_names_no_layers_is_refused():
    assert len(layers_of(backbone(tiny_model()[0]))) == 2
    with pytest.raises(ValueError, match=r"model\.compile=true: Linear .* model\.compile=false"):
        compile_layers(torch.nn.Linear(1, 1))


def test_without_a_compiler_the_option_is_refused(monkeypatch):
    monkeypatch.setattr("rlmodules.models.config.has_compiler", lambda: False)
    with pytest.raises(ValueError, match=r"model\.compile=true needs a C\+\+ compiler"):
        ModelConfig(name="random:tiny", compile=True)
    ModelConfig(name="random:tiny")


def test_a_policy_and_its_reference_score_by_compiled_layers_and_sample_by_eager_ones(monkeypatch):
    """Seen by a compiler that notes what it is given."""
    seen = []

    def note(graph, inputs):
        seen.append(torch.is_grad_enabled())
        return graph.forward

    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **o: plain(f, backend=note, **o))
    torch._dynamo.reset()
    policy = PolicyModel(tiny_model()[0])
    policy.compile_layers()
    reference = Reference(policy)
    ids = torch.tensor([[3, 5, 7]])
    with torch.no_grad():
        policy.next_logits(ids, None, torch.arange(3)[None], None)
    assert seen == []
    policy.score(next(batches())).logprobs.sum().backward()
    assert seen and all(seen)
    del seen[:]
    torch._dynamo.reset()
    with torch.no_grad(), reference.of(policy) as frozen:
        frozen.score(next(batches()))
    assert seen and not any(seen)


MODULES = {
    "ppo": (PPO, PPOConfig), "grpo": (GRPO, GRPOConfig), "sft": (SFT, SFTConfig),
    "kto": (KTO, KTOConfig),
    "dpo": (DPO, DPOConfig),
    "orpo": (ORPO, ORPOConfig), "reward": (RewardModel, RewardModelConfig),
}  # fmt: skip


@pytest.mark.skipif(not compiling.has_compiler(), reason="no C++ compiler")
@pytest.mark.parametrize("name", MODULES)
def test_every_algorithm_reads_the_option(name):
    algorithm, config = MODULES[name]
    for told in (False, True):
        model = ModelConfig(name="random:tiny", compile=told)
        module = algorithm(config(model_name="random:tiny", device="cpu"), model)
        layers = layers_of(module.body if name == "reward" else backbone(module.base_model))
        assert len(layers) == 2
        assert all((layer._compiled_call_impl is not None) == told for layer in layers)
