"""Rows of one batch: equal prompts, environments, and rows that join others."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from sampling_helpers import ARCHITECTURES, encode, endless, greedy, make_sharp, reciter, write_all
from torch.testing import assert_close

from datamodules import TextGenerationEnv
from datamodules.types import SamplingParams
from rlmodules.algorithms.online import OnlineModule
from rlmodules.models import PolicyModel, backbone
from rlmodules.models.embedded import tiny_tokenizer
from rlmodules.sampling.decoding import Decoding, sample
from rlmodules.sampling.ways import way_of

# ------------------------------------------------------- groups, and environments


@pytest.mark.parametrize("shape", [{"temperature": 1.0}, {"temperature": 0.9, "top_p": 0.8}])
def test_a_prompt_that_several_rows_have_is_computed_once_and_changes_no_text(llama, shape):
    model, tokenizer = llama
    prompts = encode(tokenizer, "ab", "a longer one", "ab", "ab", "x", "a longer one")
    seeds = [21, 22, 23, 24, 25, 26]
    params = SamplingParams(max_new_tokens=12, **shape)
    policy, shapes = PolicyModel(model), []
    way_of(policy)  # looks at the model once
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
            sampler=partial(sample, model, tokenizer),
            sampling=greedy(10),
            inference=nullcontext,
            tokenizer=tokenizer,
            config=SimpleNamespace(judges_ends=None),
        )
        (said[stops],) = OnlineModule.act(player, observations, seeds=[0], env=env)
    assert tokenizer.decode(said[()].tokens) == "Hi END of "
    assert tokenizer.decode(said[("END",)].tokens) == "Hi END"
    assert (said[()].finish_reason, said[("END",)].finish_reason) == ("length", "stop")


# ------------------------------------------------------------------- rows that join


@pytest.mark.parametrize("late", ["ab", "a longer prompt than what is there by then"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_rows_that_join_later_say_what_they_say_alone_and_so_do_the_others(llama, kind, late):
    model, tokenizer = llama[0], endless(llama[1])
    if kind != "llama":
        torch.manual_seed(0)
        model = make_sharp(ARCHITECTURES[kind]())
    model.generation_config.eos_token_id = None
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
