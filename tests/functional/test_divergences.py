"""The divergence from a teacher: TRL's values, its chunks, its ends."""

import pytest
import torch

from rlmodules.functional import Predictions, Projection, divergence, generalized_jsd

# (beta, temperature) -> mean, summed entropy, norms of the gradients of states and weight, as of
# ``_chunked_divergence_loss`` of TRL 1.16.0 on the tensors of ``sides``.
TRL = {
    (0.0, 1.0): (1.60434, 7.810275, 0.635262, 0.666213),
    (0.0, 0.7): (2.492285, 6.360354, 1.06685, 1.161849),
    (0.3, 1.0): (0.247578, 7.810275, 0.076545, 0.094412),
    (0.3, 0.7): (0.312883, 6.360354, 0.107406, 0.136907),
    (0.5, 1.0): (0.29136, 7.810275, 0.089575, 0.114232),
    (0.5, 0.7): (0.363701, 6.360354, 0.128986, 0.168201),
    (1.0, 1.0): (2.378842, 7.810275, 1.37166, 1.494355),
    (1.0, 0.7): (3.79669, 6.360354, 3.113487, 3.277441),
}


def sides():
    """A policy and a wider teacher on two texts, of which 3 and 2 of 4 tokens count."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(*size, generator=generator) for size in ((2, 4, 6), (2, 4, 5))]
    weights = [torch.randn(11, size, generator=generator) for size in (6, 5)]
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    made = [
        Predictions(states[mask], Projection(weight))
        for states, weight in zip(drawn, weights, strict=True)
    ]
    policy = made[0]
    policy.states.requires_grad_(), policy.projection.weight.requires_grad_()
    return policy, made[1]


@pytest.mark.parametrize("beta, temperature", TRL)
@pytest.mark.parametrize("chunk_bytes", [None, 2 * 4 * 11])
def test_values_and_gradients_are_those_of_trl(beta, temperature, chunk_bytes):
    policy, teacher = sides()
    found, entropy = divergence(
        policy, teacher, beta=beta, temperature=temperature, chunk_bytes=chunk_bytes
    )
    found.mean().backward()
    norms = (policy.states.grad.norm(), policy.projection.weight.grad.norm())
    values = [float(x) for x in (found.mean(), entropy.sum(), *norms)]
    assert values == pytest.approx(TRL[beta, temperature], abs=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0])
def test_it_is_nothing_between_equals_and_never_negative(beta):
    policy, teacher = sides()
    same, _ = divergence(policy, policy, beta=beta)
    other, _ = divergence(policy, teacher, beta=beta)
    assert same.detach().abs().max() < 1e-6 and other.min() > 0


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_its_ends_are_what_it_goes_to_when_it_is_scaled(end):
    """JSD / beta -> forward KL as beta -> 0, JSD / (1 - beta) -> reverse KL as beta -> 1."""
    generator = torch.Generator().manual_seed(1)
    logps = torch.randn(2, 3, 7, generator=generator, dtype=torch.float64).log_softmax(-1)
    near = generalized_jsd(*logps, abs(end - 1e-6)) / 1e-6
    torch.testing.assert_close(near, generalized_jsd(*logps, end), rtol=1e-4, atol=0)


def test_ids_that_one_side_alone_has_count_on_neither():
    """A matrix that was padded to 64 says what it said before."""
    policy, teacher = sides()
    wide = torch.cat([teacher.projection.weight, torch.full((53, 5), 9.0)])
    padded = Predictions(teacher.states, Projection(wide))
    for pair, with_padding in (
        ((policy, teacher), (policy, padded)),
        ((teacher, policy), (padded, policy)),
    ):
        expected, found = (divergence(*two, beta=1.0)[0] for two in (pair, with_padding))
        torch.testing.assert_close(found, expected)


def test_scales_and_caps_of_both_sides_are_kept():
    policy, teacher = sides()
    capped = Predictions(
        teacher.states, Projection(teacher.projection.weight, softcap=1.5, scale=2.0)
    )
    logits = torch.tanh(2.0 * teacher.states @ teacher.projection.weight.T / 1.5) * 1.5
    own = policy.states @ policy.projection.weight.T
    expected = generalized_jsd(own.log_softmax(-1), logits.log_softmax(-1), 0.5)
    torch.testing.assert_close(divergence(policy, capped, beta=0.5)[0], expected)


def test_of_no_position_there_is_still_a_graph():
    policy, teacher = sides()
    none = [Predictions(side.states[:0], side.projection) for side in (policy, teacher)]
    found, entropy = divergence(*none, beta=1.0)
    found.sum().backward()
    assert found.shape == entropy.shape == (0,) and policy.projection.weight.grad.abs().sum() == 0
