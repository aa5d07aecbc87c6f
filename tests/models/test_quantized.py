"""QLoRA: layers in 4 and 8 bits compute what their dequantized weights do, everywhere."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from adapter_helpers import IDS, adapter_folder, says, stir
from safetensors.torch import save_file
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from rlmodules.models import (
    TINY,
    LoraConfig,
    ModelConfig,
    PolicyModel,
    load_backbone,
    load_model,
    prepare_given,
    quantized,
)
from rlmodules.models.embedded import tiny_model, tiny_tokenizer
from rlmodules.models.quantized import held_as, quantized_layers
from rlmodules.models.saving import plain_weights, save_language_model, save_plain
from rlmodules.quantization import bytes_of_linear

BITS = ("4bit", "8bit")
TIGHT = {"rtol": 1e-5, "atol": 1e-5}


def load(bits="4bit", name=TINY, r=4, dtype="float32", **settings):
    lora = LoraConfig(r=r) if r else LoraConfig()
    config = ModelConfig(name=str(name), dtype=dtype, quantization=bits, lora=lora, **settings)
    return load_model(config)


def dequantized(model):
    """The same as an ordinary model, adapters merged."""
    weights = plain_weights(model)
    plain = tiny_model()[0].to(next(iter(weights.values())).dtype)
    plain.load_state_dict({name: weights.pop(name) for name in list(weights)})
    return plain.eval()


# ------------------------------------------------------------------ what is computed


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantized_model_is_its_dequantized_weights(bits, dtype):
    model = stir(load(bits, dtype=dtype), 0.05)
    base = tiny_model()[0].state_dict()
    assert len(quantized_layers(model)) == 14 and held_as(model) == bits
    weights = plain_weights(load(bits))
    off = {name: (weights.pop(name) - w).norm() / w.norm() for name, w in base.items()}
    low, high = {"4bit": (0.05, 0.15), "8bit": (0.003, 0.015)}[bits]
    for name, distance in off.items():
        assert low < distance < high if "proj" in name else distance == 0
    close = TIGHT if dtype == "float32" else {"rtol": 0.02, "atol": 0.02}
    assert_close(says(model), says(dequantized(model)), **close)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of what is mapped")
@pytest.mark.parametrize("bits", BITS)
def test_a_quantized_model_does_not_hold_the_file_too(bits, tmp_path):
    """Embeddings and norms that stay pieces of it would: 257 MiB of SmolLM2's."""
    for part in tiny_model():
        part.save_pretrained(tmp_path)
    model, base = load(bits, tmp_path, dtype="float32"), tiny_model()[0]
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    wide = dict(model.base_model.model.named_parameters())
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(wide[name], base.get_parameter(name))
    assert model.get_output_embeddings().weight is wide["model.embed_tokens.weight"], "tied"


@pytest.mark.parametrize("bits", BITS)
def test_gradients_are_those_of_the_dequantized_model_before_and_after_sampling(bits):
    """bitsandbytes packs 4-bit weights when no gradient is asked for, for good, and the products
    with these have no gradient."""
    model = stir(load(bits), 0.05)
    plain = dequantized(model)
    embedded = [m.get_input_embeddings()(IDS).detach().requires_grad_() for m in (model, plain)]
    found = []
    for _ in range(2):
        says(model)
        model.train()
        loss = model(inputs_embeds=embedded[0], labels=IDS).loss
        found.append(torch.autograd.grad(loss, embedded[0])[0])
        adapters = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(model(input_ids=IDS, labels=IDS).loss, adapters)
        assert all(bool(gradient.any()) for gradient in gradients)
    expected = torch.autograd.grad(plain(inputs_embeds=embedded[1], labels=IDS).loss, embedded[1])
    assert torch.equal(*found)
    assert_close(found[0], expected[0], **TIGHT)


@pytest.mark.parametrize("bits", BITS)
def test_a_row_does_not_depend_on_its_company_nor_on_outliers_in_it(bits):
    layer = next(iter(quantized_layers(load(bits)).values()))
    x = torch.randn(3, 64)
    beside = torch.cat([x, 100 * torch.randn(2, 64)])
    assert_close(layer(beside)[:3], layer(x), **TIGHT)
    assert_close(layer(x), x @ quantized.wide_weight(layer).float().T, **TIGHT)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_are_packed(bits, dtype, recwarn):
    policy = PolicyModel(stir(load(bits, dtype=dtype), 0.05))
    policy.enable_packing()
    assert policy.packs == (not torch.cuda.is_available())
    assert [str(w.message) for w in recwarn if "packed" in str(w.message)] == []


