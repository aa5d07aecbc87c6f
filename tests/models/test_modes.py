"""The mode of a module comes back; a policy computes the same in both."""

import pytest
import torch
from architectures import build
from torch import nn

from rlmodules.models import PolicyModel
from rlmodules.models.modes import evaluating


@pytest.mark.parametrize("error", [None, KeyError])
def test_every_part_is_in_its_own_mode_again(error):
    module = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout())).train()
    module[1].eval()
    modes = [part.training for part in module.modules()]
    try:
        with evaluating(module):
            assert not any(part.training for part in module.modules())
            assert not torch.is_grad_enabled()
            if error is not None:
                raise error
    except KeyError:
        assert error is KeyError
    assert [part.training for part in module.modules()] == modes == [True, True, False, False]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["phimoe", "mixtral", "gpt2"])
def test_a_policy_in_training_computes_what_it_does_in_evaluation(name):
    model = build(name)  # of which GPT-2 has dropout, and the others have noise in their routers
    for part in model.modules():
        for noise in {"jitter_noise", "router_jitter_noise"} & vars(part).keys():
            setattr(part, noise, 0.5)
    policy, ids = PolicyModel(model), torch.arange(3, 40)[None]
    expected = policy.eval().base_model(input_ids=ids).logits
    assert policy.train() is policy and policy.training
    torch.testing.assert_close(policy.base_model(input_ids=ids).logits, expected, rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(input_ids=ids).logits, expected)


def test_activations_are_computed_again_in_a_policy_in_training():
    model, calls = build("llama"), []
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    policy = PolicyModel(model).train()
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    policy.base_model(input_ids=torch.arange(3, 20)[None]).logits.sum().backward()
    assert len(calls) == 2
    policy.eval()
    assert not any(part.training for part in policy.modules())
