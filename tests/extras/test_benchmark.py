"""``task=benchmark`` with the real lm-evaluation-harness, on a task whose data lie in the repo."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from report_helpers import make_run

pytest.importorskip("lm_eval", reason="make test-extras")

from rlmodules.models import LoraConfig, ModelConfig, load_model, load_tokenizer
from rlmodules.models.saving import save_language_model

TASK = Path(__file__).parents[2] / "examples" / "benchmark"
ROWS = [json.loads(line) for line in (TASK / "capitals.jsonl").read_text().splitlines()]
ASKED = ["task=benchmark", "tasks=[capitals]", "task.include_path=examples/benchmark",
         "trainer.accelerator=cpu"]  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder of a user's, with the task in it."""
    shutil.copytree(TASK, tmp_path / "examples" / "benchmark")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path


def own_figures(config):
    """Whether each answer is the likeliest of its choices, by the model's own log-probabilities."""
    model, tokenizer = load_model(config), load_tokenizer(config)
    found = []
    for row in ROWS:
        prompt = tokenizer(f"The capital of {row['country']} is", add_special_tokens=False)
        start, sums = len(prompt["input_ids"]), []
        for choice in row["choices"]:
            ids = tokenizer(f"The capital of {row['country']} is {choice}",
                            add_special_tokens=False, return_tensors="pt")["input_ids"]  # fmt: skip
            with torch.no_grad():
                logprobs = model(ids).logits.log_softmax(-1)[0, :-1]
            told = logprobs.gather(1, ids[0, 1:, None])[start - 1 :]
            sums.append(told.sum().item())
        found.append(float(max(range(4), key=sums.__getitem__) == row["answer"]))
    return found


def run_of(folder, name="random:tiny", *, r=0, scale=0.3):
    """A run's folder whose export is its model with noise on its weights."""
    config = ModelConfig(name=name, lora=LoraConfig(r=r))
    make_run(folder, 0.5, settings={"model": asdict(config)})
    model = load_model(config)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad and weight.dim() > 1:
                weight += scale * torch.randn_like(weight)
    save_language_model(model, load_tokenizer(config), folder / "model")
    return folder


def test_the_figure_is_what_the_models_own_logprobs_give(home, command):
    said = command(*ASKED, "model=tiny", "out=figures.json")
    own = own_figures(ModelConfig(name="random:tiny"))
    (row,) = json.loads((home / "figures.json").read_text())["rows"]
    assert row["after"] == pytest.approx(sum(own) / len(own)) and row["n"] == len(ROWS)
    assert "capitals, acc, 0-shot" in said and f"{row['after']:.3f}" in said
    assert "before" not in row


@pytest.mark.parametrize("r", [0, 4])
def test_a_run_is_measured_before_and_after(home, command, r):
    run = run_of(home / "run", r=r)
    command(*ASKED, "run=run")
    found = json.loads((run / "benchmark.json").read_text())
    (row,) = found["rows"]
    before, after = (own_figures(ModelConfig(name=n)) for n in ("random:tiny", str(run / "model")))
    changes = torch.tensor(after) - torch.tensor(before)
    assert changes.abs().sum() > 0, "the noise changes no answer: the test could not fail"
    assert row["before"] == pytest.approx(sum(before) / 12)
    assert row["after"] == pytest.approx(sum(after) / 12)
    assert row["difference"] == pytest.approx(changes.mean().item())
    assert row["difference_stderr"] == pytest.approx(changes.std().item() / 12**0.5)
    page = (run / "report.html").read_text()
    assert "Benchmarks, before and after" in page and "capitals, acc, 0-shot" in page
    assert f"{row['difference']:+.3f} ± {row['difference_stderr']:.3f}" in page


def test_options_reach_the_harness(home, command):
    command(*ASKED, "model=tiny", "out=a.json", "task.num_fewshot=2", "task.limit=5")
    (row,) = json.loads((home / "a.json").read_text())["rows"]
    assert (row["shots"], row["n"]) == (2, 5)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (["tasks=[capitols]"], "lm-eval has no task 'capitols': did you mean capitals?"),
        (["tasks=[arc_easy]"], "tasks=['arc_easy']: their data could not be loaded"),
        (["task.include_path=nowhere"], "task.include_path='nowhere': there is no such folder"),
    ],
)
def test_what_it_does_not_find_is_said(home, command, told, said):
    assert said in command(*ASKED, "model=tiny", *told, status=1)
