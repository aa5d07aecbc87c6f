"""Adapters that were trained before: recognised, gone on with, merged, remembered as they came."""

import copy
import json
import shutil

import pytest
import torch
from adapter_helpers import adapter_folder, says, stir, trained
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, PromptTuningConfig, get_peft_model
from torch import nn
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from rlmodules.models import (
    LoraConfig,
    ModelConfig,
    PolicyModel,
    Reference,
    load_backbone,
    load_model,
    load_tokenizer,
)
from rlmodules.models.embedded import EMBEDDED, tiny_model, tiny_tokenizer
from rlmodules.models.saved_adapters import saved_adapter

TIGHT = {"rtol": 1e-5, "atol": 1e-5}


def load(name, **settings):
    return load_model(ModelConfig(name=str(name), dtype="float32", **settings))


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


VARIANTS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "some layers": {"target_modules": ["q_proj", "down_proj"]},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}},
    "embeddings": {"target_modules": ["embed_tokens", "v_proj"]},
    "a whole module": {"modules_to_save": ["up_proj"], "target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_trained_adapter_is_gone_on_with_or_merged_as_peft_would(tmp_path, variant):
    folder = adapter_folder(tmp_path, **VARIANTS[variant])
    theirs = PeftModel.from_pretrained(tiny_model()[0], folder)
    expected = says(theirs)
    assert (expected - says(tiny_model()[0])).abs().max() > 0.1
    goes_on = load(folder)
    assert_close(says(goes_on), expected, **TIGHT)
    names = {n for n, _ in goes_on.named_parameters() if ".default." in n or n.endswith(".default")}
    assert trainable(goes_on) == names and names
    merged = load(folder, adapter="merge")
    assert not isinstance(merged, PeftModel)
    assert trainable(merged) == {name for name, _ in merged.named_parameters()}
    assert_close(says(merged), expected, **TIGHT)
    if variant != "embeddings":  # which PEFT merges into the tied projection too
        assert_close(says(merged), says(theirs.merge_and_unload()), **TIGHT)
    anew = load(folder, adapter="merge", lora=LoraConfig(r=2))
    assert_close(says(anew), expected, **TIGHT)
    assert all("lora_" in name for name in trainable(anew))


def test_the_transformer_alone_takes_the_adapter_of_the_whole_model(tmp_path):
    for settings in (VARIANTS["plain"], VARIANTS["patterns"], VARIANTS["a whole module"]):
        folder = adapter_folder(tmp_path / str(len(settings)), **settings)
        theirs = PeftModel.from_pretrained(tiny_model()[0], folder).get_base_model().model
        for adapter in ("continue", "merge"):
            body = load_backbone(ModelConfig(name=folder, adapter=adapter, dtype="float32"))
            assert_close(says(body), says(theirs), **TIGHT)


@pytest.mark.parametrize("kind", ["gpt2", "mixtral"])
def test_other_architectures_too(tmp_path, kind):
    small = {"vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=120, n_embd=32, n_layer=2, n_head=4))
        settings = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    else:
        model = MixtralForCausalLM(
            MixtralConfig(**small, intermediate_size=32, num_key_value_heads=2, num_local_experts=2)
        )
        settings = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}
    model.save_pretrained(tmp_path / "base")
    folder = adapter_folder(tmp_path / "adapter", model, str(tmp_path / "base"), **settings)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = says(PeftModel.from_pretrained(base, folder))
    assert_close(says(load(folder)), theirs, **TIGHT)
    assert_close(says(load(folder, adapter="merge")), theirs, **TIGHT)


# ------------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        (LoraConfig(), None),
        (LoraConfig(r=4, alpha=8), None),
        (LoraConfig(r=8, alpha=8), "model.lora.r=8, but the adapter .* has 4"),
        (LoraConfig(r=4), "model.lora.alpha=32, but the adapter .* has 8"),
        (LoraConfig(r=4, alpha=8, target_modules=["q_proj"]), r"model.lora.target_modules=\['q_pr"),
        (LoraConfig(alpha=64), "model.lora.r=0|model.lora.alpha=64"),
    ],
)
def test_going_on_with_other_adapters_than_these_is_refused(tmp_path, lora, said):
    folder = adapter_folder(tmp_path)
    if said is None:
        assert trainable(load(folder, lora=lora))
        return
    with pytest.raises(ValueError, match=f"{said}.*model.adapter=merge"):
        load(folder, lora=lora)


def test_the_same_few_layers_may_be_named(tmp_path):
    folder = adapter_folder(tmp_path, target_modules=["q_proj", "v_proj"])
    same = LoraConfig(r=4, alpha=8, target_modules=["v_proj", "q_proj"])
    assert trainable(load(folder, lora=same))
    with pytest.raises(ValueError, match=r"model.lora.target_modules='all-linear'"):
        load(folder, lora=LoraConfig(r=4, alpha=8))


