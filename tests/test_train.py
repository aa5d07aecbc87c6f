"""``train.py`` as users call it, in a folder of their own."""

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from process_helpers import warm_python
from transformers import AutoModelForCausalLM, AutoTokenizer

TRAIN = Path(__file__).parent.parent / "train.py"
QUICK = [
    "model=tiny",
    "reward=length",
    "trainer.precision=32-true",
    "algo.num_iterations=2",
    "algo.eval_every=1",
    "algo.batch_size=4",
    "algo.mini_batch_size=2",
    "algo.max_new_tokens=6",
    "data.eval_size=4",
]


def start(folder, *arguments, **options):
    flags = [a for a in arguments if a.startswith("-")]
    overrides = [a for a in arguments if not a.startswith("-")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    return subprocess.Popen(
        [warm_python(), str(TRAIN), *flags, *QUICK, *overrides],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def run(folder, *arguments, status=0):
    process = start(folder, *arguments)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == status, output[-3000:]
    return output


def only(folder, pattern):
    found = sorted(folder.glob(pattern))
    assert len(found) == 1, found
    return found[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One whole run, with LoRA, merged on export, and with the offline wandb logger."""
    folder = tmp_path_factory.mktemp("run")
    output = run(folder, "model.lora.r=4", "export.merge=true", "logger=wandb")
    return only(folder, "outputs/*/*"), output


def test_a_run_says_what_happened_and_where_things_are(finished):
    folder, output = finished
    for text in ("before", "after", "reward", "KL", "distinct bigrams", "tokens/s"):
        assert text in output
    for name in ("model", "curves.png", "report.json", "samples", "checkpoints"):
        assert str(folder / name) in output
        assert (folder / name).exists()
    assert "Traceback" not in output and "Warning:" not in output


def test_a_run_leaves_metrics_samples_config_and_a_report(finished):
    folder, _ = finished
    rows = list(csv.DictReader((folder / "csv" / "metrics.csv").open()))
    assert any(row["rollout/reward"] for row in rows)
    samples = list(csv.DictReader((folder / "samples" / "iteration-0002.csv").open()))
    assert len(samples) == 4 and samples[0]["prompt"]
    report = json.loads((folder / "report.json").read_text())
    assert len(report["history"]) == 2 and "val/reward" in report["before"]
    assert "num_iterations: 2" in (folder / "config.yaml").read_text()
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert list((folder / "tensorboard").glob("events*"))
    assert list(folder.glob("wandb/offline-run-*"))


def test_the_exported_model_loads_with_transformers_and_is_the_trained_one(finished):
    folder, _ = finished
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    a, b = (
        next(v for k, v in checkpoint.items() if f"layers.0.self_attn.q_proj.lora_{x}" in k)
        for x in "AB"
    )
    from rlmodules.models.embedded import tiny_model

    base = tiny_model()[0].model.layers[0].self_attn.q_proj.weight
    merged = model.model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(merged, base + 32 / 4 * b @ a, rtol=0, atol=1e-6)
    assert not torch.equal(merged, base)
    assert tokenizer.decode(tokenizer("héllo")["input_ids"]) == "héllo"


def test_multirun_runs_every_combination(tmp_path, command):
    options = ["hydra/launcher=basic", "algo.num_iterations=1", "logger=none"]  # in this process
    output = command("-m", *QUICK, "seed=0,1", *options)
    assert len(list(tmp_path.glob("multirun/*/*/*/report.json"))) == 2, output[-2000:]


def test_a_wrong_value_ends_in_one_sentence_not_in_a_traceback(tmp_path, command):
    output = run(tmp_path, "algo.mini_batch_size=3", status=1)
    assert "algo.batch_size=4 must be a multiple of mini_batch_size" in output
    assert "Traceback" not in output
    assert "data.path='nowhere.jsonl'" in command(*QUICK, "data.path=nowhere.jsonl", status=1)


def test_a_folder_with_a_datamodules_of_its_own_is_told_that_the_run_does_not_see_it(
    tmp_path, command
):
    (tmp_path / "datamodules").mkdir()
    output = command(*QUICK, "algo.mini_batch_size=3", status=1)
    assert f"{tmp_path / 'datamodules'} is hidden by the package" in output


def test_ctrl_c_saves_and_the_run_goes_on_where_it_was(tmp_path, command):
    process = start(tmp_path, "algo.num_iterations=2000", "algo.eval_every=2000", "logger=none")
    for line in process.stdout:
        if line.startswith("iteration 3/"):
            break
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    saved = only(tmp_path, "outputs/*/*/checkpoints/last.ckpt")
    assert "ckpt_path=" in output
    done = torch.load(saved, weights_only=True)["epoch"]
    time.sleep(1)  # outputs are named by the second
    output = command(*QUICK, "ckpt_path=last", f"algo.num_iterations={done + 2}", "logger=none")
    assert f"iteration {done + 2}/{done + 2}" in output and "iteration 1/" not in output
