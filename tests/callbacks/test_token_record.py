"""What is kept of single tokens is what they were trained on, and keeping it changes nothing."""

import json
import math
import signal
from types import SimpleNamespace

import grpo_helpers
import pytest
import torch
from helpers import SignalAt, assert_same, config, count_e, data, run, weights

from rlmodules import GRPO, PPO
from rlmodules.callbacks import SaveLast, TokenRecord, newest_checkpoint
from rlmodules.callbacks.stopping import StoppedBySignal
from rlmodules.callbacks.token_record import chosen

CLOSE = {"rel": 1e-3, "abs": 1e-9}
"""Four digits are kept."""


class Watch:
    """Remembers what went into training."""

    def __init__(self, module):
        self.seen = []
        module.watchers = [lambda *both: self.seen.append(both)]


def kept_in(folder):
    paths = sorted((folder / "tokens").glob("iteration-*.json"))
    return [json.loads(path.read_text()) for path in paths]


def row_of(rollout, episode):
    """The played episode that was kept, by what it was asked and what it wrote."""
    (row,) = [
        row
        for row, trajectory in enumerate(rollout.trajectories)
        if trajectory.observations[0].prompt == episode["prompt"]
        and trajectory.logprobs[0].tolist()
        == pytest.approx(episode["columns"]["logprob"], rel=1e-2)
    ]
    return row


def check_columns(rollout, experience, episode, names):
    row, columns = row_of(rollout, episode), episode["columns"]
    count = int(experience.mask[row].sum())
    assert set(columns) == names
    assert all(len(column) == count for column in columns.values())
    whole = {
        "advantage": experience.advantages,
        "value": experience.values,
        "return": experience.returns,
        "shaped": experience.rewards,
        "kl": rollout.evaluation.kl(),
        "logprob": rollout.evaluation.logprobs,
    }
    for name in names & whole.keys():
        assert columns[name] == pytest.approx(whole[name][row, :count].tolist(), **CLOSE)
    assert columns["reward"] == pytest.approx([*[0] * (count - 1), episode["reward"]], **CLOSE)
    assert columns["mask"] == [1] * count
    assert sum(map(len, [s[1] for s in episode["segments"] if s[0] == "response"])) == count


ALWAYS = {"reward", "advantage", "logprob", "mask", "ratio", "entropy"}


def test_ppo_keeps_what_it_was_trained_on(tmp_path):
    c = config()
    watch = Watch(module := PPO(c))
    run(c, module, callbacks=[TokenRecord(tmp_path, 3)])
    kept = kept_in(tmp_path)
    assert [one["iteration"] for one in kept] == [1, 2]
    for one, (rollout, experience) in zip(kept, watch.seen, strict=True):
        assert len(one["episodes"]) == 3
        for episode in one["episodes"]:
            names = ALWAYS | {"shaped", "value", "return", "kl"}
            check_columns(rollout, experience, episode, names)
            assert episode["segments"][0] == ["prompt", episode["prompt"]]
    # The last ratios are of the policy as it is now, over the one that sampled.
    rollout, experience = watch.seen[-1]
    episode = kept[-1]["episodes"][0]
    row = row_of(rollout, episode)
    tokens = experience.minibatch([row], 1.0).tokens
    now = module.policy.score(tokens, temperature=c.temperature, with_entropy=True)
    old = experience.old_logprobs[row, : len(now.logprobs)]
    assert episode["columns"]["ratio"] == pytest.approx(
        (now.logprobs - old).exp().tolist(), **CLOSE
    )
    assert episode["columns"]["entropy"] == pytest.approx(now.entropy.tolist(), **CLOSE)
    assert max(abs(ratio - 1) for ratio in episode["columns"]["ratio"]) > 1e-3


