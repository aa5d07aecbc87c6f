"""Preference learning by ``train.py``, in a folder of the user's own."""

import json

import pytest
import torch
from process_helpers import alone_and_together
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

QUICK = ["model=tiny", "trainer.precision=32-true", "logger=none", "data.eval_size=8"]


def only(folder, pattern):
    found = sorted(folder.glob(pattern))
    assert len(found) == 1, found
    return found[0]


def pairs_file(folder, extra=()):
    rows = [
        {"prompt": f"Question {i}?", "chosen": f" Yes {i}", "rejected": f" No, {i * 7}"}
        for i in range(24)
    ]
    lines = [*map(json.dumps, rows), *extra]
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return "data.path=pairs.jsonl"


def test_dpo_on_the_carried_pairs(tmp_path, command):
    output = command(*QUICK, "algo=dpo", "algo.num_epochs=1")
    folder = only(tmp_path, "outputs/*/*")
    assert "238 pairs to train on" in output and "8 held out" in output
    for text in ("accuracy", "margin", "before", "after", "optimizer steps", str(folder / "model")):
        assert text in output
    report = json.loads((folder / "report.json").read_text())
    assert report["before"]["val/accuracy"] == 0.5 and "val/margin" in report["after"]
    assert len(report["history"]) == 15
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    AutoModelForCausalLM.from_pretrained(folder / "model")


def test_a_reward_model_from_a_file_rewards_ppo(tmp_path, command):
    """RLHF, whole: pairs -> reward model -> policy."""
    output = command(*QUICK, "algo=reward", pairs_file(tmp_path), "algo.num_epochs=2")
    folder = only(tmp_path, "outputs/*/*")
    assert "16 pairs to train on" in output and "8 held out" in output
    for text in ("Right on", "95% interval", "Calibration error", "Correlation with length"):
        assert text in output
    assert (folder / "calibration.png").read_bytes()[:4] == b"\x89PNG"
    AutoModelForSequenceClassification.from_pretrained(folder / "model")
    small = ["algo.num_iterations=1", "algo.batch_size=4", "algo.mini_batch_size=4"]
    output = command(
        *QUICK,
        "algo=ppo",
        "reward=model",
        f"reward.path={folder / 'model'}",
        "algo.eval_every=1",
        "algo.max_new_tokens=4",
        *small,
    )
    assert "1 iterations in" in output


def test_multi_objective_says_how_each_objective_does(tmp_path, command):
    output = command(*QUICK, "algo=multi_objective", "algo.num_epochs=1", "data.eval_size=40")
    for text in ("120 scored responses", "40 held out", "helpfulness", "safety", "honesty"):
        assert text in output
    report = json.loads(only(tmp_path, "outputs/*/*/report.json").read_text())
    assert report["examination"]["objectives"]["honesty"]["pairs"] > 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["algo=dpo", "data.path=nowhere.jsonl"], "data.path='nowhere.jsonl'"),
        (["algo=dpo", "algo.loss_type=sigmod"], "algo.loss_type=['sigmod']"),
        (["algo=dpo", "reward=length"], "has no use for reward="),
        (["algo=sft", "data=preferences"], "rlmodules.SFT is of other data than"),
        (["algo=dpo", "data=demonstrations"], "rlmodules.DPO is of other data than"),
        (["algo=reward", "data.path=bad.jsonl"], "bad.jsonl, line 2: not JSON"),
        (["algo=dpo", "data.path=empty.jsonl"], "data.path='empty.jsonl' holds no rows"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments, message, tmp_path, command):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{oops\n')
    assert message in command(*QUICK, *arguments, status=1)


def test_bad_rows_are_skipped_when_asked_and_counted(tmp_path, command):
    bad = ["{oops", '{"prompt": "p", "chosen": "same", "rejected": "same"}', '{"prompt": "p"}']
    argument = pairs_file(tmp_path, bad)
    output = command(*QUICK, "algo=dpo", argument, "data.on_error=skip", "algo.num_epochs=1")
    assert "3 skipped" in output
    for line in (25, 26, 27):
        assert f"pairs.jsonl, line {line}" in output


SCRIPT = """
import sys
import torch
from pair_helpers import data, dataset, fit
from rlmodules import DPO, DPOConfig

devices, folder = int(sys.argv[1]), sys.argv[2]
c = DPOConfig(model_name="random:tiny", batch_size=4, gradient_accumulation_steps=2, num_epochs=3,
              max_grad_norm=1e9, learning_rate=0.5, lr_scheduler_type="constant",
              loss_type=["sigmoid", "sft"])
module = DPO(c)
make = module.configure_optimizers
def sgd():
    found = make()
    weights = found["optimizer"].param_groups[0]["params"]
    found["optimizer"] = torch.optim.SGD(weights, lr=c.learning_rate)
    found["lr_scheduler"]["scheduler"] = torch.optim.lr_scheduler.ConstantLR(
        found["optimizer"], 1.0)
    return found
module.configure_optimizers = sgd
strategy = "ddp_find_unused_parameters_true" if devices > 1 else "auto"
history, evaluations = fit(module, data(c, held_out=dataset(3)), folder, devices=devices,
                           strategy=strategy)
if module.global_rank == 0:
    weights = torch.cat([p.detach().flatten() for p in module.base_model.parameters()])
    torch.save({"weights": weights, "history": history, "evaluations": evaluations},
               f"{folder}/{devices}.pt")
"""


def test_two_processes_take_the_steps_of_one(tmp_path):
    one, two, _ = alone_and_together(tmp_path, SCRIPT)
    # Other pairs are computed together, so sums are rounded otherwise.
    torch.testing.assert_close(two["weights"], one["weights"], rtol=0, atol=2e-5)
    for part in ("history", "evaluations"):
        assert len(one[part]) == len(two[part]) > 0
        for alone, together in zip(one[part], two[part], strict=True):
            for name, value in alone.items():
                if not name.startswith("time/") and name != "train/grad_norm":
                    assert together[name] == pytest.approx(value, rel=1e-5, abs=1e-4), name


def test_a_reward_model_that_cannot_be_exported_as_asked_says_so_before_training(command):
    arguments = ["algo=reward", "export.merge=false", "algo.use_lora=true"]
    output = command(*QUICK, *arguments, status=1)
    assert "export.merge=false" in output and "step 1/" not in output
