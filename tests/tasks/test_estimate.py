"""``task=estimate``: what it says, and that it loads nothing."""

import json
from dataclasses import asdict
from functools import partial

import distillation_helpers
import pytest
from test_train_preferences import QUICK

from rlmodules import DPO, Distillation, DPOConfig
from rlmodules.algorithms import policy
from rlmodules.memory import run
from rlmodules.memory.run import Run, _refuse_uncounted
from rlmodules.models import ModelConfig, loading
from rlmodules.models.embedded import tiny_tokenizer

RUN = [*QUICK, "task=estimate", "task.json=figures.json"]


@pytest.fixture
def figures(command, tmp_path):
    """Calls ``task=estimate`` and returns what it says and its figures."""

    def call(*options):
        said = command(*RUN, *options)
        return " ".join(said.split()), json.loads((tmp_path / "figures.json").read_text())

    return call


def test_the_moments_of_a_run_are_said_without_a_weight(figures, monkeypatch):
    monkeypatch.setattr(policy, "load_model", None)  # whoever calls it fails
    said, found = figures("algo=ppo", "reward=length")
    names = [moment["name"] for moment in found["moments"]]
    assert names == ["loading", "rollout", "held-out rollout", "evaluation", "update",
                     "optimizer step"]  # fmt: skip
    assert found["peak_bytes"] == max(moment["bytes"] for moment in found["moments"])
    assert f"> {found['peak']}" in said and "the run fits" in said
    step = found["moments"][-1]["parts"]
    assert step["optimizer state"] == pytest.approx(2 * step["gradients"], rel=1e-3)  # and counts
    assert step["weights"] - step["reference"] == 4 * (64 * 64 + 64 + 64 + 1)  # the critic's


def test_each_option_says_something_else(figures):
    _, here = figures("algo=dpo")
    _, there = figures("algo=dpo", "task.device=cuda", "task.devices=2", "task.memory_gb=1",
                       "task.prompt_length=100", "algo.max_length=400")  # fmt: skip
    assert (here["device"], here["devices"], here["packed"]) == ("cpu", 1, True)
    assert (there["device"], there["devices"], there["packed"]) == ("cuda", 2, False)
    assert there["room_bytes"] == 2**30 and there["fits"]
    assert "4 x 400" not in here["moments"][1]["size"]
    (update,) = (moment for moment in there["moments"] if moment["name"] == "update")
    assert update["size"] == "8 x 400 (3200)"  # four of the eight pairs
    assert update["parts"]["gradients in transit"] > 0
    assert 0 < there["largest_batch_size"] < 65536


@pytest.fixture
def teacher(tmp_path):
    """The options of distillation from a wider and deeper model, and the model."""
    model, folder = distillation_helpers.teacher(), tmp_path / "teacher"
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    few = ["reward=length", "algo.num_iterations=1", "algo.max_new_tokens=8", "algo.batch_size=8"]
    sizes = ["algo.mini_batch_size=4", "algo.gradient_accumulation_steps=2"]
    sizes.append("model.dtype=float32")
    return ["algo=distill", f"algo.teacher_model_name_or_path={folder}", *few, *sizes], model


def test_a_teacher_is_there_from_when_it_is_loaded_and_writes_its_share(figures, teacher):
    options, model = teacher
    weights = 4 * sum(p.numel() for p in model.parameters())
    _, found = figures(*options, "algo.lmbda=0.25")
    moments = {moment.pop("name"): moment for moment in found["moments"]}
    assert list(moments) == ["loading", "loading of the teacher", "rollout",
                             "rollout by the teacher", "held-out rollout", "evaluation", "update",
                             "optimizer step"]  # fmt: skip
    assert "reference" not in moments.pop("loading")["parts"]
    for moment in moments.values():
        assert moment["parts"]["reference"] == pytest.approx(weights, rel=1e-2)
    assert moments["loading of the teacher"]["parts"].pop("file") > weights
    assert len({moment["parts"]["weights"] for moment in moments.values()}) == 1
    sizes = [moments[name]["size"].split()[0] for name in ("rollout", "rollout by the teacher")]
    assert sizes == ["5", "8"]  # 2 and 6 of 8, and twice 1.2


def test_of_a_share_as_many_rows_as_hardly_any_iteration_has_more_of():
    config = distillation_helpers.config(lmbda=0.75)
    of = partial(Run, Distillation, model=ModelConfig("random:tiny"), precision="32-true",
                 device="cpu", world=1)  # fmt: skip
    assert of(config).written(48) == (42, 18)  # 36 and 12, and twice 3
    assert of(config).written(1) == (1, 1)
    assert of(distillation_helpers.config()).written(48) == (48, 0)


def test_a_teacher_that_is_not_there_is_refused_by_its_option(command, teacher):
    options, _ = teacher
    said = command(*RUN, *options, "algo.teacher_model_name_or_path=null", status=1)
    assert "algo.teacher_model_name_or_path=null: name the model to learn from" in said
    said = command(*RUN, *options, "algo.teacher_model_name_or_path=./nowhere", status=1)
    assert "algo.teacher_model_name_or_path='./nowhere': its config.json is not here" in said
    assert said.count("algo.teacher_model_name_or_path='./nowhere'") == 1


def test_what_does_not_fit_says_what_to_lower(figures):
    said, found = figures("algo=dpo", "task.memory_gb=0.0001")
    assert not found["fits"] and found["largest_batch_size"] == 0
    assert "No algo.batch_size fits" in said and "model.lora.r=16" in said


@pytest.mark.parametrize(
    ("option", "sentence"),
    [("task.device=tpu", "task.device='tpu'"), ("task.json=no/where.json", "no folder"),
     ("model.name=./nowhere", "config.json is not here"),
     ("model.quantization=4bit", "model.quantization=4bit holds weights that cannot be trained"),
     ("model.compile=true", "model.compile=True: what it takes is not counted"),
     ("trainer=fsdp", "trainer=fsdp: what it takes is not counted")],
)  # fmt: skip
def test_what_cannot_be_estimated_is_refused(command, option, sentence):
    model = ["model=hf", "task.prompt_length=8"] if "model.name" in option else []
    assert sentence in command(*RUN, "algo=dpo", *model, option, status=1)


def test_a_card_that_is_not_here_computes_in_bfloat16(monkeypatch):
    for module in (run, loading):
        monkeypatch.setattr(module, "has_native_bf16", lambda: False)
    told = {"algo": asdict(DPOConfig(model_name="random:tiny")), "trainer": {"precision": "auto"}}
    told |= {"model": asdict(ModelConfig("random:tiny"))}
    for device, precision in (("cpu", "32-true"), ("cuda", "bf16-mixed")):
        assert Run.of(DPO, told, device=device, world=1).precision == precision


def test_a_server_beside_the_run_is_not_counted_and_replicas_are_what_one_device_has(figures):
    settings = {"trainer": {"strategy": "auto"}, "sampler": {"url": "http://127.0.0.1:1"}}
    with pytest.raises(ValueError, match="sampler=vllm: what it takes is not counted"):
        _refuse_uncounted(ModelConfig(name="random:tiny"), settings)
    assert figures("algo=dpo", "trainer=ddp", "task.devices=2")[1]["devices"] == 2
