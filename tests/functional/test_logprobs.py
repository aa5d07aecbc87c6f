"""Chunked log-probabilities and entropy against the plain formula: values, gradients, memory."""

import itertools
import math

import pytest
import torch
from torch.distributions import Categorical
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rlmodules.functional.logprobs as logprobs_module
from rlmodules.functional import logprobs as module
from rlmodules.functional.logprobs import Projection, token_logprobs

EXACT = {"rtol": 1e-5, "atol": 1e-5}
N, H, V = 13, 16, 37
ROW = 4 * V  # bytes of one row of float32 logits

SHAPES = [
    {"temperature": t, "biased": b, "scale": s, "softcap": c}
    for t, b, s, c in itertools.product((1.0, 0.7), (False, True), (1.0, 0.4), (None, 3.0))
]
SHAPES.append({"temperature": 0.4, "biased": True, "scale": 0.4, "softcap": None})  # they cancel
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
chunked_and_whole = pytest.mark.parametrize(
    "chunk_bytes", [5 * ROW, 2**27], ids=["chunked", "whole"]
)


def random_inputs(n: int = N, biased: bool = True, **_):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, H, generator=generator)
    weight = torch.randn(V, H, generator=generator) / 2  # logits of standard deviation 2
    bias_V = torch.randn(V, generator=generator) if biased else None
    tokens = torch.randint(V, (n,), generator=generator)
    return hidden, weight, bias_V, tokens


def plain_logits(hidden, weight, bias, *, temperature=1.0, scale=1.0, softcap=None, **_):
    logits = torch.nn.functional.linear(hidden, weight, bias).float() * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits / temperature


def plain(hidden, weight, bias, tokens, **shape):
    logits = plain_logits(hidden, weight, bias, **shape)
    logprobs = torch.log_softmax(logits, -1).gather(1, tokens[:, None]).squeeze(1)
    return logprobs, Categorical(logits=logits).entropy()


def ours(hidden, weight, bias, tokens, *, scale=1.0, softcap=None, biased=None, **options):
    projection = Projection(weight, bias, scale, softcap)
    return token_logprobs(hidden, projection, tokens, **options)[:2]


def gradients(function, inputs, *, logprob=1.0, entropy=1.0, trained=(0, 1, 2), **options):
    """Gradients of a random weighting of log-probabilities and entropies."""
    *floats, tokens = inputs
    leaves = [
        None if x is None else x.detach().clone().requires_grad_(i in trained)
        for i, x in enumerate(floats)
    ]
    logprobs, entropies = function(*leaves, tokens, **options)
    generator = torch.Generator().manual_seed(1)
    of_logprobs, of_entropies = torch.randn(2, len(tokens), generator=generator)
    loss = logprob * (of_logprobs * logprobs).sum()
    if entropy:
        loss = loss + entropy * (of_entropies * entropies).sum()
    loss.backward()
    return [leaf.grad for leaf in leaves if leaf is not None]


# --- values ---


@pytest.mark.parametrize(
    ("temperature", "logprobs", "entropy"),
    [  # logits (0, ln 3)
        (1.0, [-1.386294, -0.287682], 0.562335),  # p = 1/4, 3/4: 0.25 ln 4 + 0.75 ln 4/3
        (0.5, [-2.302585, -0.105361], 0.325083),  # p = 1/10, 9/10: 0.1 ln 10 + 0.9 ln 10/9
    ],
)
def test_two_token_vocabulary_matches_numbers_worked_by_hand(temperature, logprobs, entropy):
    projection = Projection(torch.tensor([[0.0], [math.log(3)]]))
    hidden, tokens = torch.ones(2, 1), torch.tensor([0, 1])
    got, got_entropy, _ = token_logprobs(hidden, projection, tokens, temperature=temperature)
    assert_close(got, torch.tensor(logprobs), **EXACT)
    assert_close(got_entropy, torch.tensor([entropy, entropy]), **EXACT)


