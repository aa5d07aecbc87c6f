"""``asked_once``: an answer is taken again for an equal model alone."""

from types import MethodType

import asked_once
import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlmodules.models.embedded import tiny_model


@pytest.fixture
def asked(monkeypatch):
    """A question, and of whom it was really asked."""
    seen = []
    monkeypatch.setattr(asked_once, "_answers", {})
    return asked_once._once("logit_shape", lambda model: seen.append(model) or len(seen)), seen


def changed_weight(model):
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1e-6


def frozen(model):
    model.model.embed_tokens.weight.requires_grad_(False)


def narrow(model):
    model.bfloat16()


def scaled(model):
    model.model.layers[0].self_attn.scaling *= 2


def capped(model):
    model.config.final_logit_softcapping = 30.0


def eager(model):
    model.set_attn_implementation("eager")


def of_another_method(model):
    mlp = model.model.layers[0].mlp
    mlp.forward = MethodType(lambda self, x: type(self).forward(self, x), mlp)


def hooked(model):
    model.model.norm.register_forward_hook(lambda *_: None)


CHANGES = [changed_weight, frozen, narrow, scaled, capped, eager, of_another_method, hooked]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_an_equal_model_is_not_asked_again_and_any_other_is(change, asked):
    ask, seen = asked
    assert [ask(tiny_model()[0]) for _ in range(3)] == [1, 1, 1]
    other = tiny_model()[0]
    change(other)
    assert ask(other) == 2 and seen[-1] is other


def test_what_torch_is_told_counts(asked, monkeypatch):
    ask, _ = asked
    assert ask(tiny_model()[0]) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert ask(tiny_model()[0]) == 2
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", lambda *_: None)
    assert ask(tiny_model()[0]) == 3


def test_an_answer_with_a_warning_is_not_taken_again():
    said = []
    ask = asked_once._once("_obstacle", lambda body: said.append(1) or "its attention is other")
    model = tiny_model()[0]
    assert [ask(model), ask(model)] == ["its attention is other"] * 2 and len(said) == 2
