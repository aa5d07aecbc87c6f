"""Models that judge stand on the device of their own process."""

import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from datamodules import RolloutDataModule, TextGenerationEnv, rewards
from datamodules.rewards import devices
from datamodules.rewards.judges import as_judge
from datamodules.rewards.scorers import reward_of
from datamodules.text.encoding import Window
from datamodules.types import Policy
from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.reward_models import serving
from rlmodules.reward_models.scalar import RewardModel, RewardModelConfig

THIRD = torch.device("cuda", 3)


@pytest.fixture(autouse=True)
def forget():
    yield
    devices.set_own_device(None)


class Scorer(nn.Module):
    """Notes where it is sent."""

    tokenizer, limits = tiny_tokenizer(), Window.of(64)

    def __init__(self):
        super().__init__()
        self.sent = []

    def to(self, device):
        self.sent.append(torch.device(device))
        return self

    def predict_ids(self, ids, batch_size=1):
        return [0.5] * len(ids)

    def compare_ids(self, firsts, seconds, batch_size=1):
        return [0.0] * len(firsts)


def test_a_model_follows_the_process_whenever_it_is_used_and_in_any_thread():
    scorer = devices.place(Scorer(), None)
    reward = reward_of(scorer)
    devices.set_own_device(THIRD)
    thread = threading.Thread(target=reward, args=(["a"], ["b"]))
    thread.start()
    thread.join()
    assert scorer.sent == [THIRD]
    as_judge(scorer, scorer.tokenizer)(["a"], ["b"], ["c"])
    assert scorer.sent == [THIRD, THIRD]


def test_a_model_that_was_placed_stays_and_a_given_one_is_left_where_it_is():
    placed = devices.place(Scorer(), "cuda:1")
    devices.set_own_device(THIRD)
    reward_of(placed)(["a"], ["b"])
    assert placed.sent == [torch.device("cuda", 1)]
    given = Scorer()
    reward_of(given)(["a"], ["b"])
    assert given.sent == []


@pytest.mark.parametrize(("rank", "index"), [(None, 0), ("0", 0), ("3", 3), ("5", 1)])
def test_without_a_trainer_it_is_the_gpu_of_the_rank(monkeypatch, rank, index):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert devices.own_device() == torch.device("cuda", index)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.own_device() == torch.device("cpu")


def test_the_data_module_says_which_device_the_trainer_gave_to_this_process():
    def make(tokenizer, prompts):
        assert devices.own_device() == THIRD  # before the environment loads anything
        return TextGenerationEnv(tokenizer, prompts)

    data = RolloutDataModule(make, prompts=["a", "b"], eval_size=0)
    names = [name for name in dir(Policy) if not name.startswith("_")]
    policy = SimpleNamespace(
        **dict.fromkeys(names, 0) | {"tokenizer": tiny_tokenizer(), "fits": lambda *_: True}
    )
    data.trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=THIRD),
        lightning_module=policy,
        world_size=4,
        is_global_zero=True,
    )
    data.setup()


def test_all_that_is_loaded_by_its_path_follows(tmp_path, monkeypatch):
    moved = []
    monkeypatch.setattr(devices, "follow", moved.append)
    monkeypatch.setattr("datamodules.rewards.scorers.follow", moved.append)
    tokenizer = tiny_tokenizer()
    model = RewardModel(RewardModelConfig(model_name="random:tiny", max_length=64,
                                          max_prompt_length=32))  # fmt: skip
    model.export(tmp_path / "ours")
    for load in (serving.model, rewards.model):
        load(str(tmp_path / "ours"))(["a"], ["b"])
        assert moved.pop() in devices._followers and not moved
        load(str(tmp_path / "ours"), device="cpu")(["a"], ["b"])
        assert moved.pop() not in devices._followers
    env = serving.preference_env(tokenizer, ["a"], str(tmp_path / "ours"))
    env.judge(["a"], ["b"], ["c"])
    assert moved.pop() in devices._followers
