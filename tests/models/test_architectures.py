"""The tiny builds: of every type, the same by seed, and of a size at which mistakes show."""

import pytest
import torch
from architectures import CAUSAL, ENCODERS, NOT_BUILT, VARIANTS, build, build_encoder, config_of
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LOOK_AHEAD = ("bert:encoder", "cpmant", "doge:moe", "xlm", "xlnet")
"""Builds whose earlier logits change with a later token."""


def test_every_type_is_built_or_has_a_reason():
    assert {*CAUSAL, *NOT_BUILT} == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert all(name.partition(":")[0] in CAUSAL for name in VARIANTS)


def test_a_build_is_the_same_by_seed():
    first, again, other = (build("qwen3_5_text", seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@torch.no_grad()
@pytest.mark.parametrize("name", ["mamba", "gemma2", "bloom", "qwen3_moe", *LOOK_AHEAD])
def test_logits_differ_and_earlier_tokens_matter(name):
    model = build(name)
    ids = torch.arange(3, 27)[None].repeat(2, 1)
    ids[1, 20] = 5
    logits = model(input_ids=ids, use_cache=False).logits
    assert 0.2 < logits.std() < 10
    assert (logits[0, -1] - logits[1, -1]).abs().max() > 0.01
    ahead = (logits[0, :20] - logits[1, :20]).abs().max()
    assert ahead > 0.01 if name in LOOK_AHEAD else ahead < 1e-5


def test_a_variant_is_a_type_with_something_changed():
    assert config_of("llama:tied").tie_word_embeddings
    assert not config_of("llama").tie_word_embeddings
    with pytest.raises(KeyError):
        config_of("llama:unknown")


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_looks_ahead(name):
    ids = torch.arange(3, 13)[None].repeat(2, 1)
    ids[1, -1] = 40
    with torch.no_grad():
        hidden = build_encoder(name)(input_ids=ids)[0]
    assert (hidden[0, 0] - hidden[1, 0]).abs().max() > 1e-4
