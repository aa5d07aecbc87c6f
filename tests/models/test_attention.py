"""The attention of rows that are not packed: of many tokens the architecture's own, of one ours."""

import sys

import pytest
import torch
from architectures import build
from torch.testing import assert_close
from transformers import Gemma3TextConfig, GptOssConfig, LlamaConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3Attention
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention, eager_attention_forward

from rlmodules.models import PolicyModel, backbone
from rlmodules.models.attention import eager_attention
from rlmodules.models.packing import PACKED

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


@pytest.fixture
def asked(monkeypatch):
    """How many tokens asked, each time that the architecture's own attention was computed."""
    asked, own = [], eager_attention_forward

    def watched(module, query, *args, **options):
        asked.append(query.shape[2])
        return own(module, query, *args, **options)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", watched)
    return asked


def plainly(*given, **options):
    return eager_attention_forward(*given, dropout=0.0, **options)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [None, 0, 2])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_of_one_token_it_is_what_the_architecture_computes(dtype, masked, kv_heads, asked):
    """The bits of bfloat16 too, where scores are scaled by a power of two."""
    torch.manual_seed(0)
    module = LlamaAttention(LlamaConfig(**SIZES | {"num_key_value_heads": kv_heads}), layer_idx=0)
    query, room = torch.randn(3, 4, 1, 8).to(dtype), torch.randn(2, 3, kv_heads, 9, 8).to(dtype)
    key, value = room[:, :, :, :6]  # as a cache with room for more gives them
    mask = None if masked is None else torch.zeros(3, 1, 1, 6, dtype=dtype)
    if masked:
        mask[1, :, :, :masked] = torch.finfo(dtype).min
    given = module, query, key, value, mask
    said, _ = eager_attention(*given, scaling=0.25, dropout=0.0)
    assert not asked
    assert_close(said, plainly(*given, scaling=0.25), rtol=0, atol=1e-6)
    scaled, _ = eager_attention(*given)
    assert_close(scaled, plainly(*given, scaling=8**-0.5), rtol=0.02, atol=0.02)
    assert not torch.equal(scaled, said)


@pytest.mark.parametrize("heads_of_mask", [1, 4])
def test_values_may_have_another_size_and_masks_heads(heads_of_mask, asked):
    torch.manual_seed(0)
    module = LlamaAttention(LlamaConfig(**SIZES), layer_idx=0)
    query, key, value = torch.randn(3, 4, 1, 8), torch.randn(3, 2, 6, 8), torch.randn(3, 2, 6, 4)
    given = module, query, key, value, torch.randn(3, heads_of_mask, 1, 6)
    said, _ = eager_attention(*given, scaling=0.25, dropout=0.0)
    assert asked == [1] * (heads_of_mask > 1)
    assert_close(said, plainly(*given, scaling=0.25), rtol=0, atol=1e-6)


def test_of_more_tokens_the_architecture_computes_it(asked):
    module = LlamaAttention(LlamaConfig(**SIZES), layer_idx=0)
    query, (key, value) = torch.randn(3, 4, 2, 8), torch.randn(2, 3, 2, 6, 8)
    said, _ = eager_attention(module, query, key, value, None, scaling=0.25, dropout=0.0)
    assert asked == [2] and said.shape == (3, 2, 4, 8)


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (Gemma3Attention(Gemma3TextConfig(**SIZES), layer_idx=0), {"softcap": 0.5}),
        (GptOssAttention(GptOssConfig(**SIZES, num_hidden_layers=2), layer_idx=0), {}),
    ],
    ids=["scores that are capped", "sinks"],
)
def test_what_is_more_than_a_softmax_the_architecture_computes(module, options):
    torch.manual_seed(0)
    if hasattr(module, "sinks"):
        torch.nn.init.normal_(module.sinks)
    own = sys.modules[type(module).__module__].eager_attention_forward
    query, (key, value) = torch.randn(3, 4, 1, 8), torch.randn(2, 3, 2, 6, 8)
    options |= {"scaling": 0.25, "dropout": 0.0}
    with torch.no_grad():
        said, _ = eager_attention(module, query, key, value, None, **options)
        assert torch.equal(said, own(module, query, key, value, None, **options)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_packed_policy_writes_what_it_reads(dtype, mixed, asked):
    policy = PolicyModel(build("llama").to(dtype))
    policy.enable_packing()
    assert backbone(policy.base_model).config._attn_implementation == PACKED["eager"]
    asked.clear()
    texts = torch.tensor([[3, 5, 7, 9, 4], [0, 0, 6, 2, 8]])
    there = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    at = (there.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        _, cache = policy.next_logits(texts[:, :4], there[:, :4], at[:, :4], None)
        logits, _ = policy.next_logits(texts[:, 4:], there, at[:, 4:], cache)
        assert set(asked) == {4}
        read = policy.last_logits([texts[0], texts[1, 2:]])
    half = mixed or dtype == torch.bfloat16
    assert_close(logits.float(), read.float(), rtol=0, atol=0.07 if half else 1e-5)