@pytest.mark.parametrize("bits", BITS)
def test_layers_take_the_bytes_that_are_foretold(bits):
    layers = quantized_layers(load(bits)).values()
    for layer in layers:
        held = [layer.weight.data]
        if bits == "8bit":
            held += [layer.weight.SCB]
        else:
            state = layer.weight.quant_state
            held += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
        found = sum(tensor.nbytes for tensor in held)
        assert found == bytes_of_linear(layer.out_features, layer.in_features, bits, 4)
    assert len({(layer.out_features, layer.in_features) for layer in layers}) == 4
    assert bytes_of_linear(130, 70, "none", 2) == 2 * 130 * 70


def test_layers_that_are_transposed_until_they_are_quantized_come_back_so(tmp_path):
    torch.manual_seed(0)
    size = {"n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 128}
    GPT2LMHeadModel(GPT2Config(**size)).save_pretrained(tmp_path)
    for bits in BITS:
        model = stir(load(bits, tmp_path), 0.02)
        assert len(quantized_layers(model)) == 4
        save_plain(model, tmp_path / bits)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / bits)
        assert_close(says(loaded), says(model), **TIGHT)


@pytest.mark.parametrize("bits", BITS)
def test_the_embedding_and_the_vocabulary_projection_are_one_wide_tensor(bits):
    inner = load(bits).get_base_model()
    assert inner.lm_head.weight is inner.model.embed_tokens.weight
    assert inner.lm_head.weight.dtype == torch.float32
    body = load_backbone(ModelConfig(TINY, quantization=bits, lora=LoraConfig(r=2)))
    assert len(quantized_layers(body)) == 14


# -------------------------------------------------------------------------- adapters

