"""The health guard warns, stops, and rolls back; what it cannot do it refuses before a step."""

import csv
import json
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pair_helpers
import pytest
import torch
from helpers import assert_same, config, run
from rollback_helpers import (
    BACK,
    FAST,
    QUICK,
    REWARDS,
    assert_rolled_back_together,
    assert_same_training,
    checkpoint,
    history,
    make_ill,
)

from rlmodules import DPO, PPO, DPOConfig
from rlmodules.callbacks import AtomicCheckpointIO, HealthGuard, SaveLast
from rlmodules.callbacks.stopping import UnhealthyRunError
from rlmodules.resuming.kept import go_back, keep, kept


@pytest.fixture
def train(command, tmp_path):
    (tmp_path / "varied_rewards.py").write_text(REWARDS)

    def call(folder, *options, iterations=5, status=0):
        more = [f"hydra.run.dir={folder}", f"algo.num_iterations={iterations}"]
        return command(*QUICK, *more, *options, status=status)

    return call


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return tmp_path_factory.mktemp("once") / "run"


@pytest.fixture
def rolled_back(once, train, monkeypatch):
    """The folder of a run that was rolled back once, and has come to its end."""
    monkeypatch.setattr("rlmodules.callbacks.health.KEPT", 9)
    if not once.exists():
        train(once, *FAST, *BACK, iterations=6)
    return once


# ------------------------------------------------------------------------- rolling back


def test_a_run_goes_on_from_the_last_healthy_checkpoint_with_a_lower_rate(rolled_back, train):
    report = json.loads((rolled_back / "report.json").read_text())
    (rollback,) = report["rollbacks"]
    at, to, lowered = rollback["at"], rollback["to"], 0.02 * 0.0078125
    assert (rollback["symptom"], rollback["lr_scale"]) == ("high_kl", 0.0078125)
    assert 1 <= to < at - 1
    sentence = f"At iteration {at} it was rolled back to iteration {to} for high_kl"
    assert all(sentence in (rolled_back / f"report.{kind}").read_text() for kind in ("txt", "html"))
    saved = checkpoint(rolled_back)
    rows = list(csv.DictReader((rolled_back / "csv" / "metrics.csv").open()))
    rates = [float(row["train/learning_rate"]) for row in rows if row["train/loss"]]
    assert rates == pytest.approx([0.02] * to + [lowered] * (6 - to))
    done = [row["iteration"] for row in rows if row["train/loss"]]
    assert done == [f"{i}.0" for i in range(1, 7)]  # of the failure nothing is left
    assert max(row["rollout/kl"] for row in history(saved)) < 0.6  # three times algo.kl_target

    # the same as whoever goes on by hand, from that checkpoint and with that rate
    begun = rolled_back / "checkpoints" / f"rollback-{to}.last.ckpt"
    train(
        "hand",
        "~callbacks.report",
        f"ckpt_path={begun}",
        *FAST[:-1],
        f"algo.learning_rate={lowered}",
        f"algo.value_learning_rate={1e-3 * 0.0078125}",
        iterations=6,
    )
    assert_same_training(saved, checkpoint("hand"))
    by_hand = checkpoint("hand")
    assert by_hand["lr_scale"] == 1.0 and by_hand["rollbacks"] == saved["rollbacks"]


def test_a_run_that_was_rolled_back_goes_on_exactly_and_once_more(rolled_back, train):
    back = [*BACK, "~callbacks.report"]
    said = train("begun", *FAST, *back, iterations=4)
    assert "Rolled back to iteration 1; from there on the learning rate is 0.0078125 of" in said
    for before, iterations in (("begun", 5), ("gone_on", 6)):
        said = train("gone_on", *FAST, *back, f"ckpt_path={before}", iterations=iterations)
        assert "Rolled back" not in said
        assert "The learning rate is 0.0078125 of algo.learning_rate, since the run was" in said
    assert_same_training(checkpoint(rolled_back), checkpoint("gone_on"))
    assert checkpoint("gone_on")["rollbacks"] == checkpoint(rolled_back)["rollbacks"] != []
    # another rate is taken at its word
    for before, iterations in (("begun", 5), ("told", 6)):
        told = ["algo.learning_rate=0.0001", f"ckpt_path={before}"]
        train("told", *FAST[:-1], *back, *told, iterations=iterations)
        assert checkpoint("told")["optimizer_states"][0]["param_groups"][0]["lr"] == 0.0001