@pytest.mark.parametrize("chunk_bytes", [None, 400])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_whether_no_token_is_likelier(chunk_bytes, softcap):
    """As argmax says, through kept probabilities (no soft cap) and through recomputed ones."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 8), torch.randn(11, 8)
    projection = Projection(weight, softcap=softcap)
    top = projection.logits(hidden).argmax(-1)
    tokens = torch.where(torch.arange(40) % 2 == 0, top, torch.randint(11, (40,)))
    found = token_logprobs(hidden, projection, tokens, chunk_bytes=chunk_bytes)
    assert found.is_top.dtype == torch.bool and not found.is_top.requires_grad
    assert torch.equal(found.is_top, top == tokens) and 20 <= found.is_top.sum() < 40


def test_projection_adds_bias_then_scales_then_caps():
    projection = Projection(torch.tensor([[2.0]]), torch.tensor([1.0]), scale=2.0, softcap=4.0)
    # 4 tanh(2 * (2 * 1 + 1) / 4) = 4 tanh(1.5) = 3.620593.
    logits = projection.logits(torch.ones(5, 3, 1))
    assert_close(logits, torch.full((5, 3, 1), 3.620593), **EXACT)


@every_shape
def test_values_are_those_of_log_softmax_and_categorical_entropy(shape):
    inputs = random_inputs(**shape)
    expected = plain(*inputs, **shape)
    logprobs, entropy = ours(*inputs, **shape)
    assert logprobs.shape == entropy.shape == (N,)
    assert_close(logprobs, expected[0], **EXACT)
    assert_close(entropy, expected[1], **EXACT)


@every_shape
def test_projection_logits_are_the_plain_formula(shape):
    hidden, weight, bias, _ = random_inputs(**shape)
    logits = Projection(weight, bias, shape["scale"], shape["softcap"]).logits(hidden)
    expected = plain_logits(hidden, weight, bias, **{**shape, "temperature": 1.0})
    assert_close(logits, expected, **EXACT)


def test_entropy_of_a_uniform_policy_is_the_log_of_the_vocabulary():
    hidden, weight, _, tokens = random_inputs()
    logprobs, entropy = ours(hidden, 0 * weight, None, tokens)
    assert_close(entropy, torch.full((N,), math.log(V)), **EXACT)
    assert_close(logprobs, torch.full((N,), -math.log(V)), **EXACT)


def test_logits_far_from_zero_cost_the_entropy_no_precision():
    # GPT-2's logits lie near -100: log Z - sum p * logit subtracts two hundreds (error 4e-4).
    hidden, weight, bias, tokens = random_inputs()
    expected = plain(hidden, weight, bias - 100, tokens)
    assert_close(ours(hidden, weight, bias - 100, tokens), expected, rtol=0.0, atol=5e-5)


def test_huge_logits_neither_overflow_nor_lose_the_chosen_token():
    hidden, weight, _, tokens = random_inputs(biased=False)
    logprobs, entropy = ours(hidden * 100, weight, None, tokens)  # up to 700: exp overflows at 89
    expected = plain(hidden * 100, weight, None, tokens)
    assert_close(logprobs, expected[0], rtol=1e-5, atol=1e-3)
    assert_close(entropy, expected[1], rtol=0.0, atol=1e-3)


# --- gradients ---


@every_shape
@chunked_and_whole
def test_gradients_are_those_of_plain_autograd(shape, chunk_bytes):
    inputs = random_inputs(**shape)
    for logprob, entropy in [(1.0, 0.0), (0.0, 1.0), (1.0, 0.5)]:
        parts = {"logprob": logprob, "entropy": entropy}
        expected = gradients(plain, inputs, **parts, **shape)
        got = gradients(ours, inputs, **parts, **shape, chunk_bytes=chunk_bytes)
        assert_close(got, expected, **EXACT, msg=lambda text, parts=parts: f"{parts}: {text}")


@pytest.mark.parametrize("trained", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
@chunked_and_whole
def test_only_what_is_trained_gets_a_gradient(trained, chunk_bytes):
    inputs = random_inputs()
    expected = gradients(plain, inputs)
    got = gradients(ours, inputs, trained=trained, chunk_bytes=chunk_bytes)
    for i in range(3):
        if i in trained:
            assert_close(got[i], expected[i], **EXACT)
        else:
            assert got[i] is None


@chunked_and_whole
def test_a_second_backward_pass_gives_the_same_gradient(chunk_bytes):
    hidden, weight, bias, tokens = random_inputs()
    hidden.requires_grad_()
    logprobs, entropy = ours(
        hidden, weight, bias, tokens, temperature=0.7, softcap=3.0, chunk_bytes=chunk_bytes
    )
    loss = (logprobs + entropy).sum()
    first = torch.autograd.grad(loss, hidden, retain_graph=True)[0]
    second = torch.autograd.grad(loss, hidden)[0]
    assert torch.equal(first, second)
    assert first.abs().max() > 0.1


def test_inputs_are_left_as_they_were():
    inputs = random_inputs()
    copies = [x.clone() for x in inputs]
    gradients(ours, inputs, temperature=0.7, scale=0.4, softcap=3.0, chunk_bytes=5 * ROW)
    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))


# --- chunks ---


@pytest.mark.parametrize("rows", [1, 2, 5, 12, 13, 14, 100])
def test_chunk_size_changes_neither_values_nor_gradients(rows):
    inputs, options = random_inputs(), {"temperature": 0.7, "softcap": 3.0}
    whole = ours(*inputs, **options)
    chunked = ours(*inputs, **options, chunk_bytes=rows * ROW)
    assert_close(chunked, whole, rtol=1e-6, atol=5e-6)
    whole_gradients = gradients(ours, inputs, **options)
    chunked_gradients = gradients(ours, inputs, **options, chunk_bytes=rows * ROW)
    assert_close(chunked_gradients, whole_gradients, rtol=1e-6, atol=5e-6)


@pytest.mark.parametrize("entropy_grad", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 12, 100])
@pytest.mark.parametrize("block", [1, 2, 5, 100])
def test_block_size_changes_neither_values_nor_gradients(block, rows, entropy_grad, monkeypatch):
    inputs, options = random_inputs(), {"temperature": 0.7, "entropy_grad": entropy_grad}
    options["scale"] = 0.4
    whole = ours(*inputs, **options)
    whole_gradients = gradients(ours, inputs, **options, entropy=float(entropy_grad))
    monkeypatch.setattr(module, "BLOCK_BYTES", {"cpu": block * ROW, "cuda": 1})
    blocked = ours(*inputs, **options, chunk_bytes=rows * ROW)
    assert_close(blocked, whole, rtol=1e-6, atol=5e-6)
    options |= {"chunk_bytes": rows * ROW, "entropy": float(entropy_grad)}
    assert_close(gradients(ours, inputs, **options), whole_gradients, rtol=1e-6, atol=5e-6)


def test_a_chunk_smaller_than_one_row_still_takes_one_row():
    inputs = random_inputs()
    assert_close(ours(*inputs, chunk_bytes=1), ours(*inputs), rtol=1e-6, atol=5e-6)


class LargestTensor(TorchDispatchMode):
    """Records the bytes of the largest tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.bytes, self.logits_bytes = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.bytes = max(self.bytes, leaf.numel() * leaf.element_size())
                if leaf.ndim == 2 and leaf.shape[1] == V:
                    self.logits_bytes = max(self.logits_bytes, leaf.numel() * leaf.element_size())
        return out