def test_there_must_be_something_to_merge():
    with pytest.raises(
        ValueError, match=r"model.adapter=merge, but model.name='random:tiny' is no"
    ):
        load("random:tiny", adapter="merge")
    with pytest.raises(ValueError, match=r"model.adapter='both'"):
        ModelConfig(adapter="both")


# --------------------------------------------------------------------------------- the base


def test_the_base_is_found_by_a_path_that_is_relative_to_the_adapter(tmp_path, monkeypatch):
    tiny_model(seed=5)[0].save_pretrained(tmp_path / "base")
    for base in ("../base", str(tmp_path / "base")):
        folder = adapter_folder(tmp_path / "adapter", tiny_model(seed=5)[0], base)
        assert saved_adapter(folder).base.endswith("base")
        expected = says(PeftModel.from_pretrained(tiny_model(seed=5)[0], folder))
        assert_close(says(load(folder)), expected, **TIGHT)
    monkeypatch.chdir(tmp_path)
    folder = adapter_folder(tmp_path / "adapter", tiny_model(seed=5)[0], "base")
    assert saved_adapter("adapter").base == str(tmp_path / "base")


def test_a_base_in_the_cache_of_an_earlier_version_is_the_embedded_model(tmp_path):
    base = "/home/someone/.cache/rlmodules/smollm2-135m-instruct-bf16"
    assert saved_adapter(adapter_folder(tmp_path, base=base)).base == EMBEDDED


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("/gone/base", "is on the model '/gone/base', which is not there"),
        ("../gone", r"is on the model '\.\./gone', which is not there"),
        ("someone/unreachable", "is an adapter on 'someone/unreachable', and that could not be"),
        (None, "names no base"),
        ("ADAPTER", "which is an adapter itself"),
    ],
)
def test_a_base_that_is_not_there_is_named_beside_the_adapter(tmp_path, base, said):
    if base == "ADAPTER":
        base = adapter_folder(tmp_path / "below")
    folder = adapter_folder(tmp_path / "adapter", base=base)
    for use in (load_model, load_backbone, load_tokenizer):
        with pytest.raises(ValueError) as error:
            use(ModelConfig(name=folder))
        assert folder in str(error.value)
    with pytest.raises(ValueError, match=said):
        load(folder)


def no_weights(folder):
    (folder / "adapter_model.safetensors").unlink()


def cut_short(folder):
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])


def of_a_wider_model(folder):
    config = copy.deepcopy(tiny_model()[0].config)
    config.hidden_size = 32
    adapter_folder(folder, type(tiny_model()[0])(config))


def of_a_deeper_model(folder):
    config = copy.deepcopy(tiny_model()[0].config)
    config.num_hidden_layers = 3
    adapter_folder(folder, type(tiny_model()[0])(config), target_modules=["q_proj"])


def with_a_layer_less(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "adapter_model.safetensors")
    weights = {name: w for name, w in weights.items() if "layers.1.mlp.up_proj" not in name}
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})


def beside_a_model(folder):
    tiny_model()[0].save_pretrained(folder)


def of_another_kind(folder):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = get_peft_model(tiny_model()[0], config)
    model.peft_config["default"].base_model_name_or_path = "random:tiny"
    model.save_pretrained(folder)


