"""Sampling against a naive loop, transformers' own warpers, and models that recite a script."""

import math
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.testing import assert_close
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from datamodules import TextGenerationEnv
from datamodules.types import SamplingParams
from rlmodules.algorithms.online import OnlineModule
from rlmodules.models import PolicyModel, backbone
from rlmodules.models.embedded import tiny_model, tiny_tokenizer
from rlmodules.sampling import choose as drawing
from rlmodules.sampling.choose import choose
from rlmodules.sampling.decoding import Decoding, PolicySampler, sample

PROMPTS = ["ab", "a much longer prompt, of many tokens", "x", "hello there", "ab"]
SEEDS = [11, 12, 13, 14, 15]
SHAPES = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.3, "top_k": 7},
    {"temperature": 0.9, "top_p": 0.8},
    {"temperature": 1.5, "top_k": 40, "top_p": 0.7},
    {"temperature": 0.0},
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def make_sharp(model):
    """Larger weights, so that a wrong context changes what is said."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(2.5 if "embed" in name or "wte" in name else 6)
    return model.eval()


@pytest.fixture(scope="module")
def llama():
    model, tokenizer = tiny_model()
    return make_sharp(model), tokenizer


def encode(tokenizer, *texts):
    return [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]


def endless(tokenizer):
    """A copy that knows no end token."""
    copy = tiny_tokenizer()
    copy.eos_token = None
    assert copy.get_vocab() == tokenizer.get_vocab()
    return copy


@torch.no_grad()
def naive_loop(model, prompt, params, seed, ends=()):
    """One row, no cache: the model's own logits of everything so far, again for each token."""
    uniforms = drawing.stream(seed, params.max_new_tokens)
    tokens, logprobs, kept_mass = [], [], []
    for uniform in uniforms:
        ids = torch.cat([prompt, torch.tensor(tokens, dtype=torch.long)])
        logits = model(input_ids=ids[None], use_cache=False).logits[:, -1].float()
        token, logprob, kept = choose(logits, uniform[None], params)
        tokens.append(token.item())
        logprobs.append(logprob.item())
        kept_mass.append(kept.item())
        if tokens[-1] in ends:
            break
    return tokens, logprobs, kept_mass


@torch.no_grad()
def own_logprobs(model, prompt, tokens, temperature):
    """Of the response, from one fresh forward pass over prompt and response."""
    ids = torch.cat([prompt, torch.tensor(tokens)])
    logits = model(input_ids=ids[None], use_cache=False).logits[0].float() / temperature
    rows = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return rows.gather(1, torch.tensor(tokens)[:, None]).squeeze(1)


# ------------------------------------------------------- against the naive loop


@every_shape
def test_batched_sampling_equals_one_row_at_a_time_without_a_cache(llama, shape):
    model, tokenizer = llama
    prompts = encode(tokenizer, *PROMPTS)
    ends = list(range(60, 100))  # many, so that rows leave the batch at different steps
    params = SamplingParams(max_new_tokens=16, stop_token_ids=ends, **shape)
    responses = sample(model, tokenizer, prompts, params, SEEDS)
    for prompt, response, seed in zip(prompts, responses, SEEDS, strict=True):
        ends_here = {*ends, tokenizer.eos_token_id}
        tokens, logprobs, kept_mass = naive_loop(model, prompt, params, seed, ends_here)
        assert response.tokens == tokens
        assert_close(response.logprobs, logprobs, rtol=0, atol=2e-5)
        assert_close(response.kept_mass, kept_mass, rtol=0, atol=2e-5)
    if shape["temperature"] > 0:
        assert len({len(response.tokens) for response in responses}) > 2


@every_shape
def test_logprobs_are_those_of_a_fresh_forward_pass_at_the_sampling_temperature(llama, shape):
    model, tokenizer = llama
    prompts = encode(tokenizer, *PROMPTS)
    params = SamplingParams(max_new_tokens=12, **shape)
    for prompt, response in zip(
        prompts, sample(model, tokenizer, prompts, params, SEEDS), strict=True
    ):
        assert len(response.logprobs) == len(response.tokens) == len(response.kept_mass)
        expected = own_logprobs(model, prompt, response.tokens, params.temperature or 1.0)
        assert_close(torch.tensor(response.logprobs), expected, rtol=0, atol=1e-4)


SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 2}
OPT = {key: SMALL[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers")}
OPT |= {"num_attention_heads": 4, "ffn_dim": 64, "max_position_embeddings": 64}
GEMMA2 = SMALL | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5}
GEMMA2 |= {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 4.0}
ARCHITECTURES = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**OPT, word_embed_proj_dim=32)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=5)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GEMMA2)),
}


@pytest.mark.parametrize("lengths", [(3, 9, 6, 14), (7, 7, 7, 7)], ids=["ragged", "equal"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures_say_what_their_own_forward_pass_says(name, lengths):
    torch.manual_seed(0)
    model = make_sharp(ARCHITECTURES[name]())
    prompts = [torch.randint(3, 60, (length,)) for length in lengths]
    params = SamplingParams(
        max_new_tokens=14, temperature=0.8, top_p=0.95, stop_token_ids=range(20, 24)
    )
    responses = sample(model, tiny_tokenizer(), prompts, params, [1, 2, 3, 5])
    assert len({len(response.tokens) for response in responses}) > 1  # rows left on the way
    assert max(len(response.tokens) for response in responses) > 10
    for prompt, response, seed in zip(prompts, responses, [1, 2, 3, 5], strict=True):
        assert response.tokens == naive_loop(model, prompt, params, seed, {2, *range(20, 24)})[0]
        expected = own_logprobs(model, prompt, response.tokens, 0.8)
        assert_close(torch.tensor(response.logprobs), expected, rtol=0, atol=1e-4)


def test_adapters_take_part_in_sampling():
    model, tokenizer = tiny_model()
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    prompts = encode(tokenizer, *PROMPTS)
    for prompt, response in zip(
        prompts, sample(model, tokenizer, prompts, SamplingParams(8), SEEDS), strict=True
    ):
        expected = own_logprobs(model, prompt, response.tokens, 1.0)
        assert_close(torch.tensor(response.logprobs), expected, rtol=0, atol=1e-4)
        with model.disable_adapter():
            base = own_logprobs(model, prompt, response.tokens, 1.0)
        assert (base - expected).abs().max() > 0.1


# ----------------------------------------------------------- seeds and batches


def test_the_same_seed_gives_the_same_text_and_another_seed_another(llama):
    model, tokenizer = llama
    prompts = encode(tokenizer, "same", "same", "same")
    params = SamplingParams(max_new_tokens=16)
    torch.manual_seed(1)
    first, second, other = sample(model, tokenizer, prompts, params, [5, 5, 6])
    assert first.tokens == second.tokens != other.tokens
    torch.manual_seed(2)  # torch's own random state plays no part
    again = sample(model, tokenizer, prompts, params, [5, 7, 6])
    assert again[0].tokens == first.tokens and again[2].tokens == other.tokens
    assert again[1].tokens != first.tokens


def test_a_rows_text_depends_neither_on_other_rows_nor_on_padding_nor_on_order(llama):
    model, tokenizer = llama
    prompts = encode(tokenizer, *PROMPTS)
    params = SamplingParams(max_new_tokens=12, temperature=0.8, top_p=0.9, stop_token_ids=[70, 80])
    together = sample(model, tokenizer, prompts, params, SEEDS)
    backwards = sample(model, tokenizer, prompts[::-1], params, SEEDS[::-1])[::-1]
    for row, response in enumerate(together):
        (alone,) = sample(model, tokenizer, prompts[row : row + 1], params, SEEDS[row : row + 1])
        for same in (alone, backwards[row]):
            assert same.tokens == response.tokens
            assert same.finish_reason == response.finish_reason
            assert_close(same.logprobs, response.logprobs, rtol=0, atol=2e-5)


def test_sampling_leaves_no_gradients_and_no_changed_inputs(llama):
    model, tokenizer = llama
    prompts = encode(tokenizer, "abc", "de")
    copies = [prompt.clone() for prompt in prompts]
    sample(model, tokenizer, prompts, SamplingParams(4), [1, 2])
    assert all(map(torch.equal, prompts, copies))
    assert all(parameter.grad is None for parameter in model.parameters())


# ------------------------------------------------------------ ends of responses

POSITIONS = 64


def reciter(script: list[int]) -> GPT2LMHeadModel:
    """Likeliest token after position t is ``script[t]``, whatever stands before it."""
    config = GPT2Config(
        vocab_size=259,
        n_embd=POSITIONS,
        n_layer=1,
        n_head=1,
        n_positions=POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = GPT2LMHeadModel(config).eval()
    block = model.transformer.h[0]
    with torch.no_grad():
        for layer in (block.attn.c_proj, block.mlp.c_proj):
            layer.weight.zero_()
            layer.bias.zero_()
        model.transformer.wte.weight.zero_()
        model.transformer.wpe.weight.copy_(torch.eye(POSITIONS))
        model.lm_head.weight.zero_()
        for position, token in enumerate(script):
            model.lm_head.weight[token, position] = 10.0
    return model


def recite(text, params, prompts=("p",), eos_after=None):
    """Responses to prompts of one byte each position further into the recited text."""
    tokenizer = tiny_tokenizer()
    script = tokenizer(text)["input_ids"]
    if eos_after is not None:
        script.insert(eos_after, tokenizer.eos_token_id)
    responses = sample(
        reciter(script), tokenizer, encode(tokenizer, *prompts), params, [0] * len(prompts)
    )
    return responses, [tokenizer.decode(response.tokens) for response in responses]


def greedy(max_new_tokens=40, **others):
    return SamplingParams(max_new_tokens=max_new_tokens, temperature=0, **others)


def test_a_reciter_recites_from_the_prompts_end_until_max_new_tokens():
    responses, texts = recite("0123456789", greedy(4), prompts=("p", "ppp", "pp"))
    assert texts == ["0123", "2345", "1234"]
    assert {response.finish_reason for response in responses} == {"length"}


def test_eos_ends_a_row_is_included_and_nothing_follows_it():
    (response,), (text,) = recite("hello world", greedy(), eos_after=5)
    assert text == "hello<eos>"
    assert response.tokens[-1] == tiny_tokenizer().eos_token_id
    assert response.finish_reason == "eos"
    assert len(response.logprobs) == len(response.kept_mass) == 6


def test_eos_as_the_very_last_token_allowed_counts_as_an_end():
    (response,), (text,) = recite("hello world", greedy(6), eos_after=5)
    assert text == "hello<eos>" and response.finish_reason == "eos"
    (response,), (text,) = recite("hello world", greedy(5), eos_after=5)
    assert text == "hello" and response.finish_reason == "length"


def test_rows_that_end_at_different_steps_each_keep_their_own_text():
    responses, texts = recite(
        "abcdefghij", greedy(6), prompts=("p", "pppp", "pp", "pppppp"), eos_after=4
    )
    assert texts == ["abcd<eos>", "d<eos>", "bcd<eos>", "efghij"]
    assert [r.finish_reason for r in responses] == ["eos", "eos", "eos", "length"]


def test_stop_token_ids_end_a_row_besides_eos():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("de")["input_ids"]
    (response,), (text,) = recite("abcdef", greedy(stop_token_ids=ids))
    assert text == "abcd" and response.finish_reason == "eos"
    (response,), (text,) = recite("abcdef", greedy(stop_token_ids=ids), eos_after=1)
    assert text == "a<eos>"


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one STOP two", ["STOP"], "one STOP"),  # spans four tokens
        ("one STOP two", ["xyz", "P t", "OP"], "one STOP"),  # the earliest of several
        ("abcabcabd", ["abd"], "abcabcabd"),
        ("aab", ["ab"], "aab"),  # begins twice
        ("caf\u00e9 \u65e5\u672c\u8a9e", ["\u00e9"], "caf\u00e9"),  # one character, two tokens
        ("caf\u00e9 \u65e5\u672c\u8a9e", ["\u65e5\u672c"], "caf\u00e9 \u65e5\u672c"),
        ("\u65e5\u672c\u8a9e end", ["e"], "\u65e5\u672c\u8a9e e"),
        ("a\n\nb", ["\n\n"], "a\n\n"),
        ("xy", ["x"], "x"),
    ],
)
def test_a_stop_string_ends_the_response_at_the_token_that_completes_it(text, stops, expected):
    (response,), (said,) = recite(text, greedy(stop_strings=stops))
    assert said == expected
    assert response.finish_reason == "stop"
    assert len(response.logprobs) == len(response.tokens)


def test_a_stop_string_longer_than_any_window_is_found():
    stop = "a sentence of more than thirty bytes."
    (response,), (said,) = recite("so: " + stop + " more", greedy(55, stop_strings=["#", stop]))
    assert said == "so: " + stop and response.finish_reason == "stop"


def test_a_stop_string_in_the_prompt_or_across_its_end_does_not_count():
    # The responses are what is recited after two, three and four bytes of prompt.
    responses, texts = recite(
        "__nend\n\nx", greedy(7, stop_strings=["\n\n"]), prompts=("\n\n", "a\n\n", "ab\n\n")
    )
    assert texts == ["_nend\n\n", "nend\n\n", "end\n\n"]
    assert {response.finish_reason for response in responses} == {"stop"}
    (response,), (text,) = recite("ST\nxy", greedy(4, stop_strings=["\n\n"]), prompts=("ab\n",))
    assert text.startswith("\nxy") and response.finish_reason == "length"


def test_one_rows_stop_string_ends_no_other_row():
    responses, texts = recite(
        "ab.cdef", greedy(5, stop_strings=["b."]), prompts=("p", "pp", "ppp", "p")
    )
    assert texts == ["ab.", "b.", ".cdef", "ab."]
    assert [r.finish_reason for r in responses] == ["stop", "stop", "length", "stop"]


def test_a_finished_row_costs_no_more_work():
    tokenizer = tiny_tokenizer()
    script = tokenizer("abcdefghijkl")["input_ids"]
    script[4] = tokenizer.eos_token_id
    model = reciter(script)
    policy = PolicyModel(model)  # made here, for it looks at the model
    rows = []
    hook = backbone(model).register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    prompts = encode(tokenizer, "p", "pppp", "ppp", "pppppp")  # 5, 2, 3 and 6 tokens are written
    sample(policy, tokenizer, prompts, greedy(6), [0] * 4)
    hook.remove()
    assert rows == [(4, 6), (4, 1), (3, 1), (2, 1), (2, 1), (1, 1)]
    rows.clear()
    hook = backbone(model).register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    sample(policy, tokenizer, prompts[:3], greedy(50), [0] * 3)
    hook.remove()
    assert len(rows) == 5  # none is left: no pass after the last row's end


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


# ---------------------------------------------------------------- user mistakes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_k", -1),
        ("stop_strings", ["ok", ""]),
    ],
)
def test_an_impossible_parameter_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        SamplingParams(**{field: value})


