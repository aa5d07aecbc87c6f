"""Backbone and projection against the models' own logits, and PPO's model with its value head."""

import pytest
import torch
from architectures import VARIANTS, build
from torch import nn
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertModel,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from rlmodules.models import (
    LoraConfig,
    ModelConfig,
    PPOModel,
    ValueHead,
    backbone,
    hidden_states,
    load_model,
    projection,
)
from rlmodules.models.embedded import tiny_model
from rlmodules.models.heads import LogitShape, logit_shape

EXACT = {"rtol": 1e-5, "atol": 1e-5}
SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}


def gpt2(**options):
    shape = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(**shape, **ENDS, **options))


def gemma2():
    heads = {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8}
    caps = {"final_logit_softcapping": 0.5, "attn_logit_softcapping": 2.0, "sliding_window": 4}
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, **heads, **caps))


def opt(**options):
    shape = {"vocab_size": 60, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 32}
    return OPTForCausalLM(OPTConfig(**shape, **options))


def biased_phi():
    model = PhiForCausalLM(PhiConfig(**SMALL))
    nn.init.normal_(model.lm_head.bias)
    return model


MAKERS = {
    "llama": lambda: tiny_model()[0],
    "gpt2": gpt2,
    "gemma2": gemma2,
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0)),
    "phi": biased_phi,
    "opt": opt,
}
every_architecture = pytest.mark.parametrize("name", MAKERS)


def make(name) -> nn.Module:
    torch.manual_seed(0)
    return MAKERS[name]().eval()


def ids_of(*shape: int) -> torch.Tensor:
    return torch.randint(3, 60, shape, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------- projection


@every_architecture
@torch.no_grad()
def test_logits_from_hidden_states_are_the_models_own(name):
    model, ids = make(name), ids_of(3, 9)
    theirs = model(input_ids=ids).logits
    hidden = backbone(model)(input_ids=ids)[0]
    assert_close(projection(model).logits(hidden), theirs, **EXACT)
    assert_close(projection(model).logits(hidden[1, 4]), theirs[1, 4], **EXACT)


def test_softcap_scale_and_bias_are_read_from_the_model():
    assert projection(make("gemma2")).softcap == 0.5
    assert projection(make("cohere")).scale == 0.25
    assert projection(make("granite")).scale == 0.25  # divided by logits_scaling
    phi = make("phi")
    assert projection(phi).bias is phi.lm_head.bias
    llama = projection(make("llama"))
    assert (llama.bias, llama.scale, llama.softcap) == (None, 1.0, None)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("hyperclovax", {"logits_scaling": 4.0}, LogitShape(4.0)),  # Granite divides
        ("granite", {"logits_scaling": 4.0}, LogitShape(0.25)),
        ("inkling_text", {"logits_mup_width_multiplier": 4.0}, LogitShape(0.25)),
        ("inkling_text", {"unpadded_vocab_size": 200}, LogitShape(0.5, size=200)),
        ("mpt", {"logit_scale": 4.0}, LogitShape()),  # it does not read it
        ("falcon_h1", {"lm_head_multiplier": 4.0}, LogitShape(4.0)),
        ("gemma3", {"text_config": {"final_logit_softcapping": 1.0}}, LogitShape()),
        ("gemma3_text", {"final_logit_softcapping": 1.0}, LogitShape(softcap=1.0)),
        ("recurrent_gemma", {"logits_soft_cap": 1.0}, LogitShape(softcap=1.0)),
        ("xlstm", {"output_logit_soft_cap": 1.0}, LogitShape(softcap=1.0)),
    ],
)
def test_what_is_done_with_logits_is_found_out_by_trying(name, changes, expected, monkeypatch):
    monkeypatch.setitem(VARIANTS, f"{name}:changed", changes)
    model = build(f"{name}:changed")
    assert logit_shape(model) == expected


@torch.no_grad()
def test_logits_that_a_model_leaves_out_are_left_out(monkeypatch):
    monkeypatch.setitem(VARIANTS, "inkling_text:cut", {"unpadded_vocab_size": 200})
    model, ids = build("inkling_text:cut"), torch.arange(3, 12)[None]
    hidden = backbone(model)(input_ids=ids)[0]
    assert_close(projection(model).logits(hidden), model(input_ids=ids).logits, **EXACT)


@pytest.mark.parametrize(("share", "refused"), [(2e-5, False), (5e-3, True)])
def test_rounding_in_batches_is_no_dependence_on_company(share, refused):
    model = tiny_model()[0]

    def by_rows(module, args, kwargs, output):
        output.last_hidden_state.mul_(1 + share * len(output.last_hidden_state))

    backbone(model).register_forward_hook(by_rows, with_kwargs=True)
    if refused:
        with pytest.raises(ValueError, match="texts beside it"):
            logit_shape(model)
    else:
        assert logit_shape(model) == LogitShape()


class Unknown(LlamaForCausalLM):
    """Doubles its logits in a way that its config does not tell."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output


def test_an_architecture_that_treats_its_logits_in_an_unknown_way_is_refused():
    model = Unknown(tiny_model()[0].config)
    for use in (logit_shape, PPOModel):
        with pytest.raises(ValueError, match=r"Unknown: logits .* not supported: choose"):
            use(model)


def test_what_is_no_causal_language_model_has_no_backbone():
    for model in (tiny_model()[0].model, BertModel(BertConfig(**SMALL))):
        with pytest.raises(ValueError, match=r"Model has no separate backbone"):
            backbone(model)


# ---------------------------------------------------------------------- hidden states


def padded(ids: torch.Tensor, left: int, right: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One row [1, T] with tokens that mean nothing around it, and its mask."""
    count = ids.shape[1]
    around = torch.full((1, left + count + right), 7)
    mask = torch.zeros_like(around)
    around[:, left : left + count] = ids
    mask[:, left : left + count] = 1
    return around, mask


