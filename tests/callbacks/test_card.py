"""The model card of an export says what it is, by the run's own figures, and how to use it."""

import re

import pytest
import yaml
from adapter_helpers import adapter_folder
from helpers import config
from transformers import AutoModelForCausalLM

from rlmodules import DPO, PPO, DPOConfig, ModelConfig, RewardModel, RewardModelConfig
from rlmodules.callbacks.card import license_of, write_card
from rlmodules.callbacks.run_report import RunReport
from rlmodules.models import LoraConfig
from rlmodules.models.embedded import tiny_model, tiny_tokenizer


def report():
    found = RunReport("unused")
    found.before = {"val/reward": 0.25, "val/kl": 0.0, "val/other": 1.0}
    found.after = {"val/reward": 0.875, "val/kl": 0.0125, "val/other": 2.0}
    return found


def card_of(module, folder, *arguments, **options):
    module.export(folder, **options)
    write_card(module, folder, *arguments)
    text = (folder / "README.md").read_text()
    return yaml.safe_load(re.match(r"---\n(.*?)---\n", text, re.DOTALL)[1]), text


def test_an_adapters_card_holds_the_runs_settings_and_figures(tmp_path):
    module = PPO(config(seed=7), ModelConfig(name="random:tiny", lora=LoraConfig(r=4, alpha=8)))
    head, text = card_of(module, tmp_path, report())
    assert head == {"library_name": "peft", "tags": ["rlmodules", "ppo"]}
    for part in (
        "# PPO of `random:tiny`",
        "A LoRA adapter (rank 4, alpha 8) on `random:tiny`",
        "| `learning_rate` | 0.001 |",
        "| `seed` | 7 |",
        "| `batch_size` | 8 |",
        "| reward | 0.250 | 0.875 |",
        "| KL to the reference (nats a token) | 0.000 | 0.013 |",
        "`export.merge=true` writes",
        'load_model(ModelConfig(name="DIR"))',
        "`value_head` holds PPO's critic",
        "licence of its base is not known",
    ):
        assert part in text, part
    for version in ("torch 2.", "transformers 5.", "peft 0."):
        assert version in text
    assert "More Information Needed" not in text and "gamma" not in text  # a default


def test_the_licence_is_what_the_bases_own_card_says(tmp_path):
    base = tmp_path / "base"
    tiny_model()[0].save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    assert license_of(str(base)) is None
    (base / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\n# A model\n")
    c = DPOConfig(model_name=str(base), max_length=64, max_prompt_length=32)
    head, text = card_of(DPO(c), tmp_path / "out")
    assert head["license"] == "mit" and "base_model" not in head  # a folder is no id on a hub
    assert "The licence of its base is mit." in text and f"`{base}`" in text
    assert "AutoModelForCausalLM" in text and "Nothing was held out" in text
    assert license_of("wheel:smollm2") == "apache-2.0"
    for broken in ("", "---\n: [\n---\n", "---\nlicense: [1]\n---\n", "no head"):
        (base / "README.md").write_text(broken)
        assert license_of(str(base)) is None


@pytest.mark.parametrize("merge", [None, True])
def test_whole_and_merged_models_are_told_apart(tmp_path, merge):
    lora = LoraConfig(r=4 if merge else 0)
    module = DPO(DPOConfig(model_name="random:tiny"), ModelConfig(name="random:tiny", lora=lora))
    head, text = card_of(module, tmp_path, merge=merge)
    assert head["library_name"] == "transformers"
    kind = "adapters of `random:tiny`, merged" if merge else "of which all weights were trained"
    assert kind in text
    AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_base_on_a_hub_is_named_for_the_hub(tmp_path):
    module = DPO(DPOConfig(model_name=adapter_folder(tmp_path / "a", base="random:tiny")))
    module.base_model.active_peft_config.base_model_name_or_path = "some-one/base"
    head, text = card_of(module, tmp_path / "out")
    assert head["base_model"] == "some-one/base" and "on `some-one/base`" in text


def test_a_reward_models_card_says_how_to_reward_with_it(tmp_path):
    module = RewardModel(RewardModelConfig(model_name="random:tiny", use_lora=True))
    head, text = card_of(module, tmp_path)
    assert "reward=model reward.path=DIR" in text and head["tags"] == ["rlmodules", "rewardmodel"]
    assert "merged into its weights" in text and "| `use_lora` | True |" in text