def test_a_prompt_too_long_for_the_model_is_refused_and_one_that_just_fits_is_not():
    model = reciter([5] * POSITIONS)
    prompts = [torch.tensor([7] * 60), torch.tensor([7])]
    with pytest.raises(ValueError, match=r"60 tokens.*max_new_tokens=5.*64"):
        sample(model, tiny_tokenizer(), prompts, greedy(5), [0, 0])
    assert len(sample(model, tiny_tokenizer(), prompts, greedy(4), [0, 0])[0].tokens) == 4


def test_an_empty_prompt_is_refused():
    prompts = [torch.tensor([7]), torch.tensor([], dtype=torch.long)]
    with pytest.raises(ValueError, match="no tokens"):
        sample(reciter([5]), tiny_tokenizer(), prompts, greedy(4), [0, 0])


# ------------------------------------------------------- groups, and environments


@pytest.mark.parametrize("shape", [{"temperature": 1.0}, {"temperature": 0.9, "top_p": 0.8}])
def test_a_prompt_that_several_rows_have_is_computed_once_and_changes_no_text(llama, shape):
    model, tokenizer = llama
    prompts = encode(tokenizer, "ab", "a longer one", "ab", "ab", "x", "a longer one")
    seeds = [21, 22, 23, 24, 25, 26]
    params = SamplingParams(max_new_tokens=12, **shape)
    policy, shapes = PolicyModel(model), []
    hook = backbone(model).register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    together = sample(policy, tokenizer, prompts, params, seeds)
    hook.remove()
    width = max(len(prompt) for prompt in prompts)
    assert shapes[0] == (3, width)  # three different prompts
    assert shapes[1][1] == 1 and 3 < shapes[1][0] <= 6
    for prompt, seed, response in zip(prompts, seeds, together, strict=True):
        alone = sample(model, tokenizer, [prompt], params, [seed])[0]
        assert response.tokens == alone.tokens
        assert response.finish_reason == alone.finish_reason
        assert_close(
            torch.tensor(response.logprobs), torch.tensor(alone.logprobs), rtol=0, atol=1e-4
        )
    assert len({tuple(together[i].tokens) for i in (0, 2, 3)}) == 3  # same prompt, own stream


