"""Tokens that are written several at a time, in places that do not grow: the same texts.

Here each step is computed; on a card it is recorded (``benchmarks/gpu.py``).
"""

import pytest
import torch
from sampling_helpers import ARCHITECTURES, SEEDS, SHAPES, encode, endless, make_sharp, write_all
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from datamodules.types import SamplingParams
from rlmodules.models import PolicyModel
from rlmodules.sampling import decoding as decoding_module
from rlmodules.sampling.decoding import Decoding, sample
from rlmodules.sampling.in_place import InPlace
from rlmodules.sampling.reading import Cached
from rlmodules.sampling.ways import goes_in_place

IN_PLACE = {"gpt2": True, "opt": True, "qwen2": True, "mistral": False, "gemma2": False}
"""Windows of attention are masks of another kind, and caches that forget."""


@pytest.fixture
def ahead(monkeypatch):
    """Write ahead on the processor too; returns what has been written so."""
    written = []

    def switch(at_once=8, span=512):
        write = decoding_module.Ahead.write

        def noted(self, uniform):
            written.append(len(uniform))
            return write(self, uniform)

        for name, value in (("RECORDED_STEPS", 1), ("AT_ONCE", at_once), ("SPAN", span)):
            monkeypatch.setattr(decoding_module, name, value)
        monkeypatch.setattr(decoding_module, "can_record", lambda model: True)
        monkeypatch.setattr(decoding_module.Ahead, "write", noted)
        return written

    return switch


def architecture(name):
    torch.manual_seed(0)
    model = make_sharp(ARCHITECTURES[name]())
    model.generation_config.eos_token_id = None
    return model


def check_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert one.tokens == other.tokens and one.finish_reason == other.finish_reason
        for name in ("logprobs", "kept_mass"):
            mine, theirs = (torch.tensor(getattr(r, name)) for r in (one, other))
            assert_close(mine, theirs, rtol=0, atol=1e-4)


PROMPTS = ["ab", "a much longer prompt, of many", "x", "hello there", "ab"]


def ids_of(tokenizer, known=60):
    return [ids % known for ids in encode(tokenizer, *PROMPTS)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_texts_are_those_of_single_steps(name, shape, ahead, llama):
    model, tokenizer = architecture(name), endless(llama[1])
    prompts = ids_of(tokenizer)
    lengths = [19, 3, 11, 24, 1]
    params = [SamplingParams(n, **shape) for n in lengths]

    def write():
        decoding = Decoding(PolicyModel(model), tokenizer)
        said = decoding.admit(prompts, params, SEEDS)
        write_all(decoding)
        return said

    plain = write()
    written = ahead()
    check_same(write(), plain)
    assert [len(r.tokens) for r in plain] == lengths
    assert bool(written) is goes_in_place(PolicyModel(model)) is IN_PLACE[name]


def test_ends_are_found_among_what_was_written_ahead(ahead, llama):
    model, tokenizer = llama
    prompts = encode(tokenizer, *PROMPTS)
    free = sample(model, tokenizer, prompts, SamplingParams(40), SEEDS)
    stop = tokenizer.decode(free[1].tokens[10:13])
    params = SamplingParams(40, stop_strings=(stop,))
    plain = sample(model, tokenizer, prompts, params, SEEDS)
    assert {r.finish_reason for r in plain} == {"stop", "eos", "length"}
    written = ahead()
    check_same(sample(model, tokenizer, prompts, params, SEEDS), plain)
    assert written


@pytest.mark.parametrize("span", [1, 5, 8, 100])
def test_room_is_made_anew_where_it_ends(span, ahead, llama):
    model, tokenizer = llama[0], endless(llama[1])
    prompts = encode(tokenizer, *PROMPTS)
    plain = sample(model, tokenizer, prompts, SamplingParams(30), SEEDS)
    written = ahead(span=span)
    check_same(sample(model, tokenizer, prompts, SamplingParams(30), SEEDS), plain)
    assert sum(written) == 29 and max(written) == min(span, 8)


def test_rows_that_join_meanwhile_find_the_others_as_they_are(ahead, llama):
    model, tokenizer = llama[0], endless(llama[1])
    prompts = encode(tokenizer, *PROMPTS)
    params = [SamplingParams(n) for n in (20, 5, 17, 9, 13)]
    plain = [
        sample(model, tokenizer, [ids], one, [seed])[0]
        for ids, one, seed in zip(prompts, params, SEEDS, strict=True)
    ]
    written = ahead(at_once=3)
    decoding = Decoding(PolicyModel(model), tokenizer)
    said = decoding.admit(prompts[:3], params[:3], SEEDS[:3])
    decoding.step()
    assert [len(r.tokens) for r in said] == [4, 4, 4] and written == [3]
    said += decoding.admit(prompts[3:], params[3:], SEEDS[3:])
    decoding.step()
    assert [len(r.tokens) for r in said] == [5, 5, 5, 2, 2]  # one by one, until rows stay
    write_all(decoding)
    check_same(said, plain)
    assert len(written) > 1


def test_rows_of_several_shapes_are_written_one_by_one(ahead, llama):
    model, tokenizer = llama[0], endless(llama[1])
    written = ahead()
    decoding = Decoding(PolicyModel(model), tokenizer)
    params = [SamplingParams(12), SamplingParams(12, temperature=0.5)]
    decoding.admit(encode(tokenizer, "ab", "x"), params, [1, 2])
    decoding.step()
    assert not written


def test_a_row_that_has_ended_stays_within_the_models_positions(ahead, llama):
    """The shorter one's places would go on to 66, of 64 that there are."""
    model, tokenizer = architecture("gpt2"), endless(llama[1])
    prompts = [torch.arange(3, 60), torch.tensor([3, 4])]
    params = [SamplingParams(7), SamplingParams(40)]
    policy = PolicyModel(model)
    plain = [
        sample(policy, tokenizer, [ids], one, [5])[0]
        for ids, one in zip(prompts, params, strict=True)
    ]
    ahead()
    decoding = Decoding(policy, tokenizer)
    said = decoding.admit(prompts, params, [5, 5])
    decoding.step()
    decoding.step()
    write_all(decoding)
    check_same(said, plain)


def test_weights_that_were_stepped_are_read_anew(ahead):
    """Under autocast there are copies of them."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=256, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    policy = PolicyModel(model)
    ids = [torch.tensor([3, 5, 7]), torch.tensor([4, 8])]

    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    torch.manual_seed(1)
    others = {name: torch.randn_like(weight) / 16 for name, weight in before.items()}

    def write(weights):
        model.load_state_dict(before)
        decoding = Decoding(policy, None)
        with torch.autocast("cpu", torch.bfloat16):
            said = decoding.admit(ids, [SamplingParams(17, temperature=0.0)] * 2, [1, 2])
            while len(said[0].tokens) < 9:
                decoding.step()
        model.load_state_dict(weights)
        with torch.autocast("cpu", torch.bfloat16):  # which keeps casts of its own until it ends
            write_all(decoding)
        return [r.tokens for r in said]

    plain = write(before), write(others)
    assert plain[0] != plain[1]
    written = ahead()
    assert (write(before), write(others)) == plain and written


def test_a_cache_of_more_than_keys_and_values_is_refused():
    model = architecture("mistral")
    rows, _ = Cached.read(PolicyModel(model), [torch.tensor([3, 4, 5])])
    with pytest.raises(NotImplementedError, match="more than plain keys"):
        InPlace(rows, 4, [3])
