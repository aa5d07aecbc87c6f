"""Held-out episodes: how many problems are solved, and which starting states they are."""

import csv
import math
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from grpo_helpers import PROMPTS, config, data, run

from datamodules import RolloutDataModule, TextGenerationEnv, Trajectory
from datamodules.types import Rollout
from rlmodules import GRPO
from rlmodules.algorithms.held_out import HeldOut
from rlmodules.functional.statistics import pass_at_k
from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.trackers.csv_log import CSVLog

# ------------------------------------------------------------------ one evaluation


class Alone:
    """Stands for a module in a run of one process."""

    trainer = SimpleNamespace(world_size=1)

    def over_ranks(self, means):
        return means.compute(lambda total: total)


class NoReference:
    """What a policy without a reference says of two-token responses."""

    def __init__(self, count):
        self.mask = torch.ones(count, 2, dtype=torch.bool)

    def kl(self):
        return None


def attempts(*outcomes):
    """A rollout of (start, correct) pairs; correct None is an episode that failed."""
    tokenizer = tiny_tokenizer()
    env = TextGenerationEnv(tokenizer, ["x"])
    trajectories = []
    for _, right in outcomes:
        metrics = {} if right is None else {"correct": float(right)}
        action = torch.tensor(tokenizer("ok")["input_ids"])
        trajectory = Trajectory([env.reset(0)], [action], [1.0], [], True, 1.0, metrics)
        trajectory.failed, trajectory.finish_reason = right is None, "eos"
        trajectories.append(trajectory)
    starts = [start for start, _ in outcomes]
    return Rollout(trajectories, NoReference(len(starts)), {}, starts)


def summed_up(*rollouts):
    held_out = HeldOut()
    rows = [held_out.add(rollout, tiny_tokenizer()) for rollout in rollouts]
    return held_out, held_out.metrics(Alone()), rows


def test_pass_at_1_and_at_k_are_means_over_starting_states():
    first = attempts((3, 1), (3, 0), (3, 0), (8, 0), (8, 0), (8, 0))
    second = attempts((5, 0), (5, 1), (5, 1))
    held_out, metrics, rows = summed_up(first, second)
    assert metrics["val/pass@1"] == pytest.approx((1 / 3 + 0 + 2 / 3) / 3)
    assert metrics["val/pass@3"] == pytest.approx(2 / 3)
    assert "val/pass@2" not in metrics
    assert held_out.solved == {3: True, 5: False, 8: False}  # by the first attempt
    assert [len(some) for some in rows] == [6, 3]


def test_failed_attempts_are_left_out_and_the_next_evaluation_starts_afresh():
    held_out, metrics, rows = summed_up(attempts((3, None), (3, 1), (8, 0), (8, 1)))
    assert metrics["val/pass@1"] == pytest.approx((1 + 1 / 2) / 2)
    assert len(rows[0]) == 3
    held_out.add(attempts((3, 0)), tiny_tokenizer())
    assert held_out.metrics(Alone())["val/pass@1"] == 0.0


def test_without_the_metric_correct_nothing_is_said_of_problems_solved():
    rollout = attempts((3, 1))
    del rollout.trajectories[0].metrics["correct"]
    held_out, metrics, _ = summed_up(rollout)
    assert not any("pass@" in name for name in metrics) and held_out.solved == {}
    assert metrics["val/reward"] == 1.0 and metrics["val/eos_fraction"] == 1.0


# -------------------------------------------------------------- through a Trainer


class Puzzle(TextGenerationEnv):
    """A response is right if its first byte is even; remembers what was played."""

    log: list

    def reset(self, index=None):
        self.start = index
        return super().reset(index)

    def respond(self, tokens):
        self.right = float(tokens[0] % 2 == 0)
        return super().respond(tokens)

    def score(self, episodes):
        self.log += [(e.start, e.right) for e in episodes]
        return [(e.right, {"correct": e.right, "reward_even": e.right}) for e in episodes]


def puzzle(**attributes):
    env = Puzzle(tiny_tokenizer(), PROMPTS)
    vars(env).update({"log": []} | attributes)
    return env


def validate(module, d, logger=False):
    trainer = L.Trainer(
        accelerator="cpu", logger=logger, enable_progress_bar=False, enable_model_summary=False
    )
    return trainer.validate(module, d, verbose=False)[0]