def test_equal_prompts_with_equal_seeds_say_the_same(llama):
    model, tokenizer = llama
    responses = sample(model, tokenizer, encode(tokenizer, *["ab"] * 3), SamplingParams(8), [4] * 3)
    assert responses[0].tokens == responses[1].tokens == responses[2].tokens


def test_an_environments_stop_strings_end_what_the_policy_writes():
    tokenizer = tiny_tokenizer()
    observations = [TextGenerationEnv(tokenizer, ["ab"]).reset(0)]
    start = len(observations[0].input_ids)
    model = reciter([5] * (start - 1) + tokenizer("Hi END of it")["input_ids"])
    said = {}
    for stops in ((), ("END",)):
        env = TextGenerationEnv(tokenizer, ["ab"], stop_sequences=list(stops))
        player = SimpleNamespace(
            sampler=PolicySampler(model, tokenizer), sampling=greedy(10), inference=nullcontext
        )
        (said[stops],) = OnlineModule.act(player, observations, seeds=[0], env=env)
    assert tokenizer.decode(said[()].tokens) == "Hi END of "
    assert tokenizer.decode(said[("END",)].tokens) == "Hi END"
    assert (said[()].finish_reason, said[("END",)].finish_reason) == ("length", "stop")


# ------------------------------------------------------------------- rows that join


