"""How a model is asked whether it takes packed rows, and what attention must not do on a card."""

from types import SimpleNamespace

import pytest
import torch

from rlmodules import DPO, DPOConfig, RewardModel, RewardModelConfig
from rlmodules.models import packing
from rlmodules.models.embedded import tiny_model
from rlmodules.models.heads import backbone


@pytest.mark.parametrize("own", ["eager", "sdpa"])
def test_sharp_scores_are_compared_eagerly_on_both_sides(own, monkeypatch):
    body = backbone(tiny_model()[0])
    body.set_attn_implementation(own)
    seen = []
    flat_hidden = packing.flat_hidden

    def watched(body, layout):
        seen.append(body.config._attn_implementation)
        return flat_hidden(body, layout)

    monkeypatch.setattr(packing, "flat_hidden", watched)
    assert packing.takes_packed(body)
    eager, sharp = packing.PACKED["eager"], len(packing.SHARPNESS) - 1
    assert seen == [own, own, *[packing.PACKED[own]] * 2, *["eager", "eager", eager, eager] * sharp]
    assert body.config._attn_implementation == own


def test_no_attention_is_planned_anew_for_each_shape():
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("card", [False, True])
def test_rows_are_packed_where_there_is_no_card(card, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card)
    monkeypatch.setattr(packing, "has_flash", lambda: False)
    policy = DPO(DPOConfig(model_name="random:tiny", device="cpu")).policy
    judge = RewardModel(RewardModelConfig(model_name="random:tiny", device="cpu"))
    assert policy.packs is judge.packs is not card


@pytest.mark.parametrize("moved", [0.0, 1.0])
def test_what_rounding_alone_could_explain_refuses_nothing(moved, monkeypatch, recwarn):
    body = backbone(tiny_model()[0])
    errors = iter([0.0, 0.5, 0.5])
    monkeypatch.setattr(packing, "_error", lambda *_: next(errors))
    monkeypatch.setattr(packing, "_moved_by_rounding", lambda *_: moved)
    assert packing.takes_packed(body) is bool(moved)
    assert body.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("moved", "fits"), [(2e-5, True), (3e-6, False)])
def test_an_error_is_held_against_what_rounding_moves(moved, fits, monkeypatch, recwarn):
    monkeypatch.setattr(packing, "_error", lambda *_: 2e-4)
    monkeypatch.setattr(packing, "_moved_by_rounding", lambda *_: moved)
    assert packing.takes_packed(backbone(tiny_model()[0])) is fits


@pytest.mark.parametrize(
    ("device", "flash", "half", "pays"),
    [
        ("cpu", False, False, True),
        ("cuda", True, True, True),
        ("cuda", True, False, False),  # our own loop over pieces would launch too much
        ("cuda", False, True, False),
    ],
)
def test_rows_are_packed_on_a_card_where_flash_attention_takes_them(
    device, flash, half, pays, monkeypatch
):
    monkeypatch.setattr(packing, "has_flash", lambda: flash)
    dtype = torch.bfloat16 if half else torch.float32
    weight = SimpleNamespace(device=torch.device(device), dtype=dtype)
    body = SimpleNamespace(parameters=lambda: iter([weight]))
    assert packing.packing_pays(body) is pays
    weight.dtype = torch.float32
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: half)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
    assert packing.packing_pays(body) is pays
