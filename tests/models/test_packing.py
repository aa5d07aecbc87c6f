"""Packing is asked for without touching the model, refused where it would be wrong, and changes
nothing of rows that are not packed; what is sampled and what is trained agree."""

import warnings

import pytest
import torch
from architectures import build, config_of
from torch.testing import assert_close
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    DeepseekV3Config,
    DeepseekV32Config,
    Gemma2Config,
    Gemma3TextConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen2MoeConfig,
)

from datamodules.experience import TokenBatch
from rlmodules import GRPO, GRPOConfig, ModelConfig, RewardModel, RewardModelConfig, SamplingParams
from rlmodules.models import PolicyModel, backbone, load_model
from rlmodules.models.layout import flat_hidden, pad
from rlmodules.models.packing import PACKED, enable_packing, takes_packed
from rlmodules.sampling.decoding import sample

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WINDOWS = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
EXPERTS |= {"moe_intermediate_size": 16, "first_k_dense_replace": 1}
MODELS = {
    "deepseek_v3": DeepseekV3Config(  # values of 16, keys of 12
        **SIZES | {"num_key_value_heads": 4}, **LATENT, **EXPERTS, v_head_dim=16
    ),
    "llama": LlamaConfig(**SIZES),
    "mistral": MistralConfig(**SIZES, sliding_window=6),
    "qwen2": Qwen2Config(**SIZES, **WINDOWS),
    "gemma2": Gemma2Config(**SIZES, head_dim=8, sliding_window=6, attn_logit_softcapping=5.0),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=6, sliding_window_pattern=2),
}