def no_config(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"r": "four"}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_weights, "weights could not be loaded"),
        (cut_short, "weights could not be loaded"),
        (of_a_wider_model, "does not fit its base 'random:tiny'"),
        (of_a_deeper_model, "no place for .*layers.2"),
        (with_a_layer_less, "no number for .*layers.1.mlp.up_proj"),
        (beside_a_model, "an adapter and a whole model"),
        (of_another_kind, "an adapter of type PROMPT_TUNING, and LoRA is"),
        (no_config, "adapter_config.json"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_name(tmp_path, spoil, said):
    folder = adapter_folder(tmp_path / "adapter")
    spoil(tmp_path / "adapter")
    with pytest.raises(ValueError, match=said) as error:
        load(folder)
    assert folder in str(error.value)


# ----------------------------------------------------------------------------- the tokenizer


def test_tokenizer_and_template_are_the_adapters_or_else_the_bases(tmp_path):
    model, tokenizer = tiny_model()
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    folder = adapter_folder(tmp_path / "adapter", model, str(tmp_path / "base"))
    assert load_tokenizer(ModelConfig(name=folder)).chat_template == tokenizer.chat_template
    tokenizer.add_tokens(["<new>"])
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    own = load_tokenizer(ModelConfig(name=folder))
    assert "<new>" in own.get_vocab() and own.chat_template == tiny_tokenizer().chat_template
    tokenizer.chat_template = "{{ 'mine' }}"
    tokenizer.save_pretrained(folder)
    assert load_tokenizer(ModelConfig(name=folder)).chat_template == "{{ 'mine' }}"


# ----------------------------------------------------------------------------- the reference


def dora():
    return trained(use_dora=True)


def with_a_whole_module():
    return trained(modules_to_save=["up_proj"], target_modules=["q_proj"])


def of_another_name():
    return stir(
        get_peft_model(tiny_model()[0], PeftLoraConfig(r=4, target_modules=["q_proj"]), "x")
    )


def in_half_precision():
    half = tiny_model()[0].bfloat16()
    lora = PeftLoraConfig(r=4, target_modules=["q_proj"])
    return stir(get_peft_model(half, lora, autocast_adapter_dtype=False))


def with_biases():
    return trained(bias="lora_only")


def with_a_norm():
    model = trained()
    model.get_base_model().model.norm.requires_grad_(True)
    return stir(model)


def fresh():
    return get_peft_model(tiny_model()[0], PeftLoraConfig(r=4, target_modules=["q_proj"]))


def whole():
    return tiny_model()[0]


STARTS = [trained, dora, with_a_whole_module, of_another_name, in_half_precision, with_biases]
STARTS += [with_a_norm, fresh, whole]


@pytest.mark.parametrize("start", STARTS, ids=lambda f: f.__name__)
def test_the_reference_is_the_policy_as_it_starts_and_stays_it(start):
    policy = PolicyModel(start())
    was, trains = says(policy.base_model), trainable(policy.base_model)
    state, random = copy.deepcopy(policy.state_dict()), torch.get_rng_state()
    reference = Reference(policy)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(policy.state_dict()[name], weight) for name, weight in state.items())
    stir(policy.base_model)
    now = says(policy.base_model)
    assert (now - was).abs().max() > 1e-2
    for _ in range(2):
        with reference.of(policy) as referred:
            assert torch.equal(says(referred.base_model), was)
        assert torch.equal(says(policy.base_model), now)
        assert trainable(policy.base_model) == trains
    whole_copy = reference.model is not None
    assert whole_copy == (start in (whole, with_biases, with_a_norm))
    assert (reference.adapter is None) == (whole_copy or start is fresh)


# --------------------------------------------------------------------------- a given model


def held_by_transformers(folder):
    model = tiny_model()[0]
    model.load_adapter(folder)
    return model


def not_trainable(folder):
    return PeftModel.from_pretrained(tiny_model()[0], folder)


def merged_for_now(folder):
    model = trained()
    model.merge_adapter()
    return model


def prompts(folder):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    return get_peft_model(tiny_model()[0], config)


def frozen(folder):
    return tiny_model()[0].requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (held_by_transformers, "no PeftModel holds them"),
        (not_trainable, "is_trainable=True"),
        (merged_for_now, "unmerge_adapter"),
        (prompts, "one LoRA adapter can be trained"),
        (frozen, "no weight of the given LlamaForCausalLM is trained"),
    ],
)
def test_a_given_model_that_would_not_be_trained_as_it_looks_is_refused(tmp_path, make, said):
    from rlmodules.models import prepare_given

    model = make(adapter_folder(tmp_path))
    with pytest.raises(ValueError, match=said):
        prepare_given(model, ModelConfig())


def test_a_given_model_is_adapted_as_the_config_says():
    from rlmodules.models import prepare_given

    model = trained()
    was = says(model)
    with pytest.raises(ValueError, match=r"model.lora.r=4: .* has adapters already"):
        prepare_given(model, ModelConfig(lora=LoraConfig(r=4)))
    with pytest.raises(ValueError, match="is no PeftModel"):
        prepare_given(whole(), ModelConfig(adapter="merge"))
    merged = prepare_given(model, ModelConfig(adapter="merge", lora=LoraConfig(r=2)))
    assert_close(says(merged), was, **TIGHT)
    assert len([m for m in merged.modules() if isinstance(m, nn.Dropout)]) == 0


def test_an_adapter_is_found_in_the_local_cache_of_a_hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    repository = tmp_path / "models--someone--adapter"
    adapter_folder(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    for module in (constants, "transformers.utils.hub.constants"):
        monkeypatch.setattr(*((module, "HF_HUB_CACHE") if module is constants else (
            f"{module}.HF_HUB_CACHE",)), str(tmp_path))  # fmt: skip
    assert saved_adapter("someone/adapter").base == "random:tiny"
    assert_close(says(load("someone/adapter")), says(trained()), **TIGHT)
    shutil.rmtree(repository)
    assert saved_adapter("someone/adapter") is None
