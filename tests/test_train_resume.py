"""``train.py ckpt_path=...``: which run goes on, and what may be changed there."""

import json
import os
import pickle
import time

import pytest
import torch
from safetensors.torch import save_file

from rlmodules.resuming.checkpoint import LAST, NEWEST, found

QUICK = [
    "experiment=smoke",
    "trainer.precision=32-true",
    "algo.device=cpu",
    "logger=none",
    "algo.ppo_epochs=1",
]
DPO = ["algo=dpo", "model=tiny", "algo.device=cpu", "logger=none", "data.eval_size=4"]


def run_folder(tmp_path, name):
    return [f"hydra.run.dir={tmp_path}/outputs/{name}"]


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A finished run's folder, made once."""
    return tmp_path_factory.mktemp("once") / "run"


@pytest.fixture
def finished(once, command):
    """A finished run of two iterations: what its folder holds."""
    if not once.exists():
        command(*QUICK, f"hydra.run.dir={once}")
    return once


def everything(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_what_is_changed_is_said_once_and_by_its_own_name(finished, command):
    last = finished / "checkpoints" / "last.ckpt"
    more = [f"ckpt_path={last}", "algo.num_iterations=3"]
    said = command(*QUICK, *more, "algo.learning_rate=1e-3", "paths.output_root=elsewhere")
    assert f"Resuming from {last} (iteration 2, written 20" in said
    assert said.split("Changed from here on:\n")[1].startswith(
        "  algo.learning_rate: 5e-05 -> 0.001\niteration"
    )
    said = command(*QUICK, *more, "paths.output_root=third")
    assert "Changed" not in said


REFUSED = {
    "seed=1": ["seed: 0 -> 1"],
    "algo.batch_size=8": ["algo.batch_size: 16 -> 8"],
    "algo.temperature=1.0": ["algo.temperature: 0.8 -> 1.0"],
    "reward=sentiment": ["reward._target_: datamodules.rewards.length -> "],
    "env=math reward=none": ["env._target_: datamodules.TextGenerationEnv -> datamodules.MathEnv"],
    "model.lora.r=4": ["model.lora.r: 0 -> 4"],
    "model.dtype=bfloat16": ["model.dtype: auto -> bfloat16"],
    "model.attn_implementation=sdpa": ["model.attn_implementation: auto -> sdpa"],
    "trainer.precision=bf16-mixed": ["trainer.precision: 32-true -> bf16-mixed"],
    "+trainer.limit_train_batches=1": ["trainer.limit_train_batches: (none) -> 1"],
    "env.max_length=100": ["env.max_length: 4096 -> 100"],
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_would_change_the_result_is_refused_before_anything_is_written(
    change, finished, command, tmp_path
):
    before = everything(finished)
    last = finished / "checkpoints" / "last.ckpt"
    more = [f"ckpt_path={finished}", "algo.num_iterations=3", *change.split()]
    said = command(*QUICK, *more, status=1)
    assert f"the checkpoint {last} is of a run with other settings" in said
    for text in REFUSED[change]:
        assert f"\n  {text}" in said
    listed = [line for line in said.splitlines() if line.startswith("  ")]
    assert not any(line.startswith("  data.") for line in listed), "interpolations tell nothing new"
    assert everything(finished) == before
    assert not list(tmp_path.rglob("checkpoints")) and not list(tmp_path.rglob("config.yaml"))[1:]


def test_what_is_allowed_goes_on(finished, command):
    more = [f"ckpt_path={finished}", "algo.num_iterations=3", "algo.temperature=1.0"]
    assert "algo.temperature: 0.8 -> 1.0" in command(*QUICK, *more, "resume.allow=[algo]")
    said = command(*QUICK, *more, "resume.allow=[algo.temperatur]", status=1)
    assert "no option 'algo.temperatur'; do you mean 'algo.temperature'?" in said


def test_rows_and_rewards_are_known_by_what_is_in_them(command, tmp_path):
    """The same names with another content are noticed, the same content under others is not."""

    def write(name, word):
        rows = [{"prompt": f"Say {i}", "chosen": f"{word} {i}", "rejected": "No"} for i in range(9)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("pairs", "Yes")
    options = [*DPO, "data.eval_size=0", "algo.batch_size=1", "algo.gradient_accumulation_steps=1"]
    first = run_folder(tmp_path, "first")
    command(*options, "data.path=pairs.jsonl", "algo.num_epochs=1", *first)
    more = [*options, "algo.num_epochs=2", "ckpt_path=outputs/first"]
    write("moved", "Yes")
    said = command(*more, "data.path=moved.jsonl", *run_folder(tmp_path, "second"))
    assert "algo.num_epochs: 1 -> 2" in said and "data." not in said.split("Changed")[1][:200]
    write("pairs", "Yep")
    said = command(*more, "data.path=pairs.jsonl", *run_folder(tmp_path, "third"), status=1)
    assert "data.rows=pairs.jsonl has another content than then" in said

    reward = (
        "def fn(prompts, responses, metadata=None):\n    return [float({}) for r in responses]\n"
    )
    (tmp_path / "my_reward.py").write_text(reward.format("len(r)"))
    options = [*QUICK, "reward=function", "reward.path=my_reward:fn"]
    command(*options, *run_folder(tmp_path, "fourth"))
    (tmp_path / "my_reward.py").write_text(reward.format("-len(r)"))
    more = ["ckpt_path=outputs/fourth", "algo.num_iterations=3"]
    said = command(*options, *more, status=1)
    assert "reward.path=my_reward:fn has another content than then" in said


# ------------------------------------------------------------------ what ckpt_path names


def write_bytes(path, data):
    path.write_bytes(data)


NO_CHECKPOINTS = {
    "weights": (lambda path, last: torch.save(last["state_dict"], path), "as a file of weights"),
    "tensor": (lambda path, last: torch.save(torch.ones(2), path), "it holds Tensor"),
    "pickle": (lambda path, last: write_bytes(path, pickle.dumps({"a": 1})), "it is a pickle"),
    "empty": (lambda path, last: write_bytes(path, b""), "it is empty"),
    "text": (lambda path, last: path.write_text("hello"), "it is no torch file"),
    "objects": (lambda path, last: torch.save({"a": time.sleep}, path), "is not opened"),
    "safetensors": (
        lambda path, last: save_file({"a": torch.ones(2)}, path),
        "it is a safetensors file",
    ),
    "foreign": (
        lambda path, last: torch.save({"state_dict": {}, "loops": {}}, path),
        "another program's Lightning checkpoint",
    ),
    "later": (
        lambda path, last: torch.save(last | {"format": NEWEST + 1}, path),
        f"is of format {NEWEST + 1}, and this version reads {NEWEST}",
    ),
    "no state": (
        lambda path, last: torch.save(last | {"optimizer_states": []}, path),
        "holds weights only",
    ),
}


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
def test_what_is_no_checkpoint_is_refused_by_what_it_is(kind, finished, command, tmp_path):
    write, text = NO_CHECKPOINTS[kind]
    last = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    write(tmp_path / "x.ckpt", last)
    said = command(*QUICK, "ckpt_path=x.ckpt", "algo.num_iterations=3", status=1)
    assert text in said and "ckpt_path='x.ckpt'" in said


def test_a_file_whose_end_is_missing_is_refused_by_its_size(finished, command, tmp_path):
    whole = (finished / "checkpoints" / "last.ckpt").read_bytes()
    (tmp_path / "x.ckpt").write_bytes(whole[:50_000])
    said = command(*QUICK, "ckpt_path=x.ckpt", "algo.num_iterations=3", status=1)
    assert "its end is missing (50000 bytes are there)" in said


def test_weights_alone_are_refused_with_the_file_to_take(finished, command):
    best = finished / "checkpoints" / "best.ckpt"
    before = everything(finished)
    said = command(*QUICK, f"ckpt_path={best}", "algo.num_iterations=3", status=1)
    assert f"ckpt_path='{best}' holds weights only" in said
    assert f"use {best.with_name('last.ckpt')}" in said
    assert everything(finished) == before


def test_folders_are_runs_or_are_refused(finished, command, tmp_path):
    more = ["algo.num_iterations=3", "paths.output_root=other"]
    assert "last.ckpt (iteration 2" in command(*QUICK, f"ckpt_path={finished}", *more)
    said = command(*QUICK, f"ckpt_path={finished / 'model'}", status=1)
    assert "is a model's folder: start a run from it by model.name=" in said
    said = command(*QUICK, f"ckpt_path={tmp_path}", status=1)
    assert "is a folder without checkpoints/last.ckpt" in said
    assert "there is no such file" in command(*QUICK, "ckpt_path=nowhere.ckpt", status=1)


def test_the_last_run_is_the_newest_of_the_same_command(finished, command, tmp_path):
    last = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    places = {
        "outputs/day/same": {},
        "outputs/day/faster": {"algo.learning_rate": 1e-2},
        "multirun/day/time/0": {"algo.kl_target": 0.1},
        "outputs/day/seed": {"seed": 7},
        "multirun/day/time/1": {"env._target_": "datamodules.MathEnv"},
    }
    for age, (place, changes) in enumerate(places.items()):
        path = tmp_path / place / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        torch.save(last | {"run": last["run"] | changes}, path)
        os.utime(path, (10_000 + age, 10_000 + age))
    newer = tmp_path / "outputs" / "day" / "grpo" / "checkpoints" / "last.ckpt"
    newer.parent.mkdir(parents=True)
    torch.save(last | {"algorithm": "GRPO"}, newer)
    more = ["ckpt_path=last", "algo.num_iterations=3"]
    said = command(*QUICK, *more)
    assert (
        f"Resuming from {tmp_path}/multirun/day/time/0/checkpoints/last.ckpt (iteration 2" in said
    )
    said = command(*QUICK, *more, "algo.temperature=1.3", status=1)
    assert "no run of this command has saved a checkpoint below" in said
    for text in (
        "day/grpo",
        "it is of GRPO",
        "day/seed",
        "seed: 7 -> 0; algo.temperature: 0.8 -> 1.3",
    ):
        assert text in said


def test_the_processes_of_a_run_take_the_same_last_one(tmp_path, finished, monkeypatch):
    runs = [tmp_path / name / "checkpoints" / "last.ckpt" for name in "ab"]
    monkeypatch.delenv(LAST, raising=False)
    for age, path in enumerate(runs):
        path.parent.mkdir(parents=True)
        path.write_bytes((finished / "checkpoints" / "last.ckpt").read_bytes())
        os.utime(path, (10_000 - age, 10_000 - age))
    of_all = ("last", [tmp_path], "PPO", lambda *_: [])
    assert found(*of_all)[0] == runs[0]
    os.utime(runs[1])  # another run saves before the next process looks
    assert found(*of_all)[0] == runs[1]
    monkeypatch.setenv(LAST, str(runs[0]))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert found(*of_all)[0] == runs[0]


def test_no_run_at_all_is_said_with_the_folders(command, tmp_path):
    said = command(*QUICK, "ckpt_path=last", status=1)
    assert f"no checkpoints/last.ckpt below {tmp_path}/outputs and {tmp_path}/multirun" in said


# ------------------------------------------------------------------ tasks on a checkpoint


def figures(said):
    return [line for line in said.splitlines() if line.startswith("  val/")]


@pytest.mark.parametrize("name", ["best", "last", "folder"])
def test_a_task_takes_the_checkpoints_weights(name, once, command):
    """The figures are those that the run itself had at that checkpoint."""
    run = once.with_name("fast")
    if not run.exists():
        fast = ["algo.learning_rate=1e-2", "algo.value_warmup_iterations=0"]
        command(*QUICK, *fast, f"hydra.run.dir={run}")
    report = json.loads((run / "report.json").read_text())
    given = run if name == "folder" else run / "checkpoints" / f"{name}.ckpt"
    said = command(*QUICK, "task=evaluate", f"ckpt_path={given}")
    path = run / "checkpoints" / "last.ckpt" if name == "folder" else given
    assert f"Weights of {path} (iteration " in said and f"{path} on held-out data:" in said
    rows = [row for row in report["history"] if "val/reward" in row]
    row = max(rows, key=lambda row: row["val/reward"]) if name == "best" else rows[-1]
    expected = [f"  {key}  {row[key]:.4f}" for key in row if key.startswith("val/")]
    assert set(expected) == set(figures(said))
    assert figures(said) != figures(command(*QUICK, "task=evaluate"))


def test_a_task_refuses_weights_of_another_model_or_algorithm(finished, command):
    task = ["task=evaluate", f"ckpt_path={finished}"]
    said = command(*QUICK, *task, "model.dtype=bfloat16", status=1)
    assert "model.dtype: auto -> bfloat16" in said and not figures(said)
    said = command(*QUICK[:-1], *task, "algo=grpo", "env=text", status=1)
    assert "the checkpoint is of PPO, this run is of GRPO" in said and not figures(said)
    command(*QUICK, *task, "algo.temperature=1.0", "data.eval_size=2", "seed=3")


def test_pairs_of_two_checkpoints_do_not_come_into_one_file(finished, command, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def fn(prompts, texts, metadata=None): return [1.0 * sum(map(ord, t)) for t in texts]"
    )
    task = ["task=collect_preferences", "out=pairs.jsonl", "task.truncated=keep"]
    task += ["task.num_prompts=2", "reward=function", "reward.path=mine:fn"]
    command(*QUICK, *task, f"ckpt_path={finished}")
    assert "digest_of_checkpoint" in (tmp_path / "pairs.jsonl").read_text()
    for other in ([], [f"ckpt_path={finished}/checkpoints/best.ckpt"]):
        assert "holds pairs of other settings" in command(*QUICK, *task, *other, status=1)


def test_relative_names_are_those_of_the_folder_one_started_in(finished, command, tmp_path):
    (tmp_path / "prompts.txt").write_text("One\nTwo\nThree\n")
    (tmp_path / "mine.py").write_text(
        "def fn(prompts, responses, metadata=None): return [float(len(r)) for r in responses]"
    )
    options = [*QUICK, "data.path=prompts.txt", "data.eval_size=1", "reward=function"]
    options += ["reward.path=mine:fn", "hydra.job.chdir=true"]
    command(*options)
    said = command(*options, "ckpt_path=last", "algo.num_iterations=3")
    assert "(iteration 2" in said
    assert len(list(tmp_path.glob("outputs/*/*/report.json"))) == 2
