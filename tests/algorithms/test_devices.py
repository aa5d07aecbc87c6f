"""What a run asks of its device, and of all its processes: no float64, and one decision of all."""

from types import SimpleNamespace

import grpo_helpers
import pytest
import torch
from helpers import config, run
from pair_helpers import fit
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlmodules import (
    DPO,
    GRPO,
    ORPO,
    PPO,
    DPOConfig,
    ORPOConfig,
    RewardModel,
    RewardModelConfig,
)
from rlmodules import functional as F
from rlmodules.algorithms.means import Means
from rlmodules.functional import calibration


class Narrow(torch.Tensor):
    """A tensor on a device that, as Apple's, has no float64; ``cpu()`` leads off it."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs or {})
        if func is torch.Tensor.cpu:
            return out.as_subclass(torch.Tensor)
        if any(isinstance(x, Narrow) and x.dtype == torch.float64 for x in tree_leaves(out)):
            raise TypeError("Cannot convert a tensor to float64: the device has none")
        return out


def some(*shape):
    return (0.1 + torch.rand(*shape)).as_subclass(Narrow)


BA, B, MASK = some(4, 3), some(4), torch.ones(4, 3, dtype=torch.bool).as_subclass(Narrow)
POLICY = {"logprobs_BA": BA, "old_logprobs_BA": BA + 1, "advantages_BA": BA, "mask_BA": MASK,
          "num_actions": 12.0}  # fmt: skip
CRITIC = {"values_BA": BA, "old_values_BA": BA + 1, "returns_BA": BA - 1, "value_clip": 0.2}
LOGPS = F.PairLogps(B, B - 1, B + 1, B - 2, chosen_lengths=B + 3, rejected_lengths=B + 2)
MATHS = {
    "means": lambda: (F.masked_mean(BA, MASK), F.masked_var(BA, MASK), F.whiten(BA, MASK)),
    "explained": lambda: F.explained_variance(BA, BA + 1, MASK),
    "gae": lambda: F.gae(BA, BA, MASK, gamma=0.9, lam=0.9),
    "kl": lambda: [F.kl_estimate(BA, BA + 1, k) for k in F.KL_ESTIMATORS] + [F.exact_kl(BA, -BA)],
    "ppo": lambda: F.ppo_loss(
        **POLICY, **CRITIC, clip_ratio=0.2, entropy_BA=BA, entropy_coef=0.1, value_coef=0.5
    ),
    "importance": lambda: F.importance_sampling_loss(**POLICY),
    "advantages": lambda: [
        F.group_advantages(B, MASK[:, 0], 2, baseline=b, scale=s) for b in F.BASELINES
        for s in F.SCALES
    ],
    "grpo": lambda: [
        F.grpo_loss(**POLICY, max_new_tokens=3, loss_type=kind, importance_sampling_level=level,
                    ref_logprobs_BA=BA, beta=0.1, epsilon_high=5.0)
        for kind in F.GRPO_LOSSES for level in F.LEVELS
    ],
    "dpo": lambda: [
        F.dpo_loss(logps=LOGPS, loss_types={kind: 1.0}, num_pairs=4, num_tokens=9,
                   shape=F.DPOShape(beta=0.1, label_smoothing=0.1, discopop_tau=0.05))
        for kind in F.DPO_LOSSES
    ],
    "calibration": lambda: (calibration.calibration_error(B - 0.5),
                            calibration.fit_temperature(B - 0.5)),
    "correlation": lambda: (calibration.correlation(B, B + 1), calibration.concordance(B, -B)),
}  # fmt: skip


def test_such_a_tensor_notices_float64():
    for widen in (
        torch.Tensor.double,
        lambda x: x.to(torch.float64),
        lambda x: x.type("torch.DoubleTensor"),
    ):
        with pytest.raises(TypeError, match="float64"):
            widen(B)
    assert B.cpu().double().dtype == torch.float64


@pytest.mark.parametrize("name", MATHS)
def test_the_maths_needs_no_float64_on_its_device(name):
    assert tree_leaves(MATHS[name]())


def test_advantages_come_back_to_where_the_rewards_were_and_are_what_they_are_elsewhere():
    rewards, counts = torch.tensor([1.0, 0.0, 0.3, 0.3]), torch.ones(4, dtype=torch.bool)
    here = F.group_advantages(rewards.as_subclass(Narrow), counts.as_subclass(Narrow), 2)
    assert here.dtype == torch.float32 and torch.equal(here, F.group_advantages(rewards, counts, 2))
    assert here[2:].tolist() == [0.0, 0.0]


class NoFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        assert all(x.dtype != torch.float64 for x in made), f"{func} makes float64"
        return out


def strict(module, *names):
    """``module``, whose methods of these names make no float64 tensor."""
    if "act" in names:  # how to sample is found out by trying, and compared on the CPU
        module.sampler([torch.tensor([5])], module.sampling, [0])
    for name in names:
        method = getattr(module, name)

        def guarded(*args, method=method, **kwargs):
            with NoFloat64():
                return method(*args, **kwargs)

        setattr(module, name, guarded)
    return module


ON_DEVICE = ("training_step", "configure_gradient_clipping", "act", "evaluate")


@pytest.mark.filterwarnings("error:.*writes slowly")
def test_a_ppo_iteration_computes_without_float64():
    c = config(num_iterations=1)
    _, history = run(c, strict(PPO(c), *ON_DEVICE))
    assert history[0]["train/ratio"] > 0


@pytest.mark.filterwarnings("error:.*writes slowly")
def test_a_grpo_iteration_computes_without_float64():
    c = grpo_helpers.config(num_iterations=1, beta=0.1)
    grpo_helpers.run(c, strict(GRPO(c), *ON_DEVICE))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(DPO, DPOConfig), (ORPO, ORPOConfig), (RewardModel, RewardModelConfig)],
    ids=lambda value: value.__name__,
)
def test_a_step_on_pairs_computes_without_float64(kind, settings):
    c = settings(
        model_name="random:tiny", batch_size=4, gradient_accumulation_steps=1, num_epochs=1
    )
    steps, _ = fit(strict(kind(c), "training_step", "configure_gradient_clipping"))
    assert len(steps) == 2


def test_sums_over_one_process_never_go_to_its_device():
    module = PPO(config())
    root = SimpleNamespace(root_device=torch.device("meta"))  # whose tensors hold nothing
    module._trainer = SimpleNamespace(world_size=1, strategy=root)
    sums = module.sum_over_ranks(torch.tensor([0.1, 7.0], dtype=torch.float64))
    assert sums.tolist() == [0.1, 7.0]


# ------------------------------------------------------------------------ one decision of all


def note(module, index, kl, count):
    """A minibatch of ``count`` tokens begins, and is trained on."""
    module.on_train_batch_start(None, index)
    tokens = SimpleNamespace(positions=[torch.arange(count)])
    module._loss = lambda batch: (torch.zeros(()), {"approx_kl": torch.tensor(kl)})
    module.training_step(SimpleNamespace(tokens=tokens, num_actions=count), index)


@pytest.mark.parametrize(
    ("here", "elsewhere", "stops"),
    [
        ([(0.3, 10), (0.0, 30)], [(0.0, 0), (0.0, 0)], False),  # 3 / 40: one minibatch alone is not
        ([(0.0, 30), (0.3, 10)], [(0.0, 0), (0.0, 0)], False),  # neither first nor last
        ([(0.3, 30), (0.0, 10)], [(0.0, 0), (0.0, 0)], True),  # 9 / 40
        ([(0.3, 10), (0.3, 10)], [(0.0, 40), (0.0, 20)], False),  # 6 / 80: the others' count too
        ([(0.0, 10), (0.0, 10)], [(0.3, 40), (0.3, 40)], True),  # 24 / 100: seen elsewhere alone
        ([(0.125, 1), (0.125, 1)], [(0.125, 1), (0.125, 1)], False),  # exceeds, not reaches
    ],
)
def test_a_kl_early_stop_is_decided_by_the_whole_window_of_all_processes(here, elsewhere, stops):
    module = PPO(config(early_stop_kl=0.125, gradient_accumulation_steps=2))
    module._trainer = SimpleNamespace(accumulate_grad_batches=2, current_epoch=0)
    others = torch.tensor([[sum(kl * n for kl, n in elsewhere), sum(n for _, n in elsewhere)]])
    module.sum_over_ranks = lambda x: x + others
    for index, (kl, count) in enumerate(here):
        note(module, index, kl, count)
        assert not module.skip_updates
    module.on_train_batch_start(None, 2)
    assert module.skip_updates is stops
    module.on_train_batch_start(None, 4)  # with no pass in between it stays as it is
    assert module.skip_updates is stops


def test_half_a_window_survives_a_checkpoint():
    module, other = (PPO(config(early_stop_kl=0.1, gradient_accumulation_steps=2)) for _ in "ab")
    module._trainer = other._trainer = SimpleNamespace(accumulate_grad_batches=2, current_epoch=0)
    note(module, 0, 0.5, 10)
    other.load_iteration_state(module.iteration_state())
    other.sum_over_ranks = lambda x: x
    note(other, 1, 0.0, 10)
    other.on_train_batch_start(None, 2)
    assert other.skip_updates  # 0.25
    old = {k: v for k, v in module.iteration_state().items() if k != "window_kl"}
    other.load_iteration_state(old)  # of a checkpoint before there was such a thing
    assert other._window_kl.state_dict() == Means().state_dict()
