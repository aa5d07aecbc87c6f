"""What is written: merged in float32, rounded once, shard by shard, named for others, readable."""

import json
import os
import weakref

import pytest
import torch
from adapter_helpers import adapter_folder, says, stir, trained
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from rlmodules import PPO
from rlmodules.models import LoraConfig, ModelConfig, PPOModel, embedded, load_model, saving
from rlmodules.models.embedded import EMBEDDED, embedded_cache, tiny_model, tiny_tokenizer
from rlmodules.models.saved_adapters import public_name, saved_adapter
from rlmodules.models.saving import load_value_head, save_language_model, save_value_head

TOKENIZER = tiny_tokenizer()


def save(model, folder, **options):
    save_language_model(model, TOKENIZER, folder, **options)
    return folder


def state_of(folder):
    return {n: w for path in folder.glob("model*.safetensors") for n, w in load_file(path).items()}


def mixtral():
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(vocab_size=120, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
                      num_attention_heads=4, num_key_value_heads=2, num_local_experts=2)
    )  # fmt: skip


CASES = {
    "plain": trained,
    "dora": lambda: trained(use_dora=True),
    "embeddings": lambda: trained(target_modules=["embed_tokens", "q_proj"]),
    "whole modules": lambda: trained(target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    "experts": lambda: trained(
        mixtral(), target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"]
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_merged_model_says_what_the_adapted_one_says_and_that_stays_what_it_is(tmp_path, case):
    model = CASES[case]()
    expected = says(model)
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    save(model, tmp_path, merge=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert_close(says(loaded), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(says(model), expected)
    assert all(torch.equal(state[name], weight) for name, weight in model.state_dict().items())
    assert not (tmp_path / "adapter_config.json").exists()


def test_merging_is_pefts_in_float32():
    model = trained()
    merged = saving.plain_weights(model)
    theirs = trained().merge_and_unload().state_dict()
    ours = {name: merged.pop(name) for name in list(merged)}
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight)


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16", "float32"])
def test_weights_are_rounded_once_to_the_type_that_is_asked_for(tmp_path, dtype):
    """Of frozen bf16 weights, with float32 adapters."""
    model = trained(tiny_model()[0].bfloat16())
    exact = trained(tiny_model()[0].bfloat16())
    exact = exact.float().merge_and_unload().state_dict()
    save(model, tmp_path, merge=True, dtype=dtype)
    wanted = getattr(torch, dtype or "bfloat16")
    found = state_of(tmp_path)
    for name, weight in found.items():
        assert weight.dtype == wanted
        assert torch.equal(weight, exact[name].to(wanted)), name
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(wanted)[6:]
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == wanted


@pytest.mark.parametrize("merge", [None, False])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_other_exports_keep_or_take_a_type_too(tmp_path, merge, dtype):
    for name, model in (("whole", tiny_model()[0]), ("adapter", load_model(
        ModelConfig(name="random:tiny", lora=LoraConfig(r=4))))):  # fmt: skip
        before = next(model.parameters()).dtype
        save(model, tmp_path / name, merge=merge, dtype=dtype)
        (path,) = (tmp_path / name).glob("*.safetensors")
        assert {w.dtype for w in load_file(path).values()} == {getattr(torch, dtype or "float32")}
        assert next(model.parameters()).dtype == before
    with pytest.raises(ValueError, match=r"export.dtype='fp8'"):
        save(tiny_model()[0], tmp_path, dtype="fp8")


def test_no_more_than_one_shard_is_made_at_a_time(tmp_path, monkeypatch):
    """Of a model of 29 MB whose largest layer has 2."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=2048,
        num_hidden_layers=4,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    model = trained(LlamaForCausalLM(config))
    monkeypatch.setattr(saving, "SHARD", "4MB")
    made, most = [], []
    for owner, name in ((saving.Weights, "pop"), (saving, "merged_layer")):
        original = getattr(owner, name)

        def counted(*arguments, make=original):
            found = make(*arguments)
            parts = found.parameters() if isinstance(found, nn.Module) else [found]
            made.extend(weakref.ref(part) for part in parts)
            alive = {w.data_ptr(): w.nbytes for w in (ref() for ref in made) if w is not None}
            most.append(sum(alive.values()))
            return found

        monkeypatch.setattr(owner, name, counted)
    save(model, tmp_path, merge=True)
    layer = 2048 * 256 * 4
    assert len(list(tmp_path.glob("model-*.safetensors"))) >= 8
    assert sum(w.nbytes for w in state_of(tmp_path).values()) > 29e6
    assert 4e6 < max(most) < 4.2e6 + layer


# --------------------------------------------------------------------- the name of the base


def test_the_base_of_an_export_is_what_another_machine_can_load(tmp_path, monkeypatch):
    folder = tmp_path / "base"
    tiny_model()[0].save_pretrained(folder)
    cache = tmp_path / "cache"
    monkeypatch.setattr(embedded, "user_cache_path", lambda name: cache / name)
    tiny_model()[0].save_pretrained(embedded_cache())
    snapshot = tmp_path / "hub" / "models--some-one--base" / "snapshots" / "abc"
    tiny_model()[0].save_pretrained(snapshot)
    TOKENIZER.save_pretrained(folder)
    monkeypatch.chdir(tmp_path)
    for name, expected in (
        ("random:tiny", "random:tiny"),
        (EMBEDDED, EMBEDDED),
        (str(embedded_cache()), EMBEDDED),
        ("base", str(folder)),
        (str(folder), str(folder)),
        (str(snapshot), "some-one/base"),
    ):
        model = load_model(ModelConfig(name=name, dtype="float32", lora=LoraConfig(r=4)))
        save(stir(model), tmp_path / "out")
        config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == expected
        assert config["revision"] == ("abc" if expected == "some-one/base" else None)
        assert str(cache) not in json.dumps(config)
        if expected != "some-one/base":
            assert_close(says(load_model(ModelConfig(name="out", dtype="float32"))), says(model))
    assert public_name("google/gemma-2-2b", "v1") == ("google/gemma-2-2b", "v1")


def test_an_adapter_that_was_gone_on_with_is_written_as_it_was_read(tmp_path):
    folder = adapter_folder(tmp_path / "one")
    model = stir(load_model(ModelConfig(name=folder)))
    save(model, tmp_path / "two")
    assert saved_adapter(str(tmp_path / "two")).base == "random:tiny"
    theirs = PeftModel.from_pretrained(tiny_model()[0], tmp_path / "two")
    assert_close(says(theirs), says(model), rtol=1e-5, atol=1e-5)


def test_an_adapter_of_another_name_is_written_where_it_is_looked_for(tmp_path):
    lora = PeftLoraConfig(r=4, target_modules=["q_proj"], base_model_name_or_path="random:tiny")
    model = get_peft_model(tiny_model()[0], lora, "mine")
    model.peft_config["mine"].base_model_name_or_path = "random:tiny"
    save(stir(model), tmp_path)
    assert_close(says(load_model(ModelConfig(name=str(tmp_path)))), says(model))


def test_adapters_on_a_merged_base_are_written_as_the_whole_model(tmp_path):
    folder = adapter_folder(tmp_path / "one")
    settings = {"adapter": "merge", "lora": LoraConfig(r=2), "dtype": "float32"}
    model = stir(load_model(ModelConfig(name=folder, **settings)))
    save(model, tmp_path / "two")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "two")
    assert_close(says(loaded), says(model), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"export.merge=false: the adapters are on"):
        save(model, tmp_path / "three", merge=False)
    with pytest.raises(ValueError, match=r"export.merge=true: there are no adapters"):
        saving.require_exportable(tiny_model()[0], True, None)


# ------------------------------------------------------------------------------------- files


def test_a_value_head_is_apart_and_is_found_where_earlier_versions_had_it(tmp_path):
    model = stir(PPOModel(tiny_model()[0]))
    save_value_head(model.value_head, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    old = tmp_path / "old"
    old.mkdir()
    save_file(model.value_head.state_dict(), old / "value_head.safetensors")
    for folder in (tmp_path, old):
        fresh = PPOModel(tiny_model()[0])
        load_value_head(fresh.value_head, folder)
        for name, weight in model.value_head.state_dict().items():
            assert torch.equal(fresh.value_head.state_dict()[name], weight)
    with pytest.raises(FileNotFoundError, match="no PPO wrote"):
        load_value_head(model.value_head, tmp_path / "value_head" / "none")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_have_the_modes_that_the_umask_gives(tmp_path, umask, mode):
    from helpers import config

    before = os.umask(umask)
    try:
        for name, lora in (("whole", 0), ("adapter", 4)):
            module = PPO(config(), ModelConfig(name="random:tiny", lora=LoraConfig(r=lora)))
            module.export(tmp_path / name)
            module.export(tmp_path / f"{name}-half", dtype="bfloat16")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20 and any("value_head" in path.name for path in files)
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}