def test_after_the_last_rollback_the_run_stops_with_a_checkpoint(train, monkeypatch, tmp_path):
    monkeypatch.setattr("rlmodules.callbacks.health.KEPT", 9)
    more = [
        "~callbacks.report",
        "callbacks.health.lr_factor=0.9",
        "callbacks.health.max_rollbacks=1",
    ]
    said = train("run", *FAST, *BACK, *more, status=1)
    assert said.count("Rolled back to") == 1
    assert "it was 1 times already (callbacks.health.max_rollbacks)" in said
    assert len(checkpoint("run")["rollbacks"]) == 1
    # who goes on with it all the same is not stopped for the same again
    stop = ["~callbacks.report", "callbacks.health.on_failure=stop"]
    train("gone_on", *FAST, *stop, "ckpt_path=run")
    assert len(history(checkpoint("gone_on"))) == 5
    # or is rolled back further, to none of those that it was stopped for, and the rates add up
    assert {1, 2, 3} <= {*kept(tmp_path / "run" / "checkpoints")}
    said = train("run", *FAST, *BACK, "~callbacks.report", "ckpt_path=run", iterations=8)
    assert said.count("Rolled back to") == 1
    saved = checkpoint("run")
    scale = 0.9 * 0.0078125
    assert [r["to"] for r in saved["rollbacks"]] == [1, 1]
    assert saved["lr_scale"] == scale and len(history(saved)) == 8
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == 0.02 * scale


def test_a_gradient_that_is_no_number_is_a_failure(train):
    """One that comes before there is a checkpoint to go back to."""
    said = train("run", "algo.learning_rate=1e30", *BACK, status=1)
    assert "It is not rolled back: it is so since iteration 1, which" in said
    assert "NonFiniteGradientError: the gradient norm is nan in epoch 0" in said


def test_a_gradient_that_is_no_number_takes_the_run_back(train, monkeypatch):
    monkeypatch.setattr("rlmodules.callbacks.health.KEPT", 9)
    make_ill(PPO, 3, monkeypatch)
    quiet = ["~callbacks.report", "callbacks.health.symptoms=[lost_loss]"]
    said = train("run", *FAST, *BACK, *quiet)
    assert "the gradient norm is nan in epoch 3" in said and "Rolled back to iteration 2;" in said
    saved, lowered = checkpoint("run"), [f"algo.learning_rate={0.02 * 0.0078125}"]
    (rollback,) = saved["rollbacks"]
    assert [rollback[k] for k in ("symptom", "at", "to")] == ["lost_loss", 4, 2]
    lowered.append(f"algo.value_learning_rate={1e-3 * 0.0078125}")
    begun = "ckpt_path=run/checkpoints/rollback-2.last.ckpt"
    train("hand", *FAST[:-1], *lowered, "~callbacks.report", begun)
    assert_same_training(saved, checkpoint("hand"))


def test_two_processes_that_share_a_model_out_go_back_together(tmp_path):
    """All of it, and ``trainer=ddp``, in ``scale/test_rollback.py``."""
    assert_rolled_back_together(tmp_path, "fsdp", "high_kl", at=4)


# ----------------------------------------------------------------- the files of a rollback


def test_files_go_back_to_what_they_were(tmp_path):
    last, best, write = (
        tmp_path / "last.ckpt",
        tmp_path / "best.ckpt",
        AtomicCheckpointIO().save_checkpoint,
    )
    for at in (1, 2, 3, 4):
        write({"at": at}, last)
        if at != 1:
            write({"best": at}, best)
        keep(last, tmp_path, at, 3)
    assert list(kept(tmp_path)) == [2, 3, 4]
    go_back(tmp_path, 3, {"rollbacks": [1]})
    assert torch.load(last) == {"at": 3, "rollbacks": [1]}
    assert torch.load(best) == {"best": 3}
    keep(last, tmp_path, 3, 3)
    assert list(kept(tmp_path)) == [2, 3]  # 4 will not be
    assert torch.load(kept(tmp_path)[2]["last.ckpt"]) == {"at": 2}


def test_a_best_that_was_not_there_then_is_no_longer(tmp_path):
    torch.save({}, tmp_path / "last.ckpt")
    keep(tmp_path / "last.ckpt", tmp_path, 1, 3)
    torch.save({}, tmp_path / "best.ckpt")
    go_back(tmp_path, 1, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "rollback-1.last.ckpt"]


# ----------------------------------------------------------------------- warning, stopping