@pytest.mark.parametrize("with_entropy", [True, False])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_tensor_larger_than_chunk_bytes_is_ever_created(
    with_entropy, softcap, dtype, monkeypatch
):
    monkeypatch.setattr(logprobs_module, "KEPT_BYTES", {"cpu": 0, "cuda": 0})
    rows, n = 24, 200  # a chunk holds 24 x 37 numbers, its gradient of hidden 200 x 4
    hidden, weight, bias, tokens = random_inputs(n)
    hidden, weight = hidden[:, :4].to(dtype).contiguous(), weight[:, :4].to(dtype).contiguous()
    leaves = [x.requires_grad_() for x in (hidden, weight, bias.to(dtype))]
    with LargestTensor() as largest:
        options = {"temperature": 0.7, "softcap": softcap, "with_entropy": with_entropy}
        logprobs, entropy = ours(*leaves, tokens, **options, chunk_bytes=rows * ROW)
        (logprobs if entropy is None else logprobs + entropy).sum().backward()
    # Seeing exactly a chunk shows that the recorder looked into forward and backward.
    assert largest.logits_bytes == rows * ROW
    assert largest.bytes <= rows * ROW < n * ROW


def test_what_is_kept_for_the_backward_pass_has_the_type_of_the_weights_and_a_limit(monkeypatch):
    n = 200
    hidden, weight, bias, tokens = random_inputs(n)
    leaves = [x.bfloat16().requires_grad_() for x in (hidden, weight, bias)]
    for limit, kept in ((2 * n * V, True), (2 * n * V - 1, False)):
        monkeypatch.setattr(logprobs_module, "KEPT_BYTES", {"cpu": limit, "cuda": 0})
        with LargestTensor() as largest:
            ours(*leaves, tokens, with_entropy=False, chunk_bytes=24 * ROW)[0].sum().backward()
        assert largest.logits_bytes == (2 * n * V if kept else 24 * ROW)


