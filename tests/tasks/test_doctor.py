"""The doctor finds healthy models green, and each that is broken on purpose red, and no more."""

import copy
import json
import re
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import grpo_helpers
import lightning as L
import pair_helpers
import pytest
import torch
from distillation_helpers import teacher
from helpers import config
from helpers import data as rollouts

from rlmodules import DPO, GRPO, PPO, DPOConfig, GRPOConfig, RewardModel, RewardModelConfig
from rlmodules.functional.grpo_losses import GRPO_LOSSES
from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.tasks import doctor
from rlmodules.tasks import doctor_checks as checks
from rlmodules.tasks.doctor_sample import sample_of
from rlmodules.tasks.doctor_steps import cut_sizes
from rlmodules.tasks.ready import make_ready

QUICK = ["task=doctor", "model=tiny", "trainer.precision=32-true", "algo.device=cpu", "size=smoke"]
NEAR = 1e-3
PAIRS = {"model_name": "random:tiny", "batch_size": 4, "device": "cpu"}


def quick_estimate(data, trainer, settings):
    return SimpleNamespace(peak=SimpleNamespace(total=2**30), run=SimpleNamespace(device="cpu"))


def ready(kind):
    """A module that is ready to be looked at, and what to look at it with."""
    if kind == "ppo":
        c = config(temperature=1.0, top_p=1.0)
        return looked_at(PPO(c), rollouts(c, grpo_helpers.any_letter))
    kinds = {"dpo": (DPO, DPOConfig), "reward": (RewardModel, RewardModelConfig)}
    module_class, config_class = kinds[kind]
    c = config_class(**PAIRS)
    return looked_at(module_class(c), pair_helpers.data(c))


def looked_at(module, data):
    silent = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    make_ready(module, data, L.Trainer(accelerator="cpu", **silent))
    return module, sample_of(module, data, 4)


def looks(module, sample, folder):
    groups, said = sample.groups, partial(checks.outputs, module, sample.groups)
    return [
        checks.padding(module, groups, NEAR),
        checks.packing(module, groups, said, NEAR),
        checks.batch_order(module, groups, said, NEAR),
        checks.sampler(module, sample.trajectories, NEAR),
        checks.reference(module, groups, said, NEAR),
        sample.accumulation(NEAR),
        checks.exported(module, folder, groups, said, NEAR),
    ]


def red(found):
    return {check.name for check in found if check.status == "red"}


@pytest.mark.parametrize("kind", ["ppo", "dpo", "reward"])
def test_a_sound_model_is_green(kind, tmp_path):
    found = looks(*ready(kind), tmp_path)
    assert red(found) == set()
    green = {check.name for check in found if check.status == "green"}
    assert green >= {"padding", "batch order", "accumulation", "export"}
    assert ("sampler" in green) == (kind == "ppo") and ("reference" in green) == (kind != "reward")


def dull(prompts, responses, metadata=None):
    return [1.0] * len(responses)


@pytest.mark.parametrize("reward", [grpo_helpers.any_letter, dull])
@pytest.mark.parametrize("loss_type", GRPO_LOSSES)
def test_whole_groups_are_learned_from_in_several_passes_as_in_one(loss_type, reward):
    own = {"cispo": {"epsilon_high": 5.0}, "luspo": {"importance_sampling_level": "sequence"}}
    sizes = {"num_generations": 3, "batch_size": 6, "mini_batch_size": 6}  # of four texts
    c = grpo_helpers.config(loss_type=loss_type, **sizes, **own.get(loss_type, {}))
    _, sample = looked_at(GRPO(c), grpo_helpers.data(c, reward))
    assert len(sample.trajectories) == 4
    found = sample.accumulation(NEAR)
    assert found.status == ("skipped" if loss_type == "bnpo" else "green"), found


def test_groups_of_more_than_one_pass_takes_are_not_tried():
    c = grpo_helpers.config(num_generations=8, mini_batch_size=4, gradient_accumulation_steps=2)
    found = looked_at(GRPO(c), grpo_helpers.data(c))[1].accumulation(NEAR)
    assert (
        found.status == "skipped"
        and "algo.num_generations=8, are more than one pass takes" in found.said
    )


def body(module):
    return module.policy.base_model.model if hasattr(module, "policy") else module.body


def looks_at_padding(module, sample):
    """Each state also holds the mean over all columns of its row."""
    body(module).norm.register_forward_hook(
        lambda norm, given, out: out + 0.1 * out.mean(1, keepdim=True)
    )