@pytest.mark.parametrize("at_once", [3, 4, 100])
def test_several_attempts_at_each_held_out_problem_give_pass_at_k(at_once):
    env = puzzle(held_out=[4, 1, 2])
    module, c = GRPO(config()), config()
    d = data(c, env=env, eval_size=10, eval_generations=4, eval_batch_size=at_once)
    metrics = validate(module, d)
    assert [start for start, _ in env.log] == [4] * 4 + [1] * 4 + [2] * 4
    tries = {s: [right for start, right in env.log if start == s] for s in (4, 1, 2)}
    assert len({tuple(some) for some in tries.values()}) > 1  # attempts differ
    mean = lambda k: sum(pass_at_k(4, int(sum(t)), k) for t in tries.values()) / 3  # noqa: E731
    assert metrics["val/pass@1"] == pytest.approx(mean(1))
    assert metrics["val/pass@4"] == pytest.approx(mean(4))
    assert metrics["val/reward"] == metrics["val/reward_even"] == pytest.approx(mean(1))
    assert module.held_out.solved == {s: bool(t[0]) for s, t in sorted(tries.items())}


def test_what_an_evaluation_alone_returns_its_logger_has_once(tmp_path):
    """As Lightning's users know it, of a Trainer of their own."""
    d = data(config(), env=puzzle(held_out=range(3)), eval_size=3)
    metrics = validate(GRPO(config()), d, CSVLog(tmp_path))
    with (tmp_path / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert {name: float(value) for name, value in row.items()} == pytest.approx(metrics)
    assert metrics["val/reward"] == metrics["val/pass@1"] and metrics["step"] == 0


def test_a_second_evaluation_plays_the_same_texts_however_many_at_once():
    logs = []
    for at_once in (1, 5, 5):
        env = puzzle(held_out=range(3))
        validate(GRPO(config()), data(config(), env=env, eval_size=3, eval_batch_size=at_once))
        logs.append(env.log)
    assert logs[0] == logs[1] == logs[2] and len(logs[0]) == 3


def held_and_trained(**options):
    """(held out, trained on) of a data module that was set up."""
    d = data(config(), **options)
    d.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    d.trainer.strategy._lightning_module = GRPO(config())
    d.setup()
    return list(d.eval_starts), list(d.train_starts)


def test_what_an_environment_holds_out_is_evaluated_on_and_never_trained_on():
    assert held_and_trained(env=puzzle(held_out=[4, 1]), eval_size=10) == ([4, 1], [0, 2, 3, 5])
    assert held_and_trained(env=puzzle(held_out=[4, 1]), eval_size=1) == ([4], [0, 2, 3, 5])
    assert held_and_trained(env=puzzle(held_out=[4, 1]), eval_size=0) == ([], [0, 2, 3, 5])
    assert held_and_trained(env=puzzle(held_out=()), eval_size=2) == ([], [*range(6)])


def test_an_environment_given_as_an_object_holds_out_its_own_alone():
    assert held_and_trained(env=puzzle(), eval_size=2) == ([], [*range(6)])


def test_of_what_makes_an_environment_eval_size_states_are_drawn_with_the_seed():
    make = lambda tokenizer: puzzle()  # noqa: E731
    held, trained = held_and_trained(env=make, eval_size=2)
    assert len(held) == 2 and sorted(held + trained) == [*range(6)]
    assert held_and_trained(env=make, eval_size=2) == (held, trained)
    others = [held_and_trained(env=make, eval_size=2, seed=s)[0] for s in range(1, 6)]
    assert any(sorted(other) != sorted(held) for other in others)
    own = held_and_trained(env=lambda tokenizer: puzzle(held_out=[3]), eval_size=2)
    assert own == ([3], [0, 1, 2, 4, 5])


def test_prompts_given_for_evaluation_are_held_out_up_to_eval_size():
    held, trained = held_and_trained(eval_prompts=["a", "b", "c"], eval_size=2)
    assert (held, trained) == ([6, 7], [*range(6)])
    assert held_and_trained(eval_prompts=["a", "b"], eval_size=0) == ([], [*range(6)])


def test_an_evaluation_needs_something_left_to_train_on():
    with pytest.raises(ValueError, match=r"data\.eval_size=6 would hold out all 6"):
        held_and_trained(eval_size=6)
    with pytest.raises(ValueError, match="nothing is left to train on"):
        held_and_trained(env=puzzle(held_out=range(6)), eval_size=6)


def test_without_held_out_states_a_run_evaluates_nothing():
    c = config(num_iterations=1)
    _, history = run(c, data=data(c, env=puzzle(), eval_size=2))
    assert not any(name.startswith("val/") for name in history[0])


def test_evaluation_while_training_disturbs_neither_the_texts_nor_the_steps():
    c = config(num_iterations=2)
    _, with_val = run(c, data=data(c, eval_prompts=["Seven"], eval_size=1))
    _, without = run(c, data=data(c))
    for row, other in zip(with_val, without, strict=True):
        for name in ("rollout/reward", "rollout/entropy", "train/loss", "train/grad_norm"):
            assert row[name] == other[name]
        assert math.isfinite(row["val/reward"])


def test_a_path_and_a_list_of_prompts_are_one_too_many():
    with pytest.raises(ValueError, match=r"either data\.prompts .* or data\.path"):
        RolloutDataModule(lambda t: puzzle(), prompts=PROMPTS, path="prompts.txt")
