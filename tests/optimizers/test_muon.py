"""Muon takes the matrices of the layers, AdamW all else, each as torch's own does alone."""

import torch
from torch import nn

from rlmodules import ModelConfig, RewardModel, RewardModelConfig
from rlmodules.models import LoraConfig, load_model
from rlmodules.optimizers.building import make_optimizer
from rlmodules.optimizers.config import OptimizerConfig
from rlmodules.optimizers.muon import matrices


def names(model):
    taken = matrices(model)
    return {name for name, p in model.named_parameters() if id(p) in taken}


def test_matrices_are_the_weights_of_the_layers_projections(model):
    last = {name.split(".")[-2] for name in names(model)}
    assert last == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(names(model)) == 7 * model.config.num_hidden_layers
    assert all(".layers." in name for name in names(model))


def test_adapters_count_as_what_they_are_on():
    targets = ["q_proj", "embed_tokens", "lm_head"]
    lora = LoraConfig(r=2, target_modules=targets)
    adapted = load_model(ModelConfig(name="random:tiny", lora=lora))
    found = names(adapted)
    assert found and all("q_proj" in name or ".layers." in name for name in found)
    assert any("q_proj.lora_A" in name for name in found)
    trained = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert any("lm_head" in name for name in trained) and any("embed" in name for name in trained)


def test_a_reward_head_and_what_is_not_flat_are_left_to_adamw():
    model = RewardModel(RewardModelConfig(model_name="random:tiny"))
    assert not matrices(model.base_model) & {id(p) for p in model.head.parameters()}

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(3, 4)
            self.experts = nn.Parameter(torch.zeros(2, 3, 4))
            self.A_log = nn.Parameter(torch.zeros(3, 4))  # of a Mamba: no map of hidden states
            self.positions = nn.Embedding(5, 3)

    assert names(Mixed()) == {"dense.weight"}


def test_each_part_steps_as_alone_and_keeps_its_place_in_a_state():
    def weights():
        torch.manual_seed(0)
        return [nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))]

    c = OptimizerConfig("muon", [0.8, 0.9], 1e-6, momentum=0.9, ns_steps=4)
    ours, theirs = weights(), weights()
    groups = [{"params": ours, "lr": 0.1, "weight_decay": 0.2}]
    together = make_optimizer(c, groups, {id(ours[0])})
    muon = torch.optim.Muon(
        theirs[:1], lr=0.1, weight_decay=0.2, momentum=0.9, ns_steps=4,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    adamw = torch.optim.AdamW(
        theirs[1:], lr=0.1, weight_decay=0.2, betas=(0.8, 0.9), eps=1e-6, fused=True
    )
    assert [group["muon"] for group in together.param_groups] == [True, False]

    def steps(count):
        for step in range(count):
            torch.manual_seed(step)
            for mine, other in zip(ours, theirs, strict=True):
                mine.grad = torch.randn_like(mine)
                other.grad = mine.grad.clone()
            for optimizer in (together, muon, adamw):
                optimizer.step()
            assert all(map(torch.equal, ours, theirs))

    steps(3)
    state = together.state_dict()
    assert [sorted(kept) for kept in state["state"].values()] == [
        ["momentum_buffer"], ["exp_avg", "exp_avg_sq", "step"]
    ]  # fmt: skip
    together.load_state_dict(state)
    together.param_groups[0]["lr"] = muon.param_groups[0]["lr"] = 0.05  # as a schedule does
    steps(2)


def test_a_step_of_muon_is_as_large_as_one_of_adamw():
    """(``match_rms_adamw``: 0.2 of a learning rate by root mean square, AdamW's typical step.)"""
    p = nn.Parameter(torch.zeros(40, 60))
    optimizer = make_optimizer(
        OptimizerConfig("muon"), [{"params": [p], "lr": 1e-2, "weight_decay": 0.0}], {id(p)}
    )
    torch.manual_seed(0)
    p.grad = torch.randn_like(p)
    optimizer.step()
    size = p.detach().pow(2).mean().sqrt().item()
    assert 0.13e-2 < size < 0.23e-2