def mixes_rows(module, sample):
    """Each state also holds the mean over all rows of its batch."""
    body(module).norm.register_forward_hook(
        lambda norm, given, out: out + 0.1 * out.mean((0, 1), keepdim=True) * out[:1, :1]
    )


def samples_with_dropout(module, sample):
    noisy = [lp + 0.1 * torch.randn_like(lp) for t in sample.trajectories for lp in t.logprobs]
    for trajectory in sample.trajectories:
        trajectory.logprobs = [noisy.pop(0) for _ in trajectory.logprobs]


def changed_after_its_reference(module, sample):
    with torch.no_grad():
        module.policy.base_model.lm_head.weight.mul_(1.1)


def divides_by_its_own_batch(module, sample):
    """A mean over the examples of a backward pass, not over those of the step."""
    own = module.losses

    def losses(batch):
        loss, metrics = own(batch)
        return loss * batch.totals["num_examples"] / len(batch), metrics

    module.losses = losses


def unties_on_export(module, sample):
    own = module.from_export

    def from_export(folder):
        written = own(folder)
        head = written.policy.base_model.lm_head
        head.weight = torch.nn.Parameter(torch.randn_like(head.weight))
        return written

    module.from_export = from_export


BROKEN = [
    # what is broken, in what, what is red
    (looks_at_padding, "ppo", {"padding"}),
    (looks_at_padding, "reward", {"padding"}),
    (samples_with_dropout, "ppo", {"sampler"}),
    (changed_after_its_reference, "dpo", {"reference"}),
    (divides_by_its_own_batch, "dpo", {"accumulation"}),
    (unties_on_export, "dpo", {"export"}),
]


@pytest.mark.parametrize(("breaks", "kind", "found"), BROKEN)
def test_what_is_broken_is_red(breaks, kind, found, tmp_path):
    module, sample = ready(kind)
    breaks(module, sample)
    seen = looks(module, sample, tmp_path)
    assert found <= red(seen)
    assert all(check.remedy for check in seen if check.status == "red")


def test_texts_that_change_each_other_are_seen():
    module, sample = ready("ppo")
    mixes_rows(module, sample)
    said = checks.outputs(module, sample.groups)
    assert checks.batch_order(module, sample.groups, lambda: said, NEAR).status == "red"


def test_no_number_is_red():
    nan = torch.tensor([float("nan")])
    assert checks.apart([torch.zeros(1), nan], [torch.ones(1), nan]) == float("inf")
    assert checks.below("x", float("inf"), 1.0, "", "").status == "red"


def test_steps_that_move_nothing_are_red_but_for_an_excuse():
    weights = {"a": torch.zeros(100), "b": torch.zeros(100)}
    moved = weights | {"a": torch.cat([torch.ones(2), torch.zeros(98)])}
    found = checks.movement(weights, moved, 3)
    assert (found.status, found.figure) == ("green", 0.01)
    assert "1 of 2 tensors stood still" in found.said
    assert checks.movement(weights, weights, 3).status == "red"
    assert checks.movement(weights, weights, 3, "rewards are equal").status == "skipped"


def test_a_run_that_goes_on_as_another_is_red():
    straight, other = {"a": torch.zeros(3)}, {"a": torch.tensor([0.0, 0.5, 0.0])}
    assert checks.resumption(straight, copy.deepcopy(straight), (3, 3)).status == "green"
    assert checks.resumption(straight, copy.deepcopy(straight), (3, 2)).status == "red"
    found = checks.resumption(straight, other, (3, 3))
    assert (found.status, found.figure) == ("red", 0.5)


# ------------------------------------------------------------------------ the steps


@pytest.mark.parametrize(
    ("told", "sizes"),
    [
        ({"batch_size": 64, "mini_batch_size": 16}, {"mini_batch_size": 4, "batch_size": 8}),
        ({"batch_size": 64, "mini_batch_size": 8, "gradient_accumulation_steps": 8},
         {"mini_batch_size": 4, "batch_size": 32}),  # an iteration is one step, and stays one
        ({"batch_size": 4, "mini_batch_size": 2}, {}),
    ],
)  # fmt: skip
def test_steps_are_of_few_episodes_and_as_many_an_iteration_as_show_its_end(told, sizes):
    assert cut_sizes(config(**told)) == sizes


