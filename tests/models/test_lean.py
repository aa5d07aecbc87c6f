"""Norms and gated MLPs that keep less: what is computed is the same, and less is kept."""

import copy

import pytest
import torch
from architectures import build
from compile_helpers import batches, scores_and_gradients
from torch import nn
from torch.testing import assert_close

from rlmodules.models import LoraConfig, PolicyModel, add_lora
from rlmodules.models.embedded import tiny_model
from rlmodules.models.lean import keep_less

NORMS, GATES = "norms", "gates"
IDS = torch.tensor([[3, 50, 70, 9, 200, 31, 8], [4, 8, 15, 16, 23, 42, 77]])
REPLACED = {
    "llama": (5, 2),
    "qwen3": (9, 2),  # with norms of queries and keys
    "gemma2": (9, 2),  # 1 + weight
    "gemma3_text": (13, 2),
    "olmo2": (9, 2),  # in float32 to the end
    "deepseek_v3": (9, None),
    "qwen3_moe": (9, None),  # experts are no MLPs of this kind
    "phi3": (5, 0),  # gate and up are one product
    "gpt2": (0, 0),
    "cohere": (0, 2),  # a layer norm
    "gemma3n_text": (None, 2),  # half of its layers cut small gates off
}


def replaced(body):
    """How many norms, and how many gated MLPs."""
    parts = [part for part in body.modules() if "forward" in vars(part)]
    norms = sum(hasattr(part, "lean") for part in parts)
    return {NORMS: norms, GATES: len(parts) - norms}


def hidden_and_gradients(body):
    body.zero_grad()
    hidden = body(input_ids=IDS, use_cache=False)[0]
    weights = torch.linspace(-1, 1, hidden.numel()).view(hidden.shape).sin()
    (hidden * weights).sum().backward()
    found = {name: p.grad for name, p in body.named_parameters() if p.grad is not None}
    return hidden.detach(), found


@pytest.mark.parametrize("name", REPLACED)
def test_hidden_states_are_the_same_bits_and_gradients_the_same_numbers(name):
    body = build(name).base_model
    if name == "gemma3n_text":
        for layer in body.layers[:2]:
            layer.mlp.activation_sparsity = 0.5
    for part in body.parameters():  # norms begin at 1, or at 0
        part.data += 0.1 * torch.randn(part.shape, generator=torch.Generator().manual_seed(1))
    hidden, gradients = hidden_and_gradients(body)
    keep_less(body)
    found = replaced(body)
    for kind, count in zip((NORMS, GATES), REPLACED[name], strict=True):
        assert count is None or found[kind] == count, found
    again, others = hidden_and_gradients(body)
    assert torch.equal(hidden, again)
    assert gradients.keys() == others.keys()
    for key, gradient in gradients.items():
        scale = gradient.abs().max().item()
        assert_close(others[key], gradient, rtol=1e-4, atol=1e-5 * scale + 1e-9, msg=key)
    keep_less(body)  # asked again
    assert replaced(body) == found


@pytest.mark.parametrize("autocast", [False, True])
def test_a_policy_says_the_same_and_learns_the_same(autocast):
    eager, lean = (PolicyModel(tiny_model()[0].eval()) for _ in range(2))
    lean.keep_less()
    assert replaced(lean.base_model) == {NORMS: 5, GATES: 2}
    for tokens in batches():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            expected = scores_and_gradients(eager, tokens)
            found = scores_and_gradients(lean, tokens)
        assert_close(found[:3], expected[:3], rtol=0, atol=0)
        tolerance = {"rtol": 0.05, "atol": 0.05} if autocast else {}
        assert_close(found[3], expected[3], **tolerance)


def test_gradients_in_bfloat16_are_no_further_off():
    exact = PolicyModel(tiny_model()[0].eval())
    eager = copy.deepcopy(exact).bfloat16()
    exact.load_state_dict(eager.state_dict())
    lean = copy.deepcopy(eager)
    lean.keep_less()
    errors = {"eager": 0.0, "lean": 0.0}
    for tokens in batches():
        right = scores_and_gradients(exact, tokens)[3]
        for name, policy in (("eager", eager), ("lean", lean)):
            found = scores_and_gradients(policy, tokens)[3]
            errors[name] += sum((found[k].float() - right[k]).square().sum().item() for k in right)
    assert 0 < errors["lean"] < 1.1 * errors["eager"], errors


