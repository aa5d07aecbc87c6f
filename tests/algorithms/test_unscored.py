"""Episodes that no reward applies to: no baseline, no advantage, no metric, no pair."""

import json
import math
import warnings

import pytest
import torch
from grpo_helpers import attached, rollout_of
from grpo_helpers import config as grpo_config
from grpo_helpers import data as grpo_data
from helpers import PROMPTS, config, data, run

from datamodules import TextGenerationEnv
from datamodules.rollouts.episodes import EpisodeError, require_some
from datamodules.rollouts.streams import _differ
from rlmodules import GRPO, PPO, PPOTrainer
from rlmodules.callbacks import SampleTable
from rlmodules.models.embedded import tiny_tokenizer

NAN = float("nan")


def trl_advantages(rewards, size, scale):
    """As TRL 1.16 computes them (sum_then_normalize), None being NaN."""
    rewards = torch.tensor([NAN if r is None else r for r in rewards]).view(-1, size)
    centred = rewards - rewards.nanmean(1, keepdim=True)
    count = (~rewards.isnan()).sum(1, keepdim=True)
    std = ((centred.square().nanmean(1, keepdim=True)) * count / (count - 1)).sqrt()
    advantages = centred / (std + 1e-4) if scale == "group" else centred
    return advantages.nan_to_num(nan=0.0).flatten()


GROUPS = [
    [1.0, 0.0, None, 0.5, 2.0, 2.0, 2.0, None],
    [None, None, None, None, 1.0, 0.0, 0.0, 0.0],
    [None, None, None, 7.0, None, None, 3.0, 1.0],
    [1.0, 0.0, 0.25, 0.5, 2.0, -2.0, 0.0, 1.0],
]


@pytest.mark.parametrize("scale", ["group", "none"])
@pytest.mark.parametrize("rewards", GROUPS)
def test_advantages_are_those_of_trl(rewards, scale):
    c = grpo_config(batch_size=8, mini_batch_size=8, num_generations=4, scale_rewards=scale)
    experience, _ = attached(GRPO(c)).learn_from(rollout_of(rewards))
    expected = trl_advantages(rewards, 4, scale)
    assert torch.allclose(experience.advantages[:, 0], expected, atol=1e-5)
    assert [a.item() == 0 for a, r in zip(expected, rewards, strict=True) if r is None] == [
        True
    ] * rewards.count(None)
    assert experience.mask.all()  # its tokens, and their KL in the loss, still count


@pytest.mark.parametrize("settings", [
    {"baseline": "leave_one_out", "scale_rewards": "none"},
    {"baseline": "batch", "scale_rewards": "batch"},
])  # fmt: skip
def test_rloo_and_reinforce_leave_them_out_of_baselines_and_kl(settings):
    c = grpo_config(batch_size=4, mini_batch_size=4, num_generations=4, beta=0.5,
                    kl_in_reward=True, **settings)  # fmt: skip
    experience, _ = attached(GRPO(c)).learn_from(rollout_of([1.0, None, 0.0, 2.0], kl=0.3))
    found = experience.advantages[:, 0]
    assert found[1] == 0 and experience.ref_logprobs is None
    if settings["baseline"] == "leave_one_out":
        assert torch.allclose(found[[0, 2, 3]], torch.tensor([0.0, -1.5, 1.5]), atol=1e-5)
    else:
        assert torch.allclose(found[[0, 2, 3]], torch.tensor([0.0, -1.0, 1.0]), atol=1e-3)


def test_ppo_learns_nothing_from_them():
    rewards = [1.0, None, 3.0, None, 5.0, 0.0, 0.0, 2.0]
    module = attached(PPO(config(batch_size=8, mini_batch_size=4)))
    module.kl_controller.value = 0.0
    experience, _ = module.learn_from(rollout_of(rewards))
    applies = torch.tensor([r is not None for r in rewards])
    assert torch.equal(experience.mask, applies[:, None].expand(-1, 2))
    kept = experience.advantages[applies]
    assert kept.mean().abs() < 1e-5 and (experience.advantages[~applies] == 0).all()
    alone, _ = module.learn_from(rollout_of([r for r in rewards if r is not None]))
    assert torch.allclose(kept, alone.advantages, atol=1e-5)
    assert experience.num_actions([1, 3]) == 0