def test_groups_stay_whole_and_examples_become_few():
    sizes = {"batch_size": 256, "mini_batch_size": 128, "gradient_accumulation_steps": 2}
    assert cut_sizes(GRPOConfig(**sizes)) == {"mini_batch_size": 8, "batch_size": 16}
    assert cut_sizes(GRPOConfig(**sizes | {"mini_batch_size": 4})) == {}
    assert cut_sizes(DPOConfig(batch_size=8)) == {"batch_size": 2}
    assert cut_sizes(DPOConfig(batch_size=1)) == {"batch_size": 1}


# ------------------------------------------------------------------------ the command


COUNTING = """
import itertools
calls = itertools.count()
def fn(prompts, responses, metadata=None):
    return [sum(map(ord, r)) % 97 / 97 + next(calls) for r in responses]
"""


def test_each_check_is_said_before_the_next_is_tried(monkeypatch, capsys):
    def examine(*args):
        yield checks.Check("one", "green", "")
        assert re.fullmatch(r"one +green +\d+\.\d s\n", capsys.readouterr().out)
        yield checks.Check("two", "skipped", "")

    monkeypatch.setattr(doctor, "examine", examine)
    said = doctor.doctor(None, None, SimpleNamespace(world_size=1), {})
    assert said == "All that was looked at is as it should be."
    assert "What was" in capsys.readouterr().out  # the table


@contextmanager
def nothing_left(folder, *but):
    before = set(folder.rglob("*"))
    yield
    left = {path for path in set(folder.rglob("*")) - before if path.is_file()}
    assert {path.name for path in left if ".hydra" not in path.parts} <= {*but, "result.json"}


@pytest.mark.parametrize("algo", ["sft", "multi_objective"])
def test_a_sound_run_is_said_to_be_sound(algo, command, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "counted", quick_estimate)
    with nothing_left(tmp_path, "found.json"):
        said = command(*QUICK, f"algo={algo}", "out=found.json", "model.lora.r=4")
    assert "All that was looked at is as it should be." in said
    found = {check["name"]: check for check in json.loads(Path("found.json").read_text())}
    assert list(found) == ["options", "memory", "padding", "packing", "batch order", "sampler",
                           "reference", "accumulation", "export", "steps", "resume"]  # fmt: skip
    assert all(check["seconds"] >= 0 for check in found.values())
    assert {"steps", "resume", "export"} <= {n for n, c in found.items() if c["status"] == "green"}


def test_a_teacher_is_no_reference_and_its_memory_is_counted(command, tmp_path):
    teacher().save_pretrained(tmp_path / "teacher")
    tiny_tokenizer().save_pretrained(tmp_path / "teacher")
    command(*QUICK, "algo=distill", "algo.teacher_model_name_or_path=teacher", "out=found.json",
            "algo.batch_size=4", "algo.mini_batch_size=4", "algo.gradient_accumulation_steps=1",
            "data.eval_size=2")  # fmt: skip
    found = {check["name"]: check for check in json.loads(Path("found.json").read_text())}
    skipped = {name: check["said"] for name, check in found.items() if check["status"] != "green"}
    assert set(skipped) <= {"reference", "packing", "accumulation"}
    assert "a teacher is in its place" in skipped["reference"]


def test_a_run_that_cannot_be_resumed_ends_with_status_1(command, tmp_path, monkeypatch):
    """Its reward counts its calls, of which no checkpoint knows."""
    monkeypatch.setattr(doctor, "counted", quick_estimate)
    (tmp_path / "counting.py").write_text(COUNTING)
    reward = ["reward=function", "reward.path=counting:fn", "algo.batch_size=4", "data.eval_size=2"]
    dead = "algo.early_stop_kl=0.1"  # of an iteration that is one step
    said = command(*QUICK, "algo=ppo", *reward, "algo.mini_batch_size=4", "algo.ppo_epochs=1",
                   "algo.gradient_accumulation_steps=1", dead, status=1)  # fmt: skip
    assert "options: Leave out what changes nothing" in said
    assert "resume: A run that goes on from ckpt_path is another one" in said
    assert "padding: " not in said


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("task.texts=1", "task.texts=1 must be"),
        ("out=nowhere/found.json", "out='nowhere/found.json': there is no folder"),
    ],
)
def test_what_cannot_be_is_refused(option, sentence, command):
    assert sentence in command(*QUICK, "algo=dpo", option, status=1)
