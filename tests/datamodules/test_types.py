"""Episodes as token sequences, by hand; and what a policy must have."""

from types import SimpleNamespace

import pytest
import torch

from datamodules import Observation, PreferenceDataModule, RolloutDataModule, Trajectory
from datamodules.types import Rollout, action_rewards, as_policy, as_text_learner, sequence_of
from rlmodules import DPO, PPO, DPOConfig, PPOConfig
from rlmodules.models.embedded import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def observation(*ids: int) -> Observation:
    return Observation(torch.tensor(ids), torch.ones(len(ids), dtype=torch.long), "p")


def trajectory(turns, rewards=None) -> Trajectory:
    """From pairs (context, action) of token ids."""
    actions = [torch.tensor(action) for _, action in turns]
    return Trajectory(
        observations=[observation(*context) for context, _ in turns],
        actions=actions,
        rewards=rewards or [0.0] * len(turns),
        logprobs=[torch.zeros(len(action)) for action in actions],
        done=True,
        total_reward=sum(rewards or []),
    )


# Two episodes of one turn, and one of two turns with an answer of the environment in between.
ONE = trajectory([((10, 11, 12), (20, 21))], rewards=[1.5])
SHORT = trajectory([((13,), (22,))], rewards=[-1.0])
TWO = trajectory([((10, 11), (20, 21, 22)), ((10, 11, 20, 21, 22, 90, 91), (23,))], [0.5, 2.0])


def test_the_sequence_of_one_turn_is_prompt_and_response():
    sequence, positions = sequence_of(ONE)
    assert sequence.tolist() == [10, 11, 12, 20, 21]
    assert positions.tolist() == [3, 4]


def test_the_sequence_of_two_turns_holds_each_token_once_and_marks_only_the_policys():
    sequence, positions = sequence_of(TWO)
    assert sequence.tolist() == [10, 11, 20, 21, 22, 90, 91, 23]
    assert positions.tolist() == [2, 3, 4, 7]
    assert sequence[positions].tolist() == [20, 21, 22, 23]


def test_a_context_that_was_rewritten_between_turns_is_noticed():
    turns = [((10, 11), (20, 21)), ((10, 11, 20, 99, 90), (22,))]
    with pytest.raises(AssertionError, match="rewritten"):
        sequence_of(trajectory(turns))


def test_each_actions_reward_stands_on_its_last_token():
    mask = torch.tensor([[True, True, False, False], [True] * 4, [True, False, False, False]])
    rewards = action_rewards([ONE, TWO, SHORT], mask)
    assert rewards.tolist() == [[0, 1.5, 0, 0], [0, 0, 0.5, 2.0], [-1.0, 0, 0, 0]]


def test_of_a_failed_episode_nothing_is_learned():
    failed = trajectory([((10, 11), (20, 21))], rewards=[1.5])
    failed.failed = True
    assert sequence_of(failed)[1].tolist() == []
    mask = torch.tensor([[True, True], [True, False]])
    assert action_rewards([failed, SHORT], mask).tolist() == [[0, 0], [-1.0, 0]]


def test_an_empty_rollout_has_nothing_to_say():
    rollout = Rollout.empty()
    assert rollout.trajectories == [] and rollout.evaluation.kl() is None
    assert rollout.evaluation.mask.sum() == 0


# ------------------------------------------------------------- what data modules ask of a module

LEARNER = {"tokenizer": TOKENIZER, "closes_texts": False, "learns_from": "preferences"}


def test_an_online_algorithm_is_a_policy_and_one_that_reads_pairs_is_a_learner():
    ppo, dpo = PPO(PPOConfig(model_name="random:tiny")), DPO(DPOConfig(model_name="random:tiny"))
    assert as_policy(ppo) is ppo and as_text_learner(dpo, "preferences") is dpo
    with pytest.raises(ValueError, match=r"DPO has no act, evaluate, .*data=rollouts .*algo=ppo"):
        as_policy(dpo)
    with pytest.raises(
        ValueError, match=r"PPO has no closes_texts, learns_from: data=preferences .*algo=dpo"
    ):
        as_text_learner(ppo, "preferences")


@pytest.mark.parametrize(
    ("data", "members", "missing"),
    [
        (RolloutDataModule(lambda tokenizer: None), {"tokenizer": TOKENIZER}, "act, base_model"),
        (
            PreferenceDataModule("pairs.jsonl"),
            {"tokenizer": TOKENIZER},
            "closes_texts, learns_from:",
        ),
        (
            PreferenceDataModule("x.jsonl"),
            {"tokenizer": None, "closes_texts": False, "learns_from": "preferences"},
            "tokenizer:",
        ),
    ],
)
def test_data_that_the_algorithm_cannot_use_is_refused_before_it_is_read(data, members, missing):
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(**members), strategy=strategy)
    with pytest.raises(ValueError, match=f"the algorithm SimpleNamespace has no {missing}"):
        data.setup("fit")
