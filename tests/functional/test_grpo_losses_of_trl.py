"""The GRPO losses against TRL's own values."""

import pytest
from grpo_loss_helpers import batch_of, loss_and_gradient
from torch import tensor

# (loss, norm of its gradient) of trl.GRPOTrainer._compute_loss in TRL 1.16.0 on the tensors below,
# with epsilon 0.2, max_completion_length 6, and num_items_in_batch 14 over the two accumulated
# minibatches of a step; times 2, which TRL divides by there and Lightning here.
TRL = {
    ("grpo", "token", 0.0, 0.1): (-0.376381, 0.149573),
    ("grpo", "token", 0.0, 0.35): (-0.419371, 0.264438),
    ("grpo", "token", 0.1, 0.1): (-0.350933, 0.155288),
    ("grpo", "token", 0.1, 0.35): (-0.393923, 0.268263),
    ("grpo", "sequence", 0.0, 0.1): (-0.385752, 0.226209),
    ("grpo", "sequence", 0.0, 0.35): (-0.391436, 0.242709),
    ("grpo", "sequence", 0.1, 0.1): (-0.360304, 0.231824),
    ("grpo", "sequence", 0.1, 0.35): (-0.365988, 0.247957),
    ("dr_grpo", "token", 0.0, 0.1): (-0.299774, 0.096149),
    ("dr_grpo", "token", 0.0, 0.35): (-0.326582, 0.174299),
    ("dr_grpo", "token", 0.1, 0.1): (-0.290004, 0.097415),
    ("dr_grpo", "token", 0.1, 0.35): (-0.316812, 0.175376),
    ("dr_grpo", "sequence", 0.0, 0.1): (-0.303835, 0.150806),
    ("dr_grpo", "sequence", 0.0, 0.35): (-0.306677, 0.157088),
    ("dr_grpo", "sequence", 0.1, 0.1): (-0.294065, 0.152850),
    ("dr_grpo", "sequence", 0.1, 0.35): (-0.296907, 0.159054),
    ("dapo", "token", 0.0, 0.1): (-0.770847, 0.247240),
    ("dapo", "token", 0.0, 0.35): (-0.839782, 0.448198),
    ("dapo", "token", 0.1, 0.1): (-0.745725, 0.250497),
    ("dapo", "token", 0.1, 0.35): (-0.814660, 0.450967),
    ("dapo", "sequence", 0.0, 0.1): (-0.781289, 0.387787),
    ("dapo", "sequence", 0.0, 0.35): (-0.788597, 0.403942),
    ("dapo", "sequence", 0.1, 0.1): (-0.756167, 0.393044),
    ("dapo", "sequence", 0.1, 0.35): (-0.763475, 0.408997),
    ("bnpo", "token", 0.0, 0.1): (-0.599548, 0.192298),
    ("bnpo", "token", 0.0, 0.35): (-0.653164, 0.348598),
    ("bnpo", "token", 0.1, 0.1): (-0.580008, 0.194831),
    ("bnpo", "token", 0.1, 0.35): (-0.633624, 0.350752),
    ("bnpo", "sequence", 0.0, 0.1): (-0.607669, 0.301612),
    ("bnpo", "sequence", 0.0, 0.35): (-0.613353, 0.314177),
    ("bnpo", "sequence", 0.1, 0.1): (-0.588130, 0.305701),
    ("bnpo", "sequence", 0.1, 0.35): (-0.593814, 0.318109),
    ("cispo", "token", 0.0, 1.1): (0.552618, 0.433791),
    ("cispo", "token", 0.0, 5.0): (0.609627, 0.470883),
    ("cispo", "token", 0.1, 1.1): (0.577740, 0.430388),
    ("cispo", "token", 0.1, 5.0): (0.634749, 0.467830),
    ("cispo", "sequence", 0.0, 1.1): (0.728347, 0.417097),
    ("cispo", "sequence", 0.0, 5.0): (0.736630, 0.418218),
    ("cispo", "sequence", 0.1, 1.1): (0.753469, 0.416615),
    ("cispo", "sequence", 0.1, 5.0): (0.761752, 0.417738),
}
SOFT = (("sapo_temperature_pos", 3.0), ("sapo_temperature_neg", 0.5))
TRL_OPTIONS = {
    ("sapo", "token", 0.0, ()): (-0.857721, 0.295757),
    ("sapo", "token", 0.1, ()): (-0.832273, 0.287205),
    ("sapo", "sequence", 0.0, ()): (-0.817217, 0.271385),
    ("sapo", "sequence", 0.1, ()): (-0.791769, 0.265072),
    ("sapo", "token", 0.0, SOFT): (0.542991, 0.268618),
    ("sapo", "sequence", 0.1, SOFT): (0.610705, 0.261567),
    ("luspo", "sequence", 0.0, (("epsilon_high", 0.1),)): (-1.823008, 0.904837),
    ("luspo", "sequence", 0.1, (("epsilon_high", 0.1),)): (-1.764390, 0.917102),
    ("luspo", "sequence", 0.0, (("epsilon_high", 0.35),)): (-1.840061, 0.942530),
    ("luspo", "sequence", 0.1, (("epsilon_high", 0.35),)): (-1.781443, 0.954326),
}
"""With epsilon_high 0.2 where no other is said."""
TRL_DELTA = {
    ("grpo", "token"): (0.513885, 0.252353),
    ("dr_grpo", "token"): (0.371537, 0.139082),
    ("dapo", "token"): (0.955381, 0.357639),
    ("bnpo", "token"): (0.743074, 0.278163),
    ("luspo", "sequence"): (1.967841, 0.984531),
}
"""Of the opposite advantages, with delta 1.3 and beta 0.1."""
TRL_BATCH = batch_of(
    [[-1.0, -0.5, -2.0, -0.3], [-0.7, -2.2, -9.0, -9.0], [-2.5, -0.1, -0.8, -9.0]],
    [[-1.3, -0.5, -1.2, -0.4], [-0.2, -1.9, -9.0, -9.0], [-2.4, -0.6, -0.8, -9.0]],
    [1.5, -0.8, 0.4],
    [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]],
)
TRL_REFERENCE = tensor(
    [[-0.9, -0.8, -1.5, -0.3], [-1.0, -1.0, -9.0, -9.0], [-2.0, -0.2, -1.6, -9.0]]
)


def check_same(expected, batch, loss_type, level, beta, **options):
    """Loss and norm of its gradient; with a reference where there is a beta."""
    reference = {"ref_logprobs_BA": TRL_REFERENCE, "beta": beta} if beta else {}
    options |= {"level": level, "num_actions": 14 / 2} | reference
    loss, gradient, _ = loss_and_gradient(batch, loss_type, **options)
    assert (loss.item(), gradient.norm().item()) == pytest.approx(expected, rel=0, abs=2e-6)


@pytest.mark.parametrize("case", TRL, ids=str)
def test_loss_and_gradient_are_those_of_trl(case):
    *which, high = case
    check_same(TRL[case], TRL_BATCH, *which, epsilon_high=high)


@pytest.mark.parametrize("case", TRL_OPTIONS, ids=str)
def test_relatives_are_those_of_trl_too(case):
    *which, options = case
    check_same(TRL_OPTIONS[case], TRL_BATCH, *which, **dict(options))


@pytest.mark.parametrize("case", TRL_DELTA, ids=str)
def test_two_sided_clipping_is_that_of_trl(case):
    batch = TRL_BATCH | {"advantages_BA": -TRL_BATCH["advantages_BA"]}
    check_same(TRL_DELTA[case], batch, *case, 0.1, delta=1.3)