def test_a_warning_is_said_once_a_symptom_and_changes_nothing(capsys):
    c = config(num_iterations=4, learning_rate=3e-2, ppo_epochs=3)
    watched, plain = (run(c, callbacks=guards)[0] for guards in ([HealthGuard()], []))
    said = capsys.readouterr().out
    said = [line.partition(" ")[2] for line in said.splitlines() if line.startswith("Health: ")]
    assert len({line[:20] for line in said}) == len(said) >= 2  # each symptom once
    assert_same(watched.state_dict(), plain.state_dict())


def test_what_is_no_failure_is_only_said(capsys):
    c = config(num_iterations=4, learning_rate=3e-2, ppo_epochs=3)
    run(c, callbacks=[HealthGuard("stop", symptoms=["cut_off"])])
    assert "Health: The KL to the reference" in capsys.readouterr().out


def test_a_run_of_optimizer_steps_stops_with_a_checkpoint_and_goes_on(tmp_path):
    """In the middle of an epoch, as if nothing had stopped it."""
    c = DPOConfig("random:tiny", batch_size=2, gradient_accumulation_steps=1, num_epochs=2,
                  learning_rate=1e-3, eval_every=100, device="cpu")  # fmt: skip
    straight, _ = pair_helpers.fit(DPO(c))
    guard = AtStep(3)
    with pytest.raises(UnhealthyRunError, match=r"not healthy \(high_kl\)"):
        pair_helpers.fit(DPO(c), folder=tmp_path, callbacks=[guard], save=True)
    path = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 3
    rows, _ = pair_helpers.fit(DPO(c), folder=tmp_path, ckpt_path=path, callbacks=[AtStep(3)])
    assert_same(rows, straight)


class AtStep(HealthGuard):
    """Finds high_kl in all that is no shorter than so many rows."""

    def __init__(self, length):
        super().__init__("stop")
        self.length = length

    def _look(self, trainer, pl_module, *, epoch_ended):
        if len(self.rows) - self.judged_from == self.length and not self.judged_from:
            self.judged_from = self.length
            raise UnhealthyRunError("high_kl", "told", 1, epoch_ended)
        super()._look(trainer, pl_module, epoch_ended=epoch_ended)


def test_a_long_run_is_not_looked_at_after_every_step(monkeypatch):
    looked = []
    module = SimpleNamespace(hparams={}, config=config())
    guard, trainer = HealthGuard(), SimpleNamespace(is_global_zero=True, world_size=1)
    monkeypatch.setattr(
        "rlmodules.callbacks.health.check", lambda c: looked.append(len(c.rows)) or []
    )
    for _ in range(3000):
        guard.rows.append({"train/loss": 0.0})
        guard._look(trainer, module, epoch_ended=False)
    assert looked[:199] == list(range(1, 200))
    assert len(looked) < 600 and max(b - a for a, b in pairwise(looked)) <= 31


# -------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"on_failure": "stp"}, "callbacks.health.on_failure='stp' must be one of .*mean stop"),
        (
            {"on_failure": "stop", "symptoms": ["hihg_kl"]},
            "names 'hihg_kl', .*did you mean high_kl",
        ),
        ({"on_failure": "stop", "symptoms": []}, "must be null or one name at least"),
        ({"symptoms": ["high_kl"]}, "on_failure=warn warns of every one: leave it out"),
        ({"lr_factor": 0.1}, "are of callbacks.health.on_failure=rollback, not of warn"),
        ({"on_failure": "stop", "max_rollbacks": 1}, "on_failure=rollback, not of stop"),
        ({"on_failure": "rollback", "lr_factor": 1.0}, "lr_factor=1.0 must be above 0 and below 1"),
        ({"on_failure": "rollback", "lr_factor": "x"}, "lr_factor='x' must be above 0 and below 1"),
        ({"on_failure": "rollback", "max_rollbacks": 0}, "max_rollbacks=0 must be a whole number"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        HealthGuard(**options)


def test_a_rollback_that_cannot_be_is_refused_before_the_first_step(tmp_path):
    def begin(*callbacks, restarts=True, **changes):
        guard = HealthGuard("rollback")
        guard.restarts = restarts
        run(config(**changes), tmp_path=tmp_path, callbacks=[guard, *callbacks])

    last = partial(SaveLast, tmp_path / "checkpoints")
    with pytest.raises(ValueError, match=r"starts a run again, which train\.py does and this scri"):
        begin(last(every_n_epochs=1), restarts=False)
    with pytest.raises(
        ValueError, match=r"checkpoints that callbacks\.last writes, and it is left"
    ):
        begin()
    with pytest.raises(ValueError, match=r"as algo\.save_every=2 says, which has 2 iterations or"):
        begin(last(every_n_epochs=2))
    assert not list(tmp_path.glob("checkpoints/*"))
