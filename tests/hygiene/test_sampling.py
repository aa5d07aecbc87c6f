"""Sampling and evaluating on the card that is none: how often the processor waits, and where.

The tables are what is there, with its reason; a line more is a regression, a line less is welcome.
"""

from dataclasses import replace

import grpo_helpers
import helpers
import pytest
import torch
from card_helpers import card
from card_run_helpers import rollout

from datamodules.types import SamplingParams
from rlmodules import GRPO, PPO
from rlmodules.sampling import decoding as decoding_module
from rlmodules.sampling.decoding import Decoding

DECODING = "rlmodules/sampling/decoding.py"
READING = "rlmodules/sampling/reading.py"
AHEAD = "rlmodules/sampling/ahead.py"
CHOOSE = "rlmodules/sampling/choose.py"
EVALUATION = "rlmodules/algorithms/evaluation.py"
LAYOUT = "rlmodules/models/layout.py"  # transformers looks whether positions are packed ones
DRAWN = {f"{DECODING}:_draw": 1}
"""Tokens, log-probabilities and kept mass come back together."""
WIDE = {f"{CHOOSE}:choose": 1}
"""Is there a row whose nucleus is wider than the candidates?"""
PADDING = {f"{READING}:_note_padding": 1}
"""Is any padding left, now that rows joined or left?"""
PER_TOKEN = {
    "all": (SamplingParams(max_new_tokens=8), DRAWN),
    "greedy": (SamplingParams(max_new_tokens=8, temperature=0.0), DRAWN),
    "top_k": (SamplingParams(max_new_tokens=8, top_k=5), DRAWN),
    "top_p": (SamplingParams(max_new_tokens=8, top_p=0.9), DRAWN | WIDE),
}


def decoding(module, params, rows=3):
    module.tokenizer.eos_token = None  # so that all rows go on
    made = Decoding(module.policy, module.tokenizer)
    texts = [torch.tensor(module.tokenizer(p)["input_ids"]) for p in helpers.PROMPTS[:rows]]
    made.admit(texts, [params] * rows, range(rows))
    return made


@pytest.mark.parametrize("name", PER_TOKEN)
def test_a_token_of_all_rows_is_one_copy_to_the_host(name, to_card, monkeypatch):
    params, expected = PER_TOKEN[name]
    with card(monkeypatch) as trace:
        rows = decoding(to_card(lambda: PPO(helpers.config()), trace), params)
        for _ in range(3):
            trace.crossings.clear()
            rows.step()
            assert trace.waits == expected
            assert trace.of("to card") == {f"{DECODING}:_draw": 1}  # the uniform numbers


@pytest.mark.parametrize("name", PER_TOKEN)
def test_eight_tokens_written_ahead_are_one_copy_to_the_host(name, to_card, monkeypatch):
    for known in ("can_record", "goes_in_place"):
        monkeypatch.setattr(decoding_module, known, lambda model: True)
    params = replace(PER_TOKEN[name][0], max_new_tokens=30)
    with card(monkeypatch) as trace:
        rows = decoding(to_card(lambda: PPO(helpers.config()), trace), params)
        rows.step()  # what is asked of a model once
        for _ in range(2):
            trace.crossings.clear()
            rows.step()
            assert trace.waits == {f"{AHEAD}:write": 1}
            assert trace.of("to card") == {f"{AHEAD}:write": 1}  # the uniform numbers
    assert {len(row.response.tokens) for row in rows.rows} == {25}


def test_rows_that_leave_ask_once_more(to_card, monkeypatch):
    short, long = SamplingParams(max_new_tokens=2), SamplingParams(max_new_tokens=8)
    with card(monkeypatch) as trace:
        module = to_card(lambda: PPO(helpers.config()), trace)
        rows = decoding(module, long, rows=2)
        rows.admit([torch.tensor([3, 4, 5])], [short], [7])
        trace.crossings.clear()
        rows.step()
        assert len(rows.rows) == 2
    assert trace.waits == DRAWN | PADDING


def test_texts_are_those_that_the_processor_writes(to_card, monkeypatch):
    with card(monkeypatch) as trace:
        module = to_card(lambda: PPO(helpers.config()), trace)
        here = rollout(module)
        there = rollout(module.to("cpu"))
    for a, b in zip(here.trajectories, there.trajectories, strict=True):
        assert torch.equal(torch.cat(a.actions), torch.cat(b.actions))
    assert torch.allclose(here.evaluation.logprobs, there.evaluation.logprobs, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "copies", "forwards"),
    [
        (lambda: PPO(helpers.config()), 3, 2),  # log-probabilities of both models, and values
        (lambda: GRPO(grpo_helpers.config()), 0, 0),  # the sampler's own are the policy's
        (lambda: GRPO(grpo_helpers.config(beta=0.1)), 1, 1),  # the reference's
        (lambda: GRPO(grpo_helpers.config(beta=0.1, num_epochs=2)), 2, 2),
    ],
)
def test_an_evaluation_is_a_copy_a_batch_and_number(make, copies, forwards, to_card, monkeypatch):
    with card(monkeypatch) as trace:
        module = to_card(make, trace)
        played = rollout(module)
        trace.crossings.clear()
        module.evaluate(played.trajectories)
    expected = {f"{EVALUATION}:evaluate": copies, f"{LAYOUT}:flat_hidden": forwards}
    assert trace.waits == {place: count for place, count in expected.items() if count}


def test_what_is_made_of_a_rollout_stays_on_the_processor(to_card, monkeypatch):
    with card(monkeypatch) as trace:
        for make in (lambda: PPO(helpers.config()), lambda: GRPO(grpo_helpers.config(beta=0.1))):
            module = to_card(make, trace)
            played = rollout(module)
            trace.crossings.clear()
            module.experience(played)
            module.held_out.add(played, module.tokenizer)
            assert trace.crossings.total() == 0


def test_a_minibatch_is_copied_once(to_card, monkeypatch):
    with card(monkeypatch) as trace:
        module = to_card(lambda: PPO(helpers.config()), trace)
        experience = module.experience(rollout(module))
        rows = list(range(len(experience)))
        trace.crossings.clear()
        batch = experience.minibatch(rows, 1.0).to("cuda:0")
    assert trace.waits == {}
    copied = ("actions", "mask", "old_logprobs", "advantages", "values", "returns")
    assert sum(trace.of("to card").values()) == len(copied)
    assert all(
        isinstance(x, torch.Tensor) and x.device.type == "cpu" for x in batch.tokens.sequences
    )
