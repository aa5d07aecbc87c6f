"""A module made of an export: the folder's policy, held against the reference of the run."""

import pytest
import torch
from adapter_helpers import stir
from pair_helpers import dataset
from transformers import AutoModelForCausalLM

from datamodules.preferences.dataset import PreferenceBatch
from rlmodules import DPO, DPOConfig, LoraConfig, ModelConfig, RewardModel, RewardModelConfig
from rlmodules.algorithms.text_policy import pair_sums, response_logprobs, starts_of
from rlmodules.models import PolicyModel


def batch():
    rows = dataset(4)
    return PreferenceBatch([rows[i] for i in range(4)], torch.arange(4), {}, "train")


def sums(module, policy=None):
    with torch.no_grad():
        given = batch()
        starts = starts_of(given)
        return pair_sums(response_logprobs(policy or module.policy, given.sequences, starts))


@pytest.mark.parametrize(("rank", "merge"), [(0, None), (4, None), (4, True)])
def test_a_policy_is_the_folder_and_its_reference_that_of_the_run(tmp_path, rank, merge):
    model = ModelConfig(name="random:tiny", dtype="float32", lora=LoraConfig(r=rank))
    module = DPO(DPOConfig(model_name="random:tiny"), model)
    reference = sums(module)
    stir(module.base_model)
    trained = sums(module)
    module.export(tmp_path, merge=merge, dtype="bfloat16")
    written = module.from_export(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(written.reference_sums(batch()), reference)
        if merge:
            whole = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
            expected = sums(module, PolicyModel(whole))
        else:
            for p in module.base_model.parameters():
                p.copy_(p.bfloat16() if p.requires_grad else p)
            expected = sums(module)
    torch.testing.assert_close(sums(written), expected, rtol=0, atol=2e-4)
    assert (trained - expected).abs().max() > 2e-3  # it is rounded
    assert {p.dtype for p in written.parameters() if p.requires_grad} == {torch.float32}


def test_a_reward_model_is_the_folder(tmp_path):
    module = RewardModel(RewardModelConfig(model_name="random:tiny", use_lora=False))
    stir(module.base_model)
    module.export(tmp_path, dtype="float16")
    written = module.from_export(tmp_path)
    assert type(written) is RewardModel and written.config == module.config
    rounded = {name: w.half().float() for name, w in module.base_model.state_dict().items()}
    for name, weight in written.base_model.state_dict().items():
        assert torch.equal(weight.float(), rounded[name]), name
    assert torch.equal(written.head.linear.weight, module.head.linear.weight)