def every_second(prompts, responses, metadata=None):
    return [None if i % 2 else 1.0 + i for i in range(len(responses))]


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_means_are_of_those_that_a_reward_applies_to(algorithm):
    grpo = algorithm == "grpo"
    c = grpo_config(batch_size=8, mini_batch_size=4) if grpo else config(value_warmup_iterations=0)
    module = GRPO(c) if grpo else PPO(c)
    make = grpo_data if grpo else data
    held_out = {"eval_prompts": PROMPTS, "eval_size": 4}
    _, history = run(c, module, data=make(c, every_second, **held_out), limit_val_batches=1.0)
    assert [row["rollout/unscored"] for row in history] == [0.5, 0.5]
    assert [row["rollout/reward"] for row in history] == [4.0, 4.0]  # of 1, 3, 5, 7
    assert history[0]["rollout/reward_std"] == pytest.approx(5**0.5)
    assert history[-1]["val/reward"] == 2.0  # of 1 and 3
    assert all(math.isfinite(v) for row in history for v in row.values())


def nothing(prompts, responses, metadata=None):
    return [None] * len(responses)


def test_a_run_in_which_nothing_applies_is_said_and_ends(tmp_path):
    trainer = PPOTrainer(
        config(num_iterations=9), reward_fn=nothing, output_dir=tmp_path,
        enable_progress_bar=False,
    )  # fmt: skip
    with (
        pytest.warns(UserWarning, match=r"no reward applies to any of these 8 episodes"),
        pytest.raises(EpisodeError, match=r"no reward applies to any of the first 24 episodes"),
    ):
        trainer.train(PROMPTS)


def test_a_batch_in_which_nothing_applies_has_no_mean_reward_and_ends_nothing():
    calls = []

    def first_none(prompts, responses, metadata=None):
        calls.append(1)
        return every_second(prompts, responses) if len(calls) == 2 else nothing(prompts, responses)

    c = config(num_iterations=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, history = run(c, data=data(c, first_none))
    assert ["rollout/reward" in row for row in history] == [False, True] + [False] * 4
    assert all(math.isfinite(v) for row in history for v in row.values())


def test_the_other_processes_have_a_say():
    env = TextGenerationEnv(tiny_tokenizer(), ["a"], reward_fn=nothing)
    env.num_unscored = 100
    trajectories = rollout_of([None] * 4).trajectories
    with pytest.raises(EpisodeError, match="no reward applies"):
        require_some(env, trajectories)
    require_some(env, trajectories, lambda counts: counts + torch.tensor([0.0, 0.0, 1.0, 0.0]))


def test_groups_differ_by_what_applies():
    for rewards, differ in (([1.0, None], False), ([0.0, None, 1.0], True), ([None, None], False)):
        assert _differ(rollout_of(rewards).trajectories) is differ


def test_the_report_of_a_run_whose_last_iteration_has_no_reward_is_written(tmp_path):
    calls = []

    def only_first(prompts, responses, metadata=None):
        calls.append(1)
        return every_second(prompts, responses) if len(calls) == 1 else nothing(prompts, responses)

    trainer = PPOTrainer(
        config(num_iterations=2), reward_fn=[only_first], output_dir=tmp_path,
        enable_progress_bar=False, callbacks=[SampleTable(str(tmp_path))],
    )  # fmt: skip
    metrics = trainer.train(PROMPTS, eval_prompts=["Held", "Out"])
    assert len(metrics["rollout/reward"]) == len(metrics["rollout/reward_only_first"]) == 1
    said = " ".join((tmp_path / "report.txt").read_text().split())
    assert "last training reward (none applies)" in said
    report = json.loads((tmp_path / "report.json").read_text())
    assert "rollout/reward" not in report["history"][-1] and "val/reward" not in report["after"]
    assert "reward (none applies)" in said
