"""How a row of logits becomes a token: frequencies, top-k and top-p, the interval's ends."""

import math
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from datamodules.types import SamplingParams
from rlmodules.sampling import choose as drawing
from rlmodules.sampling.choose import choose

# ---------------------------------------------------------------------- choose

GRID = 4000


def uniform_grid(n: int = GRID) -> torch.Tensor:
    return (torch.arange(n) + 0.5) / n


def frequencies(logits_V: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """How often each token is drawn over an even grid of uniforms."""
    tokens, _, _ = choose(logits_V.expand(GRID, -1), uniform_grid(), params)
    return torch.bincount(tokens, minlength=len(logits_V)) / GRID


WITHIN_GRID = {"rtol": 0, "atol": 1.01 / GRID}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_over_a_grid_equal_the_probabilities(temperature):
    logits = torch.tensor([0.3, -2.0, 1.5, 0.0, 2.2, -0.7, 1.5])
    expected = (logits / temperature).softmax(-1)
    params = SamplingParams(temperature=temperature)
    assert_close(frequencies(logits, params), expected, **WITHIN_GRID)


def warped(logits, params):
    """What transformers' own warpers leave, as logits."""
    warpers = [TemperatureLogitsWarper(params.temperature)]
    warpers += [TopKLogitsWarper(params.top_k)] if params.top_k else []
    warpers += [TopPLogitsWarper(params.top_p)] if params.top_p < 1 else []
    for warper in warpers:
        logits = warper(None, logits)
    return logits


@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.6, 0.05])
@pytest.mark.parametrize("top_k", [0, 1, 5, 50, 300, 1000])
@pytest.mark.parametrize("temperature", [0.7, 1.6])
def test_top_k_then_top_p_are_those_of_transformers(temperature, top_k, top_p):
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    generator = torch.Generator().manual_seed(0)
    for spread in (0.2, 3.0):  # the nucleus is wider and narrower than 256 candidates
        logits = spread * torch.randn(1, 330, generator=generator)
        expected = warped(logits, params)[0]
        assert_close(frequencies(logits[0], params), expected.softmax(-1), **WITHIN_GRID)
        _, logprobs, kept = choose(logits, torch.tensor([0.5]), params)
        probs = (logits / temperature).softmax(-1)[0]
        assert_close(kept, probs[expected.isfinite()].sum()[None], rtol=1e-5, atol=1e-6)
        token = choose(logits, torch.tensor([0.5]), params)[0]
        assert_close(logprobs, probs.log()[token], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.49, 0.5), (0.51, 0.8), (0.79, 0.8), (0.81, 1.0), (0.01, 0.5)]
)
def test_top_p_keeps_the_smallest_set_with_the_token_that_crosses_it(top_p, kept):
    logits = torch.tensor([0.2, 0.5, 0.3]).log()
    left = {0.5: [0.0, 0.5, 0.0], 0.8: [0.0, 0.5, 0.3], 1.0: [0.2, 0.5, 0.3]}[kept]
    params = SamplingParams(top_p=top_p)
    assert_close(frequencies(logits, params), torch.tensor(left) / kept, **WITHIN_GRID)
    assert choose(logits[None], torch.tensor([0.1]), params)[2].item() == pytest.approx(kept)


def test_top_p_after_top_k_is_of_the_mass_that_top_k_left():
    # Of 0.4, 0.3, 0.2, 0.1 two are left: 4/7 and 3/7. Half of that mass fits in the first alone.
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    params = SamplingParams(top_k=2, top_p=0.5)
    assert_close(frequencies(logits, params), torch.tensor([0.0, 1, 0, 0]), **WITHIN_GRID)
    assert choose(logits[None], torch.tensor([0.9]), params)[2].item() == pytest.approx(0.4)
    params = SamplingParams(top_k=2, top_p=0.6)
    assert_close(frequencies(logits, params), torch.tensor([0, 4 / 7, 0, 3 / 7]), **WITHIN_GRID)
    assert choose(logits[None], torch.tensor([0.9]), params)[2].item() == pytest.approx(0.7)