@every_architecture
@torch.no_grad()
def test_hidden_states_do_not_depend_on_padding_or_its_side(name):
    model, ids = make(name), ids_of(1, 8)
    expected = hidden_states(model, ids, None)
    assert_close(expected, backbone(model)(input_ids=ids)[0], **EXACT)
    for left, right in ((0, 5), (5, 0), (3, 2)):
        around, mask = padded(ids, left, right)
        hidden = hidden_states(model, around, mask)[:, left : left + 8]
        assert_close(hidden, expected, **EXACT)


@every_architecture
@torch.no_grad()
def test_right_padding_needs_no_mask(name):
    model, ids = make(name), ids_of(1, 8)
    around, _ = padded(ids, 0, 5)
    assert_close(
        hidden_states(model, around, None)[:, :8], hidden_states(model, ids, None), **EXACT
    )


def test_hidden_states_carry_gradients_to_every_weight_of_the_backbone():
    model = make("llama")
    hidden_states(model, ids_of(2, 6), None).square().sum().backward()
    assert all(p.grad is not None for p in backbone(model).parameters())


# --------------------------------------------------------------------------- PPOModel


@every_architecture
@torch.no_grad()
def test_ppo_models_logits_are_the_base_models_and_its_values_start_at_zero(name):
    base, ids = make(name), ids_of(3, 9)
    model = PPOModel(base).eval()
    logits, values = model(ids)
    assert logits.shape == (3, 9, base.config.vocab_size) and values.shape == (3, 9)
    assert logits.dtype == values.dtype == torch.float32
    assert_close(logits, base(input_ids=ids).logits, **EXACT)
    assert torch.equal(values, torch.zeros(3, 9))
    assert model.base_model is base


@every_architecture
@torch.no_grad()
def test_ppo_models_logits_and_values_do_not_depend_on_the_padding_side(name):
    model, ids = PPOModel(make(name)).eval(), ids_of(1, 8)
    nn.init.normal_(model.value_head.output.weight)
    logits, values = model(ids)
    assert values.std() > 0.01
    for left, right in ((0, 5), (5, 0)):
        around, mask = padded(ids, left, right)
        padded_logits, padded_values = model(around, mask)
        assert_close(padded_logits[:, left : left + 8], logits, **EXACT)
        assert_close(padded_values[:, left : left + 8], values, **EXACT)


@pytest.mark.parametrize(
    "model", [gpt2(), opt(dropout=0.3)], ids=["gpt2 as built", "opt with dropout"]
)
def test_a_model_in_train_mode_with_dropout_is_no_unknown_architecture(model):
    assert model.training
    torch.manual_seed(0)
    PPOModel(model)
    assert model.training


def with_adapters(targets) -> nn.Module:
    lora = LoraConfig(r=4, target_modules=targets)
    return load_model(ModelConfig(name="random:tiny", lora=lora)).eval()


def train_adapters(model: nn.Module) -> None:
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.5)


@torch.no_grad()
def test_a_ppo_model_over_adapters_says_what_the_adapted_model_says():
    base, ids = with_adapters("all-linear"), ids_of(2, 7)
    model = PPOModel(base)
    train_adapters(base)
    logits, values = model(ids)
    assert_close(logits, base(input_ids=ids).logits, **EXACT)
    assert values.shape == (2, 7)
    with base.disable_adapter():
        assert (base(input_ids=ids).logits - logits).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")
def test_adapters_on_the_vocabulary_projection_are_honoured_or_refused():
    ids = ids_of(2, 7)
    try:
        base = with_adapters(["q_proj", "lm_head"])
        model = PPOModel(base)
    except ValueError:
        return
    train_adapters(base)
    logits, _ = model(ids)
    assert_close(logits, base(input_ids=ids).logits, **EXACT)


# -------------------------------------------------------------------------- ValueHead


def test_the_value_head_is_a_relu_layer_and_one_output():
    head = ValueHead(2)
    with torch.no_grad():
        head.hidden.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        head.hidden.bias.copy_(torch.tensor([0.5, 0.0]))
        head.output.weight.copy_(torch.tensor([[2.0, 10.0]]))
        head.output.bias.fill_(1.0)
    values = head(torch.tensor([[[1.0, 3.0], [1.0, -3.0], [-2.0, -1.0]]]))
    assert values.tolist() == [[34.0, 4.0, 1.0]]


def test_the_value_head_is_as_wide_as_the_hidden_states():
    model = PPOModel(build("opt:post-norm"))  # 16, of which its config says 32
    assert model.value_head.hidden.in_features == 16
    assert model(ids_of(1, 4))[1].shape == (1, 4)


def test_the_value_head_starts_at_zero_and_can_still_learn():
    head = ValueHead(16)
    hidden = torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(0))
    values = head(hidden)
    assert values.shape == (4, 5) and torch.equal(values, torch.zeros(4, 5))
    (values - 1).square().mean().backward()
    assert head.output.weight.grad.abs().max() > 0
    assert not torch.equal(head.hidden.weight, ValueHead(16).hidden.weight)  # random, not zero


def test_the_value_head_computes_in_float32_whatever_the_backbone_does():
    torch.manual_seed(0)
    head = ValueHead(64)
    nn.init.normal_(head.output.weight)
    hidden = torch.randn(3, 64).bfloat16()
    expected = head(hidden.float())
    with torch.autocast("cpu", torch.bfloat16):
        for given in (hidden, hidden.float()):
            values = head(given)
            assert values.dtype == torch.float32
            assert_close(values, expected, rtol=0, atol=0)