def built(config, dtype=torch.float32):
    """Random, with scores of the size that trained models have: caps and windows tell."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "q_proj" in name or "k_proj" in name or "q_b_proj" in name:
                weight.mul_(25)
    return model.eval()


def attention_of(model):
    return backbone(model).config._attn_implementation


@pytest.mark.parametrize("name", MODELS)
def test_the_sampler_and_the_packed_pass_agree(name):
    model = built(MODELS[name])
    policy = PolicyModel(model)
    policy.enable_packing()
    assert policy.packs
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randint(3, 60, (n,), generator=generator) for n in (11, 7))
    prompts = [first, first, second, second]
    params = SamplingParams(max_new_tokens=12, temperature=0.8)
    responses = sample(policy, None, prompts, params, [1, 2, 3, 4])
    sequences = [
        torch.cat([p, torch.tensor(r.tokens)]) for p, r in zip(prompts, responses, strict=True)
    ]
    positions = [torch.arange(len(p), len(s)) for p, s in zip(prompts, sequences, strict=True)]
    tokens = TokenBatch.collate(sequences, positions)
    assert tokens.groups() == [[0, 1], [2, 3]]
    packed = policy.score(tokens, temperature=0.8).logprobs
    sampled = torch.tensor([logprob for r in responses for logprob in r.logprobs])
    assert_close(packed, sampled, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_rows_that_are_not_packed_keep_their_attention_to_the_bit(name):
    body = backbone(built(MODELS[name]))
    rows = pad([[torch.arange(3, 20)], [torch.arange(5, 14)]])
    before = flat_hidden(body, rows)
    enable_packing(body)
    assert torch.equal(flat_hidden(body, rows), before)


def test_a_soft_cap_is_not_lost():
    capped = MODELS["gemma2"]
    free = Gemma2Config(**capped.to_dict() | {"attn_logit_softcapping": None})
    rows = pad([[torch.arange(3, 20)]])
    for config in (capped, free):
        enable_packing(backbone(built(config)))
    with_cap, without = (flat_hidden(backbone(built(c)), rows) for c in (capped, free))
    assert (with_cap - without).abs().max() > 0.1  # or the tests above would not see it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen2"])
def test_the_question_changes_nothing(name, dtype):
    model = built(MODELS[name], dtype)
    body = backbone(model)
    weights = {key: weight.clone() for key, weight in model.state_dict().items()}
    config = body.config.to_dict()
    assert takes_packed(body.train())
    assert attention_of(model) == "eager" and body.training
    assert body.config.to_dict() == config
    assert all(torch.equal(weight, weights[key]) for key, weight in model.state_dict().items())
    assert {weight.dtype for weight in model.parameters()} == {dtype}


def moe_window():
    """Its window stands in the mask alone; its layers do not tell their attention of it."""
    return Qwen2MoeConfig(**SIZES, **WINDOWS, num_experts=4, num_experts_per_tok=2,
                          moe_intermediate_size=16, shared_expert_intermediate_size=16)  # fmt: skip


def convolutions():
    return Lfm2Config(**SIZES, layer_types=["conv", "full_attention", "conv", "full_attention"])


def indexer():
    """Its tokens attend to the 2,048 of the row that an indexer chooses: texts here are shorter."""
    return DeepseekV32Config(**SIZES | {"num_key_value_heads": 4}, **LATENT, **EXPERTS,
                             v_head_dim=16, index_n_heads=2, index_head_dim=8)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [moe_window, convolutions, indexer])
def test_what_packed_rows_would_get_wrong_is_refused_in_any_precision(config, dtype):
    model = built(config(), dtype)
    with pytest.warns(UserWarning, match="does not take packed rows"):
        assert not takes_packed(backbone(model))
    assert attention_of(model) == "eager"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_attention_that_was_asked_for_is_the_one_that_is_used(attention):
    model_config = ModelConfig(name="random:tiny", attn_implementation=attention)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy = GRPO(GRPOConfig(model_name="random:tiny", beta=0.1), model_config).policy
        reward = RewardModel(RewardModelConfig(model_name="random:tiny"), model_config)
    assert not policy.packs and attention_of(policy.base_model) == attention
    assert not reward.packs and reward.body.config._attn_implementation == attention


def test_left_to_us_rows_are_packed_and_the_name_says_so():
    policy = GRPO(GRPOConfig(model_name="random:tiny", beta=0.1)).policy
    assert policy.packs and attention_of(policy.base_model) == PACKED["eager"]
    again = PolicyModel(load_model(ModelConfig(name="random:tiny")))
    again.enable_packing()
    again.enable_packing()  # asked twice, as by two algorithms over one model
    assert again.packs and attention_of(again.base_model) == PACKED["eager"]


def test_a_model_that_cannot_be_asked_in_float32_is_padded_and_stays_whole():
    """Layers that reach into each other's weights."""
    model = built(MODELS["llama"], torch.bfloat16)
    body = backbone(model)
    first, second = body.layers[:2]
    plain = first.mlp.forward
    first.mlp.forward = lambda x: plain(x) + 0 * (x @ second.self_attn.q_proj.weight.T)
    weights = {key: weight.clone() for key, weight in model.state_dict().items()}
    with pytest.warns(UserWarning, match="RuntimeError"):
        assert not takes_packed(body)
    assert attention_of(model) == "eager"
    for key, weight in model.state_dict().items():
        assert weight.dtype == torch.bfloat16 and torch.equal(weight, weights[key])


def test_parts_of_a_model_keep_their_own_kinds_of_attention():
    """Its audio tower has no sdpa."""
    body = AutoModel.from_config(config_of("gemma4")).eval()
    before = [
        part.config._attn_implementation for part in body.children() if hasattr(part, "config")
    ]
    assert {"sdpa", "eager"} <= set(before)
    assert takes_packed(body)
    after = [
        part.config._attn_implementation for part in body.children() if hasattr(part, "config")
    ]
    assert after == before
    enable_packing(body)
    assert body.language_model.config._attn_implementation == PACKED["sdpa"]
    assert body.audio_tower.config._attn_implementation == PACKED["eager"]


def test_whatever_an_architecture_makes_of_packed_rows_it_is_padded():
    with pytest.warns(UserWarning, match=r"does not take packed rows \(IndexError"):
        assert not takes_packed(backbone(build("qwen4_exp_text")))