VARIANTS = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "some layers": {"target_modules": ["q_proj", "down_proj"]},
    "embeddings": {"target_modules": ["embed_tokens", "v_proj"]},
}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_adapters_are_gone_on_with_and_exported_both_ways(tmp_path, bits, variant):
    folder = adapter_folder(tmp_path / "adapter", **VARIANTS[variant])
    model = load(bits, folder, r=0)
    expected = says(model)
    assert (expected - says(load(bits))).abs().max() > 0.05
    save_language_model(model, tiny_tokenizer(), tmp_path / "again")
    assert not (tmp_path / "again" / "model.safetensors").exists()
    assert_close(says(load(bits, tmp_path / "again", r=0)), expected, **TIGHT)
    save_language_model(model, tiny_tokenizer(), tmp_path / "merged", merge=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged/config.json").read_text())
    assert_close(says(merged), expected, rtol=1e-4, atol=1e-4)


# --------------------------------------------------------- what is decided, and where


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints of the tiny model: plain, damaged, in 4 bits, and as their config.json says."""
    root = tmp_path_factory.mktemp("checkpoints")
    model = tiny_model()[0]
    model.save_pretrained(root / "plain")
    tiny_tokenizer().save_pretrained(root / "plain")
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    LlamaForCausalLM.from_pretrained(
        root / "plain", quantization_config=settings, device_map={"": "cpu"}
    ).save_pretrained(root / "4bit")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    model.save_pretrained(root / "damaged")
    for method in ("gptq", "awq", "compressed-tensors"):
        tiny_model()[0].save_pretrained(root / method)
        path = root / method / "config.json"
        said = {"quantization_config": {"quant_method": method, "bits": 4}}
        path.write_text(json.dumps(json.loads(path.read_text()) | said))
    return root


REFUSED = {
    "no adapters": ({"r": 0}, r"model\.quantization=4bit holds weights.*model\.lora\.r=16"),
    "merge": ({"adapter": "merge"}, r"model\.adapter=merge with.*export\.merge=true"),
    "another name": ({"bits": "3bit"}, r"model\.quantization='3bit' must be one of"),
    "4bit as none": (
        {"name": "4bit", "bits": "none"},
        r"quantized as 4bit: set model\.quantization=4bit and train adapters",
    ),
    "4bit as 8bit": ({"name": "4bit", "bits": "8bit"}, r"set model\.quantization=4bit"),
    "damaged": ({"name": "damaged"}, r"hold NaN or infinity: model\.layers\.1\.mlp\.up_proj"),
    "damaged, 8bit": ({"name": "damaged", "bits": "8bit"}, r"hold NaN or infinity"),
    **{
        f"{method}, {bits}": ({"name": method, "bits": bits}, f"quantized as {method}: give the")
        for method in ("gptq", "awq", "compressed-tensors")
        for bits in ("none", "4bit")
    },
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_with_what_to_do(folders, case):
    settings, message = REFUSED[case]
    if "name" in settings:
        settings = settings | {"name": folders / settings["name"]}
    with pytest.raises(ValueError, match=message):
        load(**settings)


def test_a_checkpoint_in_4_bits_is_taken_as_it_is(folders):
    model = load("4bit", folders / "4bit")
    settings = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True,
                bnb_4bit_quant_type="nf4"), "device_map": {"": "cpu"}}  # fmt: skip
    theirs = LlamaForCausalLM.from_pretrained(folders / "plain", **settings)
    quantized.compute_dequantized(theirs)  # else in bfloat16 on CPUs
    assert held_as(model) == held_as(theirs) == "4bit"
    assert_close(says(model), says(theirs), **TIGHT)
    assert_close(says(model), says(dequantized(model)), **TIGHT)


def test_a_given_model_is_taken_as_it_is(folders):
    theirs = lambda: LlamaForCausalLM.from_pretrained(  # noqa: E731
        folders / "plain",
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        device_map={"": "cpu"},
    )
    model = stir(prepare_given(theirs(), ModelConfig(TINY, lora=LoraConfig(r=4))), 0.05)
    assert_close(says(model), says(dequantized(model)), **TIGHT)
    with pytest.raises(ValueError, match=r"held in 8bit, of which.*model\.lora\.r=16"):
        prepare_given(theirs(), ModelConfig(TINY))
    for given, held in ((theirs(), "8bit"), (tiny_model()[0], "none")):
        with pytest.raises(ValueError, match=f"model.quantization=4bit, but.*held as {held}"):
            prepare_given(given, ModelConfig(TINY, quantization="4bit", lora=LoraConfig(r=4)))
    merge = ModelConfig(TINY, adapter="merge")
    with pytest.raises(ValueError, match=r"held in 8bit, and the sum would be rounded"):
        prepare_given(model, merge)


def test_experts_stay_wide_and_are_named(tmp_path):
    size = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 128}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4}
    MixtralForCausalLM(MixtralConfig(**size, **heads)).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"4bit leaves .* model\.layers\.\*\.mlp\.experts\."):
        load("4bit", tmp_path)


def test_a_checkpoint_in_8_bit_floats_is_dequantized_and_not_quantized_anew(tmp_path):
    model = tiny_model()[0]
    model.save_pretrained(tmp_path)
    state, expected = {}, {}
    for name, weight in model.state_dict().items():
        state[name] = expected[name] = weight
        if "proj" in name:
            scale = weight.abs().max() / 448
            state[name] = (weight / scale).to(torch.float8_e4m3fn)
            state[f"{name}_scale_inv"] = scale.reshape(1, 1)
            expected[name] = state[name].float() * scale
    del state["lm_head.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    path = tmp_path / "config.json"
    said = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": said}))
    loaded = load("none", tmp_path, r=0).state_dict()
    for name, weight in expected.items():
        assert torch.equal(loaded[name], weight)
    with pytest.raises(ValueError, match="quantized as fp8: give the model"):
        load("4bit", tmp_path)


def test_an_adapter_that_trains_whole_layers_is_refused(tmp_path):
    folder = adapter_folder(tmp_path, modules_to_save=["up_proj"], target_modules=["q_proj"])
    with pytest.raises(ValueError, match=r"modules_to_save=up_proj.*leave model\.quantization out"):
        load("4bit", folder, r=0)


@pytest.mark.parametrize("bits", BITS)
def test_without_bitsandbytes_it_is_refused_before_anything_is_loaded(monkeypatch, bits):
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"{bits} needs bitsandbytes: pip install"):
        load(bits, "no/such-model")


def test_what_it_takes_is_known_without_torch():
    code = "import sys, rlmodules.quantization; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
