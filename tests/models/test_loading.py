"""One model config in, one model out: adapters, types of weights, dropout, and wrong names."""

import importlib.util

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from rlmodules.models import (
    TINY,
    LoraConfig,
    ModelConfig,
    load_model,
    load_tokenizer,
    loading,
    resolve_precision,
)
from rlmodules.models.embedded import tiny_model, tiny_tokenizer

IDS = torch.tensor([[3, 50, 7, 110, 9]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """A checkpoint in Hugging Face format."""
    path = tmp_path_factory.mktemp("checkpoint")
    model, tokenizer = tiny_model(seed=7)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def trainable(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


# ---------------------------------------------------------------------------- sources


def test_a_local_folder_gives_its_model_and_its_tokenizer(folder):
    config = ModelConfig(name=folder)
    model, tokenizer = load_model(config), load_tokenizer(config)
    assert_close(model(IDS).logits, tiny_model(seed=7)[0].eval()(IDS).logits)
    assert (model(IDS).logits - tiny_model(seed=0)[0](IDS).logits).abs().max() > 0.01
    assert tokenizer("héllo")["input_ids"] == tiny_tokenizer()("héllo")["input_ids"]
    assert tokenizer.chat_template == tiny_tokenizer().chat_template


def test_the_tiny_model_is_the_same_every_time_and_leaves_torchs_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = load_model(ModelConfig(name=TINY)), load_model(ModelConfig(name=TINY))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first(IDS).logits, second(IDS).logits)
    assert load_tokenizer(ModelConfig(name=TINY)).get_vocab() == tiny_tokenizer().get_vocab()


def test_a_missing_pad_token_becomes_the_end_token(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    tiny_model()[0].config.save_pretrained(tmp_path)
    loaded = load_tokenizer(ModelConfig(name=str(tmp_path)))
    assert loaded.pad_token == loaded.eos_token == "<eos>"


def test_a_pad_token_of_its_own_is_kept(folder):
    assert load_tokenizer(ModelConfig(name=folder)).pad_token == "<pad>"


# --------------------------------------------------------------------------- adapters


def test_without_adapters_every_weight_is_trained(folder):
    for name in (TINY, folder):
        model = load_model(ModelConfig(name=name))
        assert trainable(model) == {parameter for parameter, _ in model.named_parameters()}


def test_with_adapters_only_they_are_trained_in_every_layer(folder):
    for name in (TINY, folder):
        model = load_model(ModelConfig(name=name, lora=LoraConfig(r=4)))
        names = trainable(model)
        assert names and all("lora_A" in name or "lora_B" in name for name in names)
        # 7 linear layers in each of 2 blocks, with two matrices each; not the vocabulary's
        assert len(names) == 2 * 7 * 2
        assert not any("lm_head" in name or "embed" in name for name in names)


def test_fresh_adapters_change_nothing_and_scale_as_told():
    plain = tiny_model()[0].eval()(IDS).logits
    models = []
    for alpha in (8, 16):
        lora = LoraConfig(r=4, alpha=alpha, target_modules=["q_proj", "o_proj"])
        model = load_model(ModelConfig(name=TINY, lora=lora)).eval()
        assert_close(model(IDS).logits, plain)
        assert {name.split(".")[-4] for name in trainable(model)} == {"q_proj", "o_proj"}
        layer = model.get_base_model().model.layers[0].self_attn.q_proj
        assert layer.lora_A["default"].weight.shape[0] == 4
        models.append(layer.scaling["default"])
    assert models == [2.0, 4.0]


def test_adapter_dropout_is_the_configured_one():
    for rate in (0.0, 0.25):
        model = load_model(ModelConfig(name=TINY, lora=LoraConfig(r=4, dropout=rate)))
        rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
        assert rates == ({rate} if rate else set())


def test_target_modules_that_fit_no_layer_are_refused_by_name():
    lora = LoraConfig(r=4, target_modules=["no_such_layer"])
    with pytest.raises(ValueError, match=r"model\.lora\.target_modules=\['no_such_layer'\]"):
        load_model(ModelConfig(name=TINY, lora=lora))


# ---------------------------------------------------------------------- types, precision


def dtypes(model: nn.Module, trained: bool) -> set[torch.dtype]:
    return {p.dtype for p in model.parameters() if p.requires_grad is trained}


@pytest.mark.parametrize("native", [False, True])
def test_auto_keeps_trained_weights_in_float32_and_frozen_ones_in_what_is_fast(
    folder, monkeypatch, native
):
    monkeypatch.setattr(loading, "has_native_bf16", lambda: native)
    assert dtypes(load_model(ModelConfig(name=folder)), trained=True) == {torch.float32}
    adapted = load_model(ModelConfig(name=folder, lora=LoraConfig(r=4)))
    assert dtypes(adapted, trained=True) == {torch.float32}
    assert dtypes(adapted, trained=False) == {torch.bfloat16 if native else torch.float32}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_explicit_dtype_is_taken_wherever_the_model_comes_from(folder, dtype):
    for name in (TINY, folder):
        model = load_model(ModelConfig(name=name, dtype=dtype))
        assert dtypes(model, trained=True) == {getattr(torch, dtype)}
        adapted = load_model(ModelConfig(name=name, dtype=dtype, lora=LoraConfig(r=4)))
        assert dtypes(adapted, trained=False) == {getattr(torch, dtype)}
        assert dtypes(adapted, trained=True) == {torch.float32}


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_precision_is_bf16_only_where_it_is_native(monkeypatch, native, expected):
    monkeypatch.setattr(loading, "has_native_bf16", lambda: native)
    assert resolve_precision("auto") == expected
    for given in ("32-true", "bf16-mixed", "16-mixed", "bf16-true"):
        assert resolve_precision(given) == given


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_asked_for_is_the_one_used(folder, attention):
    for name in (TINY, folder):
        model = load_model(ModelConfig(name=name, attn_implementation=attention))
        assert model.config._attn_implementation == attention


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="it is there")
def test_an_attention_that_is_not_installed_is_refused_by_name(folder):
    for name in (TINY, folder):
        with pytest.raises(ValueError, match=r"model\.attn_implementation='flash_attention_2'"):
            load_model(ModelConfig(name=name, attn_implementation="flash_attention_2"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto means eager on CPUs only")
def test_auto_attention_is_eager_on_cpus(folder):
    for name in (TINY, folder):
        assert load_model(ModelConfig(name=name)).config._attn_implementation == "eager"


def test_gradient_checkpointing_recomputes_and_gives_the_same_gradients(folder):
    gradients = []
    for checkpointing in (False, True):
        for lora in (LoraConfig(), LoraConfig(r=4)):
            config = ModelConfig(name=folder, lora=lora, gradient_checkpointing=checkpointing)
            torch.manual_seed(0)
            model = load_model(config).train()
            layer = (model.get_base_model() if lora.r else model).model.layers[1].mlp.gate_proj
            calls = []
            layer.register_forward_hook(lambda *_, calls=calls: calls.append(1))
            model(input_ids=IDS, labels=IDS).loss.backward()
            assert len(calls) == (2 if checkpointing else 1)
            gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for plain, recomputed in ((0, 2), (1, 3)):
        assert gradients[plain].keys() == gradients[recomputed].keys()
        for name, gradient in gradients[plain].items():
            assert_close(gradients[recomputed][name], gradient, rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------------- dropout

GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
OPT = {"vocab_size": 60, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2}
OPT |= {"num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 32}

FALCON = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def with_attention_dropout() -> LlamaForCausalLM:
    config = tiny_model()[0].config
    config.attention_dropout = 0.5
    return LlamaForCausalLM(config)


DROPPERS = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(**GPT2, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    ),
    "opt": lambda: OPTForCausalLM(OPTConfig(**OPT, dropout=0.5, attention_dropout=0.5)),
    "llama with attention dropout": with_attention_dropout,
    "falcon": lambda: FalconForCausalLM(
        FalconConfig(**FALCON, hidden_dropout=0.5, attention_dropout=0.5)
    ),
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", DROPPERS)
def test_no_dropout_is_left_in_train_mode(tmp_path, name, attention):
    built = DROPPERS[name]().train()
    ids = IDS.clamp(max=59)
    assert not torch.equal(built(ids).logits, built(ids).logits)  # it drops before
    built.save_pretrained(tmp_path)
    model = load_model(ModelConfig(name=str(tmp_path), attn_implementation=attention)).train()
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert_close(model(ids).logits, built.eval()(ids).logits, rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: ModelConfig(dtype="fp8"), r"model\.dtype='fp8'"),
        (lambda: ModelConfig(attn_implementation="fast"), r"model\.attn_implementation='fast'"),
        (lambda: ModelConfig(name="/nowhere/model.gguf"), r"model\.name='/nowhere/model\.gguf'"),
        (lambda: LoraConfig(r=-1), r"model\.lora\.r=-1"),
        (lambda: LoraConfig(dropout=1.0), r"model\.lora\.dropout=1\.0"),
        (lambda: LoraConfig(dropout=-0.1), r"model\.lora\.dropout=-0\.1"),
    ],
)
def test_an_impossible_value_is_refused_by_its_field(make, field):
    with pytest.raises(ValueError, match=field):
        make()


def nothing_there(path, folder):
    return path / "nothing"


def an_empty_folder(path, folder):
    return path


def an_encoder_decoder(path, folder):
    config = T5Config(vocab_size=30, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(path)
    return path


def a_download_cut_short(path, folder):
    model, _ = tiny_model()
    model.save_pretrained(path)
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    return path


@pytest.mark.parametrize(
    "spoil", [nothing_there, an_empty_folder, an_encoder_decoder, a_download_cut_short]
)
def test_what_is_no_loadable_language_model_is_refused_with_its_name_and_what_may_stand_there(
    tmp_path, folder, spoil
):
    name = str(spoil(tmp_path, folder))
    with pytest.raises(ValueError, match=rf"model\.name='{name}'.*local folder.*random:tiny"):
        load_model(ModelConfig(name=name))


@pytest.mark.parametrize("spoil", [nothing_there, an_empty_folder])
def test_a_name_without_a_tokenizer_is_refused_by_name(tmp_path, folder, spoil):
    name = str(spoil(tmp_path, folder))
    with pytest.raises(ValueError, match=rf"model\.name='{name}'"):
        load_tokenizer(ModelConfig(name=name))


# ----------------------------------------------------------- ModelConfig.of


def test_a_config_is_made_of_a_name_a_checkpoints_dict_or_itself():
    assert ModelConfig.of(None, TINY, given=False) == ModelConfig(name=TINY)
    config = ModelConfig(name=TINY, dtype="bfloat16", lora=LoraConfig(r=4, alpha=8))
    assert ModelConfig.of(config, TINY, given=False) is config
    as_dict = {"name": TINY, "dtype": "bfloat16", "lora": {"r": 4, "alpha": 8}}
    assert ModelConfig.of(as_dict, TINY, given=False) == config


def test_two_names_for_one_model_are_refused_unless_the_model_itself_is_given():
    config = ModelConfig(name=TINY)
    with pytest.raises(ValueError, match=r"algo\.model_name='other' and model\.name='random:tiny'"):
        ModelConfig.of(config, "other", given=False)
    assert ModelConfig.of(config, "other", given=True) is config
