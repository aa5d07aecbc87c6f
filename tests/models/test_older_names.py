"""Exported folders say what earlier readers look for, and transformers reads what it read before.

Whether such a reader then computes the same is tried with a real one (``tests/older``).
"""

import json

import architectures
import pytest
from transformers import AutoConfig, AutoTokenizer

from rlmodules import RewardModel, RewardModelConfig
from rlmodules.models import older_names
from rlmodules.models.embedded import tiny_model
from rlmodules.models.older_names import tokenizer_with_older_names, with_older_names
from rlmodules.models.saving import save_language_model

PLAIN = {"rope_type": "default", "rope_theta": 5e4}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4}
TWO = {"full_attention": LINEAR, "sliding_attention": {"rope_type": "default", "rope_theta": 7e3}}
BY_NAME = {
    ("llama", "plain"): (PLAIN, {"rope_theta": 5e4, "rope_scaling": None}),
    ("llama", "linear"): (
        LINEAR,
        {"rope_theta": 5e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ),
    ("phi", "part"): (
        PLAIN | {"partial_rotary_factor": 0.25},
        {"rope_theta": 5e4, "rope_scaling": None, "partial_rotary_factor": 0.25},
    ),
    ("gpt_neox", "part"): (
        PLAIN | {"partial_rotary_factor": 0.5},
        {"rotary_emb_base": 5e4, "rotary_pct": 0.5, "rope_scaling": None},
    ),
    ("gemma3_text", "two"): (
        TWO,
        {
            "rope_theta": 5e4,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "rope_local_base_freq": 7e3,
        },
    ),
    ("modernbert-decoder", "two"): (
        {name: PLAIN | {"rope_theta": 1e3 * n} for n, name in enumerate(TWO, 1)},
        {"global_rope_theta": 1e3, "local_rope_theta": 2e3, "rope_scaling": None},
    ),
}


NEWER = ("beam", "cohere_compass_text", "dots3_note_text", "gemma4_text:moe", "gemma4_text:shared",
         "gemma4_unified",
         "laguna", "lfm3", "mellum", "mimo_v2_flash", "zaya")  # fmt: skip
"""Whose positions no earlier name says: readers of those have no such model."""


def written(kind, rope):
    """A ``config.json`` as transformers writes it."""
    return json.loads(AutoConfig.for_model(kind, rope_parameters=rope).to_json_string())


@pytest.mark.parametrize(("case", "content"), BY_NAME.items(), ids=["-".join(c) for c in BY_NAME])
def test_positions_have_the_names_by_which_they_went(case, content):
    rope, names = content
    before = written(case[0], rope)
    config = with_older_names(before)
    assert {name: config[name] for name in names} == names
    assert config["rope_parameters"] == before["rope_parameters"]
    assert before == written(case[0], rope)  # as it was


def test_a_config_in_a_config_and_a_renamed_number_are_written_too():
    inside = AutoConfig.for_model("llava", text_config={"model_type": "llama"})
    config = with_older_names(json.loads(inside.to_json_string()))
    assert config["text_config"]["rope_theta"] == 10_000.0
    config = with_older_names(written("qwen3_moe", PLAIN) | {"dtype": "bfloat16"})
    assert config["num_experts"] == config["num_local_experts"] == 128
    assert config["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("name", sorted({*architectures.VARIANTS, *NEWER}))
def test_transformers_reads_what_it_read_before(name, tmp_path):
    architectures.config_of(name).save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path).to_dict()
    path = tmp_path / "config.json"
    both = with_older_names(json.loads(path.read_text()))
    path.write_text(json.dumps(both))
    after = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert {name: after[name] for name in before} == before
    if "rope_theta" in json.dumps(before.get("rope_parameters")) and name not in NEWER:
        assert {"rope_theta", "rotary_emb_base"} & set(both)


def test_where_both_would_be_read_otherwise_nothing_is_written(monkeypatch):
    config = written("llama", PLAIN)
    for other in ({"rope_parameters": LINEAR}, {"hidden_size": 7}):  # another, and refused
        monkeypatch.setattr(older_names, "_positions", lambda part, other=other: other)
        assert with_older_names(config) == config
    for unread in ({"model_type": "of_a_hub"}, {"model_type": "llama", "hidden_size": "wide"}):
        assert with_older_names(unread) == unread


def test_a_number_that_is_none_is_no_difference():
    config = written("llama", PLAIN) | {"of_mine": {"scale": float("nan")}, "other": float("nan")}
    assert with_older_names(config)["rope_theta"] == 5e4


def test_a_tokenizer_is_named_as_transformers_4_knows_it_and_holds_its_template():
    config = {"tokenizer_class": "TokenizersBackend", "is_local": True, "local_files_only": False,
              "extra_special_tokens": ["<a>"], "eos_token": "<e>"}  # fmt: skip
    assert tokenizer_with_older_names(config, "T") == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<a>"],
        "eos_token": "<e>",
        "chat_template": "T",
    }
    named = {"tokenizer_class": "LlamaTokenizer", "extra_special_tokens": {"image": "<i>"}}
    assert tokenizer_with_older_names(named, None) == named


def test_exports_have_them(tmp_path):
    model, tokenizer = tiny_model()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<more>"]})
    save_language_model(model, tokenizer, tmp_path / "model")
    reward = RewardModel(RewardModelConfig(model_name="random:tiny", device="cpu"))
    reward.export(tmp_path / "reward")
    for name in ("model", "reward"):
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
        said = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        assert said["tokenizer_class"] == "PreTrainedTokenizerFast" and said["chat_template"]
    again = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert type(again) is type(tokenizer) and again.chat_template == tokenizer.chat_template
    assert again("a<more>b</s>")["input_ids"] == tokenizer("a<more>b</s>")["input_ids"]
    assert again.all_special_tokens == tokenizer.all_special_tokens
