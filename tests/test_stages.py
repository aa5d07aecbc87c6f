"""Stages by commands alone: each goes on from the folder that the one before has left."""

import json

import pytest
import torch
from adapter_helpers import adapter_folder
from safetensors.torch import load_file
from test_train_preferences import QUICK, pairs_file

POLICY = ["algo.num_iterations=1", "algo.batch_size=4", "algo.mini_batch_size=4",
          "algo.max_new_tokens=4", "algo.eval_every=1", "algo.learning_rate=1e-2",
          "algo.value_warmup_iterations=0", "algo.early_stop_kl=null"]  # fmt: skip


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_dpo_then_a_reward_model_then_ppo_each_on_the_adapters_before(tmp_path, command):
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    pairs, rate = pairs_file(tmp_path), "algo.learning_rate=1e-2"
    command(*QUICK, "algo=dpo", pairs, rate, "model.lora.r=4", "algo.num_epochs=1",
            f"hydra.run.dir={one}")  # fmt: skip
    start = ["model=hf", f"model.name={one / 'model'}", *QUICK[1:]]
    command(*start, "algo=reward", pairs, rate, "algo.num_epochs=1", f"hydra.run.dir={two}")
    reward = ["reward=model", f"reward.path={two / 'model'}"]
    command(*start, "algo=ppo", *reward, *POLICY, f"hydra.run.dir={three}")
    first, last = weights(one / "model"), weights(three / "model")
    assert first.keys() == last.keys()
    assert all(not torch.equal(first[name], last[name]) for name in first)
    for folder in (one, three):
        config = json.loads((folder / "model" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "random:tiny" and config["r"] == 4
    assert json.loads((three / "report.json").read_text())["before"]["val/kl"] == 0.0
    output = command(*start, "task=evaluate", "algo=ppo", *reward, *POLICY)
    assert "val/reward" in output and str(one / "model") in output
    card = (three / "model" / "README.md").read_text()
    assert "A LoRA adapter (rank 4, alpha 32) on `random:tiny`" in card
    assert "environment `TextGenerationEnv`" in card and "| reward | " in card
    assert not (two / "model" / "adapter_config.json").exists()  # any library loads it


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.lora.r=8"], "model.lora.r=8, but the adapter 'a' has 4"),
        (["model.lora.dropout=0.1"], "model.lora.dropout=0.1: a policy is trained as"),
        (["model.adapter=both"], "model.adapter='both'"),
        (["model.adapter=merge", "model.lora.r=2", "export.merge=false"], "export.merge=false: "),
        (["model.adapter=merge", "export.merge=true"], "export.merge=true: there are no adapters"),
        (["export.dtype=int8"], "export.dtype='int8'"),
    ],
)
def test_what_does_not_fit_the_adapter_ends_in_one_sentence(tmp_path, command, arguments, message):
    adapter_folder("a")
    start = ["model=hf", "model.name=a", *QUICK[1:], "reward=length", "algo=ppo", *POLICY]
    assert message in command(*start, *arguments, status=1)


def test_an_export_of_another_type_is_measured_as_it_was_written(tmp_path, command):
    policy = [*QUICK[1:], "reward=length", "algo=ppo", *POLICY]
    output = command(
        "model=tiny", *policy, "export.dtype=bfloat16", f"hydra.run.dir={tmp_path / 'run'}"
    )
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert "rounded to bfloat16" in report["measured"]
    assert "rounded to bfloat16" in " ".join(output.split()) and "as exported" in output
    assert "as exported" in (tmp_path / "run" / "report.txt").read_text()
    again = command(
        "model=hf", f"model.name={tmp_path / 'run' / 'model'}", *policy, "task=evaluate"
    )
    for name, value in report["exported"].items():
        if name != "val/kl":  # there it is against itself, here against what the run began with
            assert f"{name}  {value:.4f}" in again
    assert report["exported"]["val/kl"] != report["after"]["val/kl"]
    found = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {weight.dtype for weight in found.values()} == {torch.bfloat16}
    assert "rounded to bfloat16" in (tmp_path / "run" / "model" / "README.md").read_text()