def write_all(decoding):
    while decoding.rows:
        decoding.step()


@pytest.mark.parametrize("late", ["ab", "a longer prompt than what is there by then"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_rows_that_join_later_say_what_they_say_alone_and_so_do_the_others(llama, kind, late):
    model, tokenizer = llama[0], endless(llama[1])
    if kind != "llama":
        torch.manual_seed(0)
        model = make_sharp(ARCHITECTURES[kind]())
    prompts = [
        ids % 60 if kind != "llama" else ids for ids in encode(tokenizer, "hello", "x", late)
    ]
    params = [
        SamplingParams(12, temperature=0.8),
        SamplingParams(5, temperature=1.2, top_k=9),
        SamplingParams(9, temperature=0),
    ]
    seeds = [31, 32, 33]
    joint = Decoding(PolicyModel(model), tokenizer)
    said = joint.admit(prompts[:2], params[:2], seeds[:2])
    for _ in range(3):
        joint.step()
    said += joint.admit(prompts[2:], params[2:], seeds[2:])
    write_all(joint)
    for prompt, one, seed, response in zip(prompts, params, seeds, said, strict=True):
        (alone,) = sample(model, tokenizer, [prompt], one, [seed])
        assert response.tokens == alone.tokens
        assert response.finish_reason == alone.finish_reason
        assert_close(response.logprobs, alone.logprobs, rtol=0, atol=1e-4)
    assert [len(response.tokens) for response in said] == [12, 5, 9]


def test_rows_may_join_after_all_others_have_left(llama):
    model, tokenizer = llama
    prompts = encode(tokenizer, "hello", "x")
    decoding = Decoding(PolicyModel(model), tokenizer)
    decoding.admit(prompts[:1], [greedy(2)], [0])
    write_all(decoding)
    (late,) = decoding.admit(prompts[1:], [greedy(4)], [0])
    write_all(decoding)
    assert late.tokens == sample(model, tokenizer, prompts[1:], greedy(4), [0])[0].tokens


def test_a_model_with_a_cache_of_its_own_kind_takes_no_rows_while_it_writes():
    torch.manual_seed(0)
    model = make_sharp(ARCHITECTURES["gemma2"]())
    decoding = Decoding(PolicyModel(model), tiny_tokenizer())
    assert decoding.open
    decoding.admit([torch.tensor([3, 4, 5])], [greedy(3)], [0])
    assert not decoding.open
    write_all(decoding)
    assert decoding.open