@pytest.mark.parametrize("entropy", ["none", "watched", "trained"])
@pytest.mark.parametrize("kept", [0, 2**30])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_kept_probabilities_give_the_gradients_of_autograd(kept, temperature, entropy, monkeypatch):
    monkeypatch.setattr(logprobs_module, "KEPT_BYTES", {"cpu": kept, "cuda": 0})
    hidden, weight, bias, tokens = random_inputs(50)
    leaves = [x.double().requires_grad_() for x in (hidden, weight, bias)]
    gain, bonus = torch.linspace(-2, 3, 50), torch.linspace(1, -2, 50)
    distribution = Categorical(logits=torch.nn.functional.linear(*leaves) / temperature)
    expected, spread = distribution.log_prob(tokens), distribution.entropy()
    wanted = (expected * gain).sum() + (spread * bonus).sum() * (entropy == "trained")
    wanted = torch.autograd.grad(wanted, leaves)
    found = [x.detach().float().requires_grad_() for x in leaves]
    asked = {"with_entropy": entropy != "none", "entropy_grad": entropy == "trained"}
    logprobs, got = ours(*found, tokens, temperature=temperature, chunk_bytes=7 * ROW, **asked)
    loss = (logprobs * gain).sum()
    (loss + (got * bonus).sum() if entropy == "trained" else loss).backward()
    assert_close(logprobs.double(), expected, rtol=1e-5, atol=1e-5)
    if entropy == "none":
        assert got is None
    else:
        assert_close(got.double(), spread, rtol=1e-5, atol=1e-5)
        assert got.requires_grad == (entropy == "trained")
    for leaf, grad in zip(found, wanted, strict=True):
        assert_close(leaf.grad.double(), grad, rtol=1e-4, atol=1e-4)


def test_an_impossible_token_costs_the_kept_entropy_no_number():
    """p = 0 to the last bit: p log p is 0, not 0 times minus infinity."""
    hidden, weight = torch.ones(1, 1, requires_grad=True), torch.tensor([[0.0], [300.0], [300.0]])
    logprobs, entropy = ours(hidden, weight, None, torch.tensor([1]))
    (logprobs + entropy).sum().backward()
    assert_close(entropy, torch.tensor([math.log(2)]), **EXACT)
    assert torch.isfinite(hidden.grad).all()


# --- options and edges ---


@chunked_and_whole
def test_without_entropy_the_logprobs_and_their_gradients_stay(chunk_bytes):
    inputs, options = random_inputs(), {"temperature": 0.7, "chunk_bytes": chunk_bytes}
    logprobs, entropy = ours(*inputs, **options, with_entropy=False)
    assert entropy is None
    assert_close(logprobs, plain(*inputs, temperature=0.7)[0], **EXACT)
    expected = gradients(plain, inputs, entropy=0.0, temperature=0.7)
    got = gradients(ours, inputs, entropy=0.0, **options, with_entropy=False)
    assert_close(got, expected, **EXACT)