def test_grpo_has_no_critic_and_without_beta_no_reference(tmp_path):
    module = GRPO(grpo_helpers.config(beta=0.0))
    watch = Watch(module)
    c = module.config
    run(c, module, data=grpo_helpers.data(c), callbacks=[TokenRecord(tmp_path)])
    rollout, experience = watch.seen[0]
    for episode in kept_in(tmp_path)[0]["episodes"]:
        check_columns(rollout, experience, episode, ALWAYS)


def test_what_is_not_learned_from_is_shown_as_such(tmp_path):
    """Failed episodes have no numbers; those that no reward applies to are masked."""
    scores = iter([[None, 0.5, math.nan, 1.0], [0.0] * 4])

    def odd(prompts, responses, metadata=None):
        return [x if x is None or x == x else 0.25 for x in next(scores)]

    c = config(batch_size=4, num_iterations=1)
    run(c, data=data(c, odd), callbacks=[TokenRecord(tmp_path, 4)])
    (kept,) = kept_in(tmp_path)
    left_out = [e for e in kept["episodes"] if e["reward"] is None]
    assert [set(e["columns"]["mask"]) for e in left_out] == [{0}]
    assert all("ratio" not in e["columns"] for e in left_out)
    assert len(kept["episodes"]) == 4


def test_keeping_tokens_changes_no_bit_of_the_training(tmp_path):
    torch.manual_seed(0)
    alone, history = run(config())
    torch.manual_seed(0)
    watched, other = run(config(), callbacks=[TokenRecord(tmp_path)])
    assert torch.equal(weights(alone), weights(watched))
    assert_same(history, other)


def fit(folder, *callbacks, ckpt_path=None):
    import lightning as L

    c = config(num_iterations=3)
    options = {"max_epochs": 3, "accelerator": "cpu", "logger": False, "num_sanity_val_steps": 0}
    keep = [TokenRecord(folder, 2), *callbacks, SaveLast(folder / "checkpoints")]
    silent = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(**options, **silent, callbacks=keep)
    trainer.fit(PPO(c), data(c, count_e), ckpt_path=ckpt_path, weights_only=True)


@pytest.mark.parametrize("batch", [0, 2])
def test_a_run_that_goes_on_keeps_the_same_as_one_that_never_stopped(tmp_path, batch):
    fit(tmp_path / "straight")
    with pytest.raises(StoppedBySignal):
        fit(tmp_path / "first", SignalAt(1, batch, signal.SIGTERM))
    before = kept_in(tmp_path / "first")
    assert [one["iteration"] for one in before] == [1, 2]  # as soon as it was played
    assert "ratio" not in before[1]["episodes"][0]["columns"]
    fit(tmp_path / "first", ckpt_path=newest_checkpoint(tmp_path / "first"))
    assert kept_in(tmp_path / "first") == kept_in(tmp_path / "straight")


@pytest.mark.parametrize(
    ("starts", "rewards", "known", "rows"),
    [
        ([4, 5, 6, 7], [0.1, 0.9, 0.5, 0.3], [], [0, 1, 2]),  # best, worst, then the next best
        ([4, 5, 6, 7], [0.1, 0.9, 0.5, 0.3], [7, 9], [0, 1, 3]),
        ([4, 4, 5, 5], [0.0, 1.0, 2.0, 3.0], [5, 4], [0, 2, 3]),
        ([4, 5], [1.0, 1.0], [], [0, 1]),
        ([], [0.0, 2.0, 1.0, 3.0], [], [0, 1, 3]),  # whoever plays knows no starts
    ],
)
def test_known_starts_come_first_then_the_best_and_the_worst(starts, rewards, known, rows):
    assert chosen(starts, rewards, known, 3) == rows


def test_nothing_is_kept_by_other_processes_or_of_none():
    with pytest.raises(ValueError, match="episodes=0 must be at least 1"):
        TokenRecord("unused", 0)
    module = SimpleNamespace(watchers=[])
    TokenRecord("unused").setup(SimpleNamespace(is_global_zero=False), module, "fit")
    TokenRecord("unused").setup(SimpleNamespace(is_global_zero=True), SimpleNamespace(), "fit")
    assert module.watchers == []
