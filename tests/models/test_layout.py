"""Packed rows compute what each sequence computes alone: values, gradients, every architecture."""

import pytest
import torch
from architectures import build, build_encoder
from torch.testing import assert_close
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
)

from rlmodules.models.layout import (
    flat_hidden,
    is_causal,
    look_at,
    pack,
    pad,
    shared_prefix,
    unpad,
)
from rlmodules.models.packing import enable_packing, takes_packed

SMALL = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODERS = {
    "llama": LlamaConfig(**SMALL, intermediate_size=32, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SMALL, intermediate_size=32, num_key_value_heads=2, head_dim=8),
    "mistral, a window": MistralConfig(
        **SMALL, intermediate_size=32, num_key_value_heads=2, sliding_window=4
    ),
    "gemma2, soft caps": Gemma2Config(
        **SMALL, intermediate_size=32, num_key_value_heads=2, head_dim=8, sliding_window=5
    ),
    "gpt2": GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=4, n_positions=64),
}
BERT = BertConfig(**SMALL, intermediate_size=32, max_position_embeddings=64)


def built(config):
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    return AutoModel.from_config(config).eval()


def some_groups():
    generator = torch.Generator().manual_seed(0)
    ids = lambda n: torch.randint(3, 64, (n,), generator=generator)  # noqa: E731
    prompts = [ids(5), ids(11), ids(1)]
    groups = [[torch.cat([p, ids(4)]), torch.cat([p, ids(7)])] for p in prompts]
    alone, longer = ids(6), ids(9)
    return [
        *groups,
        [alone],
        [longer, longer[:4]],
        [ids(3), ids(2)],
        [torch.cat([alone, ids(1)])] * 2,
    ]


@pytest.mark.parametrize("name", DECODERS)
def test_packed_and_alone_give_the_same_hidden_states_and_gradients(name):
    body, groups = built(DECODERS[name]), some_groups()
    alone = [body(input_ids=s[None], use_cache=False)[0][0] for group in groups for s in group]
    weights = [p for p in body.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(sum((a**2).sum() for a in alone), weights, allow_unused=True)

    assert takes_packed(body)
    enable_packing(body)
    layout = pack(groups)
    hidden = flat_hidden(body, layout)
    packed = [hidden[index] for index in layout.index]
    for a, b in zip(packed, alone, strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(sum((p**2).sum() for p in packed), weights, allow_unused=True)
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_packed_row_has_no_padding_and_each_prefix_once():
    groups = some_groups()
    expected = sum(
        shared_prefix(group) + sum(len(s) - shared_prefix(group) for s in group) for group in groups
    )
    layout = pack(groups)
    assert layout.input_ids.shape == (1, expected)
    for sequence, index in zip(layout.sequences, layout.index, strict=True):
        assert layout.input_ids[0, index].tolist() == sequence.tolist()
        assert layout.position_ids[0, index].tolist() == list(range(len(sequence)))


def test_the_shared_prefix_is_all_that_the_sequences_begin_with():
    t = torch.tensor
    assert shared_prefix([t([1, 2, 3]), t([1, 2, 4])]) == 2
    assert shared_prefix([t([1, 2, 3]), t([1, 2])]) == 2
    assert shared_prefix([t([5, 2]), t([1, 2])]) == 0
    assert shared_prefix([t([5, 2])]) == 2
    assert shared_prefix([t([1, 2, 3]), t([1, 2, 3]), t([1, 9])]) == 1


def test_gradient_checkpointing_recomputes_with_the_same_segments():
    body, groups = built(DECODERS["llama"]), some_groups()
    assert takes_packed(body)
    enable_packing(body)
    body.train()
    grads = []
    for on in (False, True):
        if on:
            body.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        body.zero_grad()
        (flat_hidden(body, pack(groups)) ** 2).sum().backward()
        grads.append(body.layers[0].self_attn.q_proj.weight.grad.clone())
    assert_close(grads[0], grads[1])


def test_a_model_that_packs_still_does_everything_else():
    """Ordinary padded batches, and generation with a cache, after the switch."""
    body = built(DECODERS["llama"])
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    before = body(input_ids=ids, attention_mask=mask, position_ids=positions)[0]
    assert takes_packed(body)
    enable_packing(body)
    after = body(input_ids=ids, attention_mask=mask, position_ids=positions)[0]
    assert_close(after[0, 2:], before[0, 2:])
    assert_close(after[1], before[1])


def test_encoders_and_models_without_attention_are_told_apart():
    bert = built(BERT)
    assert not is_causal(bert)
    assert all(is_causal(built(config)) for config in DECODERS.values())
    mamba = AutoModel.from_config(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2))
    assert is_causal(mamba.eval())
    assert not takes_packed(mamba)


def test_a_body_is_looked_at():
    assert look_at(build_encoder("roberta")) == (32, False)
    assert look_at(build("mamba").backbone) == (32, True)
    assert look_at(build("opt:post-norm").model) == (16, True)  # of which its config says 32


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda: build_encoder("bart"), "BartModel is an encoder and a decoder"),
        (lambda: build_encoder("whisper"), "WhisperModel is an encoder and a decoder"),
        (lambda: build("cpmant").cpmant, "CpmAntModel: the hidden states .* beside a longer one"),
    ],
)
def test_a_body_whose_texts_have_no_states_of_their_own_is_refused(body, message):
    with pytest.raises(ValueError, match=message):
        look_at(body().eval())


def test_a_model_that_does_not_pack_keeps_its_attention():
    bert = BertModel(BERT).eval()
    before = bert.config._attn_implementation
    with pytest.warns(UserWarning, match="BertModel does not take packed rows"):
        assert not takes_packed(bert)
    assert bert.config._attn_implementation == before


def test_padding_does_not_reach_the_texts_of_an_encoder():
    bert, groups = built(BERT), some_groups()
    layout = pad(groups, with_mask=True)
    hidden = flat_hidden(bert, layout)
    for sequence, index in zip(layout.sequences, layout.index, strict=True):
        alone = bert(input_ids=sequence[None])[0][0]
        assert_close(hidden[index], alone, rtol=1e-4, atol=1e-5)


def test_unpad_takes_either_side_and_refuses_an_empty_text():
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 0, 0]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0]])
    assert [[t.tolist() for t in group] for group in unpad(ids, mask)] == [[[5, 6]], [[7, 8]]]
    assert [group[0].tolist() for group in unpad(ids, None)] == ids.tolist()
    with pytest.raises(ValueError, match="no text"):
        unpad(ids, torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0]]))