def kept_bytes(body):
    """Of all that is kept between the passes, but for weights."""
    weights = {p.untyped_storage().data_ptr() for p in body.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, or its address is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = body(input_ids=IDS, use_cache=False)[0]
    del hidden
    return sum(size for size, _ in kept.values())


def test_less_is_kept():
    body = build("llama").base_model.bfloat16()
    before = kept_bytes(body)
    keep_less(body)
    tokens, layers, width = IDS.numel(), body.config.num_hidden_layers, body.config.hidden_size
    inner = body.config.intermediate_size
    norms = (2 * layers + 1) * (4 + 2 - 2) * width  # float32 input and what is before the weight
    assert before - kept_bytes(body) >= tokens * (norms + layers * 2 * inner)


def test_frozen_norms_and_adapters_learn_the_same():
    both = []
    for lean in (False, True):
        config = LoraConfig(r=4, target_modules="all-linear")
        model = add_lora(tiny_model()[0].eval(), config, "CAUSAL_LM")
        generator = torch.Generator().manual_seed(2)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.data = torch.randn(p.shape, generator=generator) * 0.1
            if "lora_A" in name:
                p.data = torch.randn(p.shape, generator=generator) * 0.2
        policy = PolicyModel(model)
        if lean:
            policy.keep_less()
            assert replaced(policy.base_model) == {NORMS: 5, GATES: 2}
        both.append(scores_and_gradients(policy, next(batches())))
    assert both[0][3].keys() == both[1][3].keys() and "lora" in next(iter(both[0][3]))
    assert_close(both[1], both[0], rtol=1e-4, atol=1e-4)


def test_a_copy_computes_with_its_own_weights():
    body = build("llama").base_model
    keep_less(body)
    copied = copy.deepcopy(body)
    with torch.no_grad():
        for p in copied.parameters():
            p.mul_(1.5)
    plain = build("llama").base_model
    with torch.no_grad():
        for p in plain.parameters():
            p.mul_(1.5)
    found, gradients = hidden_and_gradients(copied)
    expected, others = hidden_and_gradients(plain)
    assert torch.equal(found, expected)
    assert_close(gradients, others)
    assert all(p.grad is None for p in body.parameters())


def test_checkpointed_layers_learn_the_same():
    both = []
    for lean in (False, True):
        body = build("llama").base_model.train()
        body.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if lean:
            keep_less(body)
        both.append(hidden_and_gradients(body))
    assert_close(both[1], both[0])


class Norm(nn.Module):
    """As most are."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x):
        return self.weight * self.changed(x * torch.rsqrt(x.pow(2).mean(-1, True) + self.eps))

    def changed(self, x):
        return x


class Clamped(Norm):
    def changed(self, x):
        return x.clamp(max=50.0)


class Centred(Norm):
    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


class OtherEpsilon(Norm):
    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, True) + 10 * self.eps)


class WithBias(Norm):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(8))


class Gated(nn.Module):
    """As most are."""

    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(8, 12, bias=False) for _ in range(2))
        self.down_proj, self.act_fn = nn.Linear(12, 8, bias=False), nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.product(self.gate_proj(x), self.up_proj(x)))

    def product(self, gate, up):
        return self.act_fn(gate) * up


class Limited(Gated):
    def product(self, gate, up):
        return self.act_fn(gate) * up.clamp(-100, 100)


class Swapped(Gated):
    def product(self, gate, up):
        return self.act_fn(up) * gate


class Sparse(Gated):
    def product(self, gate, up):
        return self.act_fn(gate * (gate > gate.mean(-1, keepdim=True))) * up


class DroppingInside(Gated):
    def product(self, gate, up):
        return nn.functional.dropout(super().product(gate, up), 0.1, self.training)


class Dropping(Gated):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.1)


class Learned(Gated):
    def __init__(self):
        super().__init__()
        self.act_fn = nn.PReLU()


KINDS = {Norm: True, Clamped: False, Centred: False, OtherEpsilon: False, WithBias: False,
         Gated: True, Limited: False, Swapped: False, Sparse: False, DroppingInside: False,
         Dropping: False, Learned: False}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_only_what_computes_the_same_is_replaced(kind):
    part = kind().eval()
    keep_less(nn.Sequential(part))
    assert ("forward" in vars(part)) == KINDS[kind]


def test_gradients_in_float64_are_so_exact():
    gradients = []
    for lean in (False, True):
        norm = Norm().double()
        x = torch.linspace(-1, 2, 24, dtype=torch.float64).view(3, 8).requires_grad_()
        if lean:
            keep_less(nn.Sequential(norm))
            assert "forward" in vars(norm)
        (norm(x) * x.detach().sin()).sum().backward()
        gradients.append((x.grad, norm.weight.grad))
    assert_close(*gradients, rtol=1e-12, atol=1e-14)


class Choosing(Gated):
    def __init__(self, power):
        super().__init__()
        self.power = power

    def product(self, gate, up):
        return super().product(gate, up) ** self.power


def test_parts_of_one_class_are_tried_each():
    parts = nn.Sequential(Choosing(1), Choosing(2))
    keep_less(parts)
    assert ["forward" in vars(part) for part in parts] == [True, False]
