"""Sampling against a naive loop, transformers' own warpers, and models that recite a script."""

import math

import pytest
import torch
from architectures import VARIANTS, build
from peft import LoraConfig, get_peft_model
from sampling_helpers import (
    ARCHITECTURES,
    POSITIONS,
    PROMPTS,
    SEEDS,
    SMALL,
    encode,
    every_shape,
    greedy,
    make_sharp,
    recite,
    reciter,
)
from torch.testing import assert_close
from transformers import Qwen2Config, Qwen2ForCausalLM

from datamodules.types import SamplingParams
from rlmodules.models import PolicyModel, backbone
from rlmodules.models.embedded import tiny_model, tiny_tokenizer
from rlmodules.models.vocabulary import absent_ids
from rlmodules.sampling import choose as drawing
from rlmodules.sampling.choose import choose
from rlmodules.sampling.decoding import sample
from rlmodules.sampling.ways import way_of


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
    policy = PolicyModel(model)
    way_of(policy)  # made here, for both look at the model
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


# ------------------------------------------------------------- padded vocabularies


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_ids_that_the_tokenizer_lacks_are_not_said_and_what_is_said_is_scored_alike(temperature):
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    model = make_sharp(Qwen2ForCausalLM(Qwen2Config(**SMALL | {"vocab_size": 320})))
    policy, prompts = PolicyModel(model), encode(tokenizer, "ab", "a longer one") * 4
    params = SamplingParams(max_new_tokens=12, temperature=temperature)
    responses = sample(policy, tokenizer, prompts, params, range(8))
    if temperature:  # the likeliest happen to be known ones
        free = sample(policy, None, prompts, params, range(8))
        assert max(token for r in free for token in r.tokens) >= len(tokenizer)
    for prompt, response in zip(prompts, responses, strict=True):
        assert max(response.tokens) < len(tokenizer)
        own = own_logprobs(model, prompt, response.tokens, temperature or 1.0)
        assert_close(torch.tensor(response.logprobs), own, rtol=0, atol=1e-4)
        ids = torch.cat([prompt, torch.tensor(response.tokens)])
        if temperature:
            logits = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1].detach()
            mass = (logits / temperature).softmax(-1)[:, : len(tokenizer)].sum(-1)
            assert_close(torch.tensor(response.kept_mass), mass, rtol=0, atol=1e-5)


def test_a_model_that_cuts_its_logits_says_what_is_left(monkeypatch):
    monkeypatch.setitem(VARIANTS, "inkling_text:cut", {"unpadded_vocab_size": 200})
    policy = PolicyModel(build("inkling_text:cut"))
    (response,) = sample(policy, tiny_tokenizer(), [torch.arange(3, 9)], SamplingParams(12), [0])
    assert max(response.tokens) < 200 and response.kept_mass == [1.0] * len(response.tokens)


def test_a_gap_in_the_tokenizer_is_absent_and_an_end_token_is_not():
    tokenizer = tiny_tokenizer()
    model = Qwen2ForCausalLM(Qwen2Config(**SMALL | {"vocab_size": 264}))
    assert absent_ids(model, tokenizer, 264).tolist() == [259, 260, 261, 262, 263]
    tokenizer.add_tokens(["<more>"])
    assert absent_ids(model, tokenizer, 264).tolist() == [260, 261, 262, 263]
    tokenizer.get_vocab = lambda: {"a": 0, "b": 5}
    tokenizer.add_tokens(["<again>"])
    assert absent_ids(model, tokenizer, 264).tolist() == [
        i for i in range(264) if i not in (0, 2, 5)
    ]
    assert absent_ids(model, tokenizer, 4).tolist() == [1, 3]  # logits that the model cuts off
    assert absent_ids(tiny_model()[0], tiny_tokenizer(), 259) is None
    assert absent_ids(model, None, 264) is None


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