@pytest.mark.parametrize("with_entropy", [True, False])
def test_no_rows_give_empty_results_and_a_backward_pass(with_entropy):
    hidden, weight, bias, tokens = random_inputs(n=0)
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    logprobs, entropy = ours(*leaves, tokens, with_entropy=with_entropy)
    assert logprobs.shape == (0,) and logprobs.dtype == torch.float32
    assert (entropy is None) if not with_entropy else entropy.shape == (0,)
    logprobs.sum().backward()
    assert hidden.grad is None or hidden.grad.shape == (0, H)
    assert all(x.grad is None or x.grad.count_nonzero() == 0 for x in (weight, bias))


def test_results_carry_no_graph_without_gradients():
    inputs = random_inputs()
    inputs[0].requires_grad_()
    with torch.no_grad():
        logprobs, entropy = ours(*inputs)
    assert not logprobs.requires_grad and not entropy.requires_grad
    logprobs, entropy = ours(*inputs)
    assert logprobs.requires_grad and entropy.requires_grad


# --- lower precision ---


def in_bf16(inputs):
    return [x.bfloat16() if x is not None and x.is_floating_point() else x for x in inputs]


@pytest.mark.parametrize("softcap", [None, 3.0])
@chunked_and_whole
def test_bf16_inputs_give_fp32_results_close_to_fp32(softcap, chunk_bytes):
    inputs = in_bf16(random_inputs())
    exact = [x.float() if x.is_floating_point() else x for x in inputs]
    options = {"temperature": 0.7, "softcap": softcap}
    got = ours(*inputs, **options, chunk_bytes=chunk_bytes)
    assert got[0].dtype == got[1].dtype == torch.float32
    # Only the logits are rounded to bf16 (8 bits: 0.02 at 8); everything after is float32.
    assert_close(got, plain(*inputs, **options), **EXACT)
    assert_close(got, plain(*exact, **options), rtol=0.0, atol=0.05)
    expected = gradients(plain, exact, **options)
    got = gradients(ours, inputs, **options, chunk_bytes=chunk_bytes)
    for ours_, plain_ in zip(got, expected, strict=True):
        assert ours_.dtype == torch.bfloat16
        assert (ours_.float() - plain_).norm() < 0.02 * plain_.norm()


def test_many_bf16_chunks_add_up_without_swallowing_small_gradients():
    # 1024 equal rows in chunks of one: a bf16 running sum would stop growing at 256 of them.
    n = 1024
    hidden, weight, bias, tokens = in_bf16(random_inputs())
    one = gradients(ours, (hidden[:1], weight, bias, tokens[:1]), entropy=0.0)
    leaves = [x.detach().clone().requires_grad_() for x in (weight, bias)]
    logprobs, _ = ours(hidden[:1].expand(n, H), *leaves, tokens[:1].expand(n), chunk_bytes=ROW)
    weighting = torch.randn(2, 1, generator=torch.Generator().manual_seed(1))[0, 0]
    (weighting * logprobs.sum()).backward()
    for many, single in zip((x.grad.float() for x in leaves), one[1:], strict=True):
        assert (many - n * single.float()).norm() < 0.02 * n * single.float().norm()


@chunked_and_whole
def test_autocast_multiplies_in_bf16_and_keeps_the_rest_in_fp32(chunk_bytes):
    inputs, options = random_inputs(), {"temperature": 0.7, "softcap": 3.0}

    def under_autocast(function, **more):
        def call(*args, **kwargs):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return function(*args, **kwargs, **more)

        return call

    got = under_autocast(ours, chunk_bytes=chunk_bytes)(*inputs, **options)
    assert got[0].dtype == got[1].dtype == torch.float32
    assert_close(got, plain(*in_bf16(inputs), **options), **EXACT)
    assert (got[0] - plain(*inputs, **options)[0]).abs().max() > 1e-3  # it did use bf16
    expected = gradients(plain, inputs, **options)
    got = gradients(under_autocast(ours, chunk_bytes=chunk_bytes), inputs, **options)
    for ours_, plain_ in zip(got, expected, strict=True):
        assert ours_.dtype == torch.float32
        assert (ours_ - plain_).norm() < 0.02 * plain_.norm()