SHAPES = [{}, {"top_k": 3}, {"top_p": 0.9}, {"top_k": 4, "top_p": 0.8}, {"temperature": 1.7}]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_absent_ids_are_never_drawn_and_count_in_log_probabilities(shape):
    logits = torch.tensor([0.3, 5.0, 1.5, 0.0, 2.2, -0.7, 4.0])
    absent = torch.tensor([1, 6])  # the two likeliest
    params = SamplingParams(**shape)
    whole = (logits / params.temperature).softmax(-1)
    left = logits.clone()
    left[absent] = -math.inf
    expected = warped(left[None], params)[0].softmax(-1)
    tokens, logprobs, kept = choose(logits.expand(GRID, -1), uniform_grid(), params, absent)
    assert_close(torch.bincount(tokens, minlength=7) / GRID, expected, **WITHIN_GRID)
    assert_close(logprobs, whole.log()[tokens])
    assert_close(kept, whole[expected > 0].sum().expand(GRID))
    token, logprob, _ = choose(
        logits[None], torch.tensor([0.5]), SamplingParams(temperature=0), absent
    )
    assert token.item() == 4
    assert_close(logprob, logits.log_softmax(-1)[4:5])


def test_a_nucleus_of_what_may_be_drawn_is_wider_than_the_candidates(monkeypatch):
    monkeypatch.setattr(drawing, "CANDIDATES", 3)
    logits = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    absent, params = torch.arange(30, 40), SamplingParams(top_p=0.9)
    tokens, _, kept = choose(logits, torch.rand(50), params, absent)
    mass = logits.softmax(-1)[:, :30].sum(-1)
    assert (tokens < 30).all() and (kept >= 0.8999 * mass).all() and (kept < mass).all()


def test_kept_mass_is_one_where_nothing_is_cut():
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    for params in (SamplingParams(), SamplingParams(top_k=20), SamplingParams(top_k=99)):
        assert_close(choose(logits, torch.rand(3), params)[2], torch.ones(3))


@pytest.mark.parametrize("candidates", [1, 3, 8, 64])
def test_a_nucleus_wider_than_the_candidates_is_found_exactly(monkeypatch, candidates):
    generator = torch.Generator().manual_seed(3)
    spreads = torch.tensor([0.0, 0.1, 1.0, 3.0, 9.0]).repeat_interleave(40)[:, None]
    logits = torch.randn(200, 90, generator=generator) * spreads  # flat rows beside peaked ones
    uniform = torch.rand(200, generator=generator)
    params = SamplingParams(top_p=0.905)
    monkeypatch.setattr(drawing, "CANDIDATES", 90)
    tokens, logprobs, kept = choose(logits, uniform, params)
    assert (kept >= 0.9049).all() and (kept <= 1.0001).all()
    monkeypatch.setattr(drawing, "CANDIDATES", candidates)
    narrow = choose(logits, uniform, params)
    assert torch.equal(narrow[0][40:], tokens[40:])  # equal logits have no order of their own
    assert_close(narrow[1], logprobs)
    assert_close(narrow[2], kept)


def test_the_ends_of_the_unit_interval_never_draw_what_cannot_be_drawn():
    logits = torch.tensor([[-math.inf, 1.0, -math.inf, 2.0, 0.5, -math.inf]]).expand(2, -1)
    uniform = torch.tensor([0.0, 1 - 2**-24])
    assert choose(logits, uniform, SamplingParams())[0].tolist() == [1, 4]
    for params in (SamplingParams(top_k=2), SamplingParams(top_p=0.8)):
        assert choose(logits, uniform, params)[0].tolist() == [3, 1]
    flat = torch.zeros(1, 50_000)
    assert choose(flat, uniform[1:], SamplingParams())[0].item() == 49_999


def test_a_larger_uniform_never_goes_back_in_the_cumulative_distribution():
    logits = torch.randn(12, generator=torch.Generator().manual_seed(0))
    tokens = choose(logits.expand(GRID, -1), uniform_grid(), SamplingParams())[0].tolist()
    assert all(a <= b for a, b in pairwise(tokens))


def test_temperature_zero_takes_the_likeliest_whatever_the_uniform():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 3.0, 9.0]])
    for uniform in (0.0, 0.5, 0.999):
        params = SamplingParams(temperature=0, top_k=2, top_p=0.9)
        tokens, logprobs, kept = choose(logits, torch.full((2,), uniform), params)
        assert tokens.tolist() == [1, 2]
        assert_close(logprobs, logits.log_softmax(-1).amax(-1))
        assert (kept <= 1).all() and (kept > 0).all()


def test_top_k_of_one_is_greedy():
    logits = torch.tensor([[0.0, 3.0, 1.0]]).expand(GRID, -1)
    assert set(choose(logits, uniform_grid(), SamplingParams(top_k=1))[0].tolist()) == {1}


def test_choose_leaves_the_logits_as_they_were():
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    copy = logits.clone()
    for shape in ({}, {"top_k": 3}, {"top_p": 0.5}, {"temperature": 0}):
        choose(logits, torch.tensor([0.2, 0.8]), SamplingParams(**shape))
    assert torch.equal(logits, copy)
