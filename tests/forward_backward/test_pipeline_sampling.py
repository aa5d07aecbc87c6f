"""Samples of a model that is being trained: one at a time, in batches, and from many threads."""

import copy
import threading

import numpy as np
import pytest
import torch
from architectures import build
from pipeline_helpers import (
    LONG,
    Gate,
    batch,
    client_of,
    error_of,
    in_child,
    pipeline_of,
    same,
    sgd,
    tiny,
    weights,
)
from torch.testing import assert_close

PROMPT = [40, 50, 60, 70]
PROMPTS = [[40, 50, 60, 70], [80], [90, 100, 110, 120, 130, 140, 150], [80], [41, 51]]


def sharp():
    """A tiny model that says different things in different contexts."""
    model = tiny()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(2.5 if "embed" in name else 6)
    return model.eval()


def greedy(model, prompt, count):
    """What the model's own logits say, without a cache."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


# ----------------------------------------------------------------------- what is said


@pytest.mark.parametrize("name", ["mistral", "falcon_h1", "qwen3_5_text", "bart", "rwkv"])
@pytest.mark.filterwarnings("ignore:.*writes slowly")
def test_requests_made_at_once_are_all_answered_whatever_the_models_cache(name):
    model = build(name)
    with pipeline_of(copy.deepcopy(model)) as pipeline:
        alone = [pipeline.sample(p, max_tokens=9, seed=i) for i, p in enumerate(PROMPTS)]
        with Gate(pipeline):
            asked = [
                pipeline.sample(p, max_tokens=9, seed=i, wait=False) for i, p in enumerate(PROMPTS)
            ]
        answers = [future.result(timeout=LONG) for future in asked]
    assert [a["tokens"] for a in answers] == [a["tokens"] for a in alone]
    for together, by_itself in zip(answers, alone, strict=True):
        assert together["logprobs"] == pytest.approx(by_itself["logprobs"], abs=1e-4)


def test_a_sample_without_temperature_is_the_likeliest_text():
    model = sharp()
    expected = greedy(model, PROMPT, 12)
    assert len(set(expected)) > 3
    with pipeline_of(model) as pipeline:
        said = pipeline.sample(PROMPT, max_tokens=12, temperature=0)
        assert pipeline.sample(PROMPT, max_tokens=12, temperature=1.0, top_k=1) == said
    assert said["tokens"] == expected and said["prompt"] == PROMPT
    assert all(isinstance(token, int) for token in said["tokens"])
    assert all(isinstance(logprob, float) for logprob in said["logprobs"])


@pytest.mark.parametrize("shape", [{}, {"top_k": 7}, {"top_p": 0.7}, {"top_k": 9, "top_p": 0.8}])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_agree_with_those_of_forward(temperature, shape):
    with pipeline_of(sharp()) as pipeline:
        said = pipeline.sample(PROMPTS, max_tokens=10, temperature=temperature, seed=3, **shape)
        texts = [p + t for p, t in zip(said["prompt"], said["tokens"], strict=True)]
        seen = pipeline.forward(texts, temperature=temperature).result(timeout=LONG)
        for row, prompt in enumerate(PROMPTS):
            assert len(said["tokens"][row]) == 10
            found = seen.logprobs[row, len(prompt) : len(texts[row])]
            assert_close(torch.tensor(said["logprobs"][row]), found, atol=1e-4, rtol=0)


def test_top_k_leaves_only_the_k_likeliest():
    model = sharp()
    with torch.no_grad():
        likeliest = set(model(torch.tensor([PROMPT])).logits[0, -1].topk(3).indices.tolist())
    with pipeline_of(model) as pipeline:
        said = pipeline.sample([PROMPT] * 200, max_tokens=1, temperature=3.0, top_k=3, seed=1)
        free = pipeline.sample([PROMPT] * 200, max_tokens=1, temperature=3.0, seed=1)
    assert {tokens[0] for tokens in said["tokens"]} == likeliest
    assert not {tokens[0] for tokens in free["tokens"]} <= likeliest


def test_each_token_after_the_first_costs_one_position_of_the_model():
    model, widths = tiny(), []
    layer = model.model.layers[0].self_attn.q_proj
    with pipeline_of(model) as pipeline:
        pipeline.sample(PROMPT, max_tokens=1)  # the first one looks at the model
        layer.register_forward_pre_hook(lambda module, inputs: widths.append(inputs[0].shape[-2]))
        said = pipeline.sample(PROMPT, max_tokens=20)
    assert len(said["tokens"]) == 20
    assert len(PROMPT) + 18 <= sum(widths) <= len(PROMPT) + 20


def test_a_batch_is_answered_in_its_order_each_as_its_seed_says():
    with pipeline_of(sharp()) as pipeline:
        many = pipeline.sample(PROMPTS, max_tokens=8, seed=5)
        again = pipeline.sample(PROMPTS, max_tokens=8, seed=5)
        other = pipeline.sample(PROMPTS, max_tokens=8, seed=6)
        tensor = pipeline.sample(torch.tensor([PROMPT, PROMPT]), max_tokens=8, seed=5)
        one = pipeline.sample(torch.tensor(PROMPT), max_tokens=8, seed=5)
        listed = pipeline.sample(PROMPT, max_tokens=8, seed=5)
    assert many == again and many["tokens"] != other["tokens"]
    assert many["prompt"] == PROMPTS and len(many["tokens"]) == len(PROMPTS)
    assert tensor["prompt"] == [PROMPT, PROMPT]
    assert one["prompt"] == PROMPT and one == listed
    assert tensor["tokens"][0] == one["tokens"] == many["tokens"][0]
    assert many["tokens"][1] != many["tokens"][3]  # the same prompt, another draw


def test_unseeded_samples_differ_and_follow_torchs_random_state():
    with pipeline_of() as pipeline:
        torch.manual_seed(4)
        said = [pipeline.sample(PROMPT, max_tokens=8)["tokens"] for _ in range(3)]
        torch.manual_seed(4)
        again = [pipeline.sample(PROMPT, max_tokens=8)["tokens"] for _ in range(3)]
    assert said == again
    assert len(set(map(tuple, said))) == 3


def test_a_token_id_to_stop_at_ends_the_text_there():
    with pipeline_of() as pipeline:
        free = pipeline.sample(PROMPT, max_tokens=20, seed=2)["tokens"]
        for stop in (free[5], [free[5]], [300, free[5]]):
            ended = pipeline.sample(PROMPT, max_tokens=20, seed=2, stop=stop)
            assert ended["tokens"] == free[: free.index(free[5]) + 1]
            assert len(ended["logprobs"]) == len(ended["tokens"])


def test_a_string_to_stop_at_ends_the_text_once_it_is_there(tokenizer):
    with pipeline_of(tokenizer=tokenizer) as pipeline:
        for seed in range(10):
            free = pipeline.sample(PROMPT, max_tokens=40, seed=seed)
            plain = [t for t in free["tokens"] if t >= 3 and tokenizer.decode([t]).isalnum()]
            if plain:
                break
        stop = tokenizer.decode([plain[0]])
        ended = pipeline.sample(PROMPT, max_tokens=40, seed=seed, stop=[stop])
        assert ended["tokens"] == free["tokens"][: free["tokens"].index(plain[0]) + 1]
        assert stop in ended["text"] and stop not in ended["text"][: -len(stop)]
        assert pipeline.sample(PROMPT, max_tokens=40, seed=seed, stop=stop) == ended


def test_a_stop_string_in_the_prompt_alone_does_not_end_the_text(tokenizer):
    with pipeline_of(tokenizer=tokenizer) as pipeline:
        prompt = tokenizer("stop here")["input_ids"]
        said = pipeline.sample(prompt, max_tokens=5, seed=1, stop=["stop here"])
        assert said["tokens"] == pipeline.sample(prompt, max_tokens=5, seed=1)["tokens"]


def test_the_end_token_of_the_tokenizer_ends_a_text(tokenizer):
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 60  # said, or not, in every other step
    with pipeline_of(model, tokenizer=tokenizer) as pipeline:
        said = pipeline.sample([PROMPT] * 20, max_tokens=30, seed=1)
    ended = [tokens for tokens in said["tokens"] if len(tokens) < 30]
    assert ended
    for tokens in said["tokens"]:
        assert tokenizer.eos_token_id not in tokens[:-1]
    assert all(tokens[-1] == tokenizer.eos_token_id for tokens in ended)


@pytest.mark.parametrize("levels", [0, 1, 2])
def test_messages_are_no_prompt_and_one_is_told_what_to_do(tokenizer, levels):
    prompt = {"role": "user", "content": "Hi"}
    for _ in range(levels):
        prompt = [prompt]
    with pipeline_of(tokenizer=tokenizer) as pipeline:
        error = error_of(lambda: pipeline.sample(prompt, max_tokens=1, wait=False))
    assert isinstance(error, ValueError) and "apply_chat_template" in str(error)


def test_a_prompt_may_be_text_where_there_is_a_tokenizer(tokenizer):
    with pipeline_of(tokenizer=tokenizer) as pipeline:
        said = pipeline.sample("hello", max_tokens=5, seed=1)
        assert said["prompt"] == tokenizer("hello")["input_ids"]
        assert said["text"] == tokenizer.decode(said["tokens"], skip_special_tokens=True)
        both = pipeline.sample(["hello", "you"], max_tokens=5, seed=1)
        assert both["tokens"][0] == said["tokens"] and len(both["text"]) == 2
    with pipeline_of() as pipeline:
        for arguments in ({"prompt": "hello"}, {"prompt": PROMPT, "stop": ["x"]}):
            error = error_of(lambda a=arguments: pipeline.sample(**a, wait=False))
            assert isinstance(error, ValueError) and "tokenizer" in str(error)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": []},
        {"prompt": [[40, 50], []]},
        {"prompt": [40, 50, 100_000]},
        {"prompt": PROMPT, "max_tokens": 0},
        {"prompt": PROMPT, "max_tokens": 10_000},
        {"prompt": PROMPT, "temperature": -1.0},
        {"prompt": PROMPT, "top_p": 0.0},
        {"prompt": PROMPT, "top_k": -1},
    ],
    ids=str,
)
def test_a_request_that_makes_no_sense_is_an_error_and_no_harm_to_others(wrong):
    with pipeline_of() as pipeline:
        expected = pipeline.sample(PROMPT, max_tokens=4, seed=1)
        with Gate(pipeline):
            before = pipeline.sample(PROMPT, max_tokens=4, seed=1, wait=False)
            error = []
            asking = threading.Thread(
                target=lambda: error.append(
                    error_of(lambda: pipeline.sample(**{"max_tokens": 4} | wrong, wait=False))
                )
            )
            asking.start()
            asking.join(0.05)
            after = pipeline.sample(PROMPT, max_tokens=4, seed=1, wait=False)
        asking.join(LONG)
        assert isinstance(error[0], (ValueError, IndexError))
        for answer in (before.result(timeout=LONG), after.result(timeout=LONG)):
            assert answer["logprobs"] == pytest.approx(expected["logprobs"], abs=1e-5)
            same = {name: answer[name] for name in answer if name != "logprobs"}
            assert same == {name: expected[name] for name in same}


def test_an_error_while_text_is_written_reaches_the_caller(tokenizer):
    broken = copy.deepcopy(tokenizer)

    def child():
        def fails(*_, **__):
            raise LookupError("cannot decode")

        broken.decode = fails
        with pipeline_of(tokenizer=broken) as pipeline:
            for _ in range(2):
                futures = [pipeline.sample(PROMPT, max_tokens=2, wait=False) for _ in range(3)]
                for future in futures:
                    assert isinstance(future.exception(timeout=3), LookupError)

    in_child(child)


# ----------------------------------------------------------------------- many callers


def test_callers_at_the_same_time_get_what_they_would_get_alone(tokenizer):
    model = sharp()
    shapes = [{"temperature": 1.0}, {"temperature": 0.7, "top_k": 5}, {"temperature": 0.0}]
    requests = [
        {
            "prompt": PROMPTS[i % 5] if i % 4 else PROMPTS,
            "max_tokens": 3 + i % 11,
            "seed": i,
            **shapes[i % 3],
        }
        for i in range(40)
    ]
    found, errors = {}, []
    with pipeline_of(model, tokenizer=tokenizer) as pipeline:
        alone = [pipeline.sample(**request) for request in requests]
        ready = threading.Barrier(8)

        def ask(thread):
            try:
                ready.wait(LONG)
                for i in range(thread, 40, 8):
                    future = pipeline.sample(**requests[i], wait=False)
                    found[i] = future.result(timeout=LONG)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
    assert not errors and len(found) == 40
    for i, expected in enumerate(alone):
        assert found[i]["tokens"] == expected["tokens"], requests[i]
        assert found[i]["prompt"] == expected["prompt"]
        together, by_itself = found[i]["logprobs"], expected["logprobs"]
        if i % 4:
            together, by_itself = [together], [by_itself]
        for row, other in zip(together, by_itself, strict=True):
            assert row == pytest.approx(other, abs=1e-4)


def test_requests_that_wait_together_are_written_together():
    model, calls = tiny(), []
    with pipeline_of(model) as pipeline:
        pipeline.sample(PROMPT, max_tokens=1)  # the first one looks at the model
        with Gate(pipeline):
            model.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
            futures = [
                pipeline.sample(PROMPT, max_tokens=10, seed=seed, wait=False) for seed in range(8)
            ]
        for future in futures:
            assert len(future.result(timeout=LONG)["tokens"]) == 10
    assert len(calls) <= 8 + 10 + 1


def test_more_texts_than_are_written_at_once_are_all_written():
    with pipeline_of() as pipeline:
        with Gate(pipeline):
            futures = [
                pipeline.sample([PROMPT] * 50, max_tokens=2, seed=seed, wait=False)
                for seed in range(4)
            ]
            large = pipeline.sample([PROMPT] * 150, max_tokens=2, seed=9, wait=False)
        for future in futures:
            assert len(future.result(timeout=LONG)["tokens"]) == 50
        assert len(large.result(timeout=LONG)["tokens"]) == 150


# ----------------------------------------------------------------------- among training


@pytest.mark.parametrize("busy", [True, False])
def test_a_sample_queued_after_a_step_sees_the_new_weights_and_one_before_it_the_old(busy):
    model = tiny()
    fresh = copy.deepcopy(model)
    with pipeline_of(fresh) as pipeline:
        old = pipeline.sample(PROMPT, max_tokens=30, seed=1)
    with pipeline_of(model) as pipeline:
        gate = Gate(pipeline)
        if not busy:
            gate.open()
            gate.future.result(timeout=LONG)
        queued = [pipeline.sample(PROMPT, max_tokens=30, seed=1, wait=False)]
        pipeline.optim_step(sgd(model, lr=0.0))
        for seed in range(3):
            queued.append(pipeline.sample(PROMPT, max_tokens=30, seed=1, wait=False))
            pipeline.forward_backward(**batch(9, 4, seed=seed))
            queued.append(pipeline.sample(PROMPT, max_tokens=30, seed=1, wait=False))
            pipeline.optim_step(sgd(model, lr=30.0))
        queued.append(pipeline.sample(PROMPT, max_tokens=30, seed=1, wait=False))
        gate.open()
        said = [future.result(timeout=LONG) for future in queued]
        assert said[-1] == pipeline.sample(PROMPT, max_tokens=30, seed=1)
    assert said[0] == said[1] == said[2] == old
    assert said[3] == said[4] and said[5] == said[6]
    texts = [tuple(said[i]["tokens"]) for i in (0, 3, 5, 7)]
    assert len(set(texts)) == 4


def test_a_sample_while_another_is_being_written_waits_for_a_step_between_them():
    """The second could join the first, if it did not have to see the step."""
    model, begun, proceed = tiny(), threading.Event(), threading.Event()

    def hold(*_):
        if not begun.is_set():
            begun.set()
            assert proceed.wait(LONG)

    with pipeline_of(model) as pipeline:
        pipeline.forward_backward(**batch(9, 4)).result(timeout=LONG)
        expected = pipeline.sample(PROMPT, max_tokens=30, seed=1)
        handle = model.model.layers[0].register_forward_pre_hook(hold)
        first = pipeline.sample(PROMPT, max_tokens=30, seed=1, wait=False)
        assert begun.wait(LONG)
        joins = pipeline.sample(PROMPT, max_tokens=30, seed=1, wait=False)
        step = pipeline.optim_step(sgd(model, lr=30.0))
        second = pipeline.sample(PROMPT, max_tokens=30, seed=1, wait=False)
        proceed.set()
        assert first.result(timeout=LONG)["tokens"] == expected["tokens"]
        assert joins.result(timeout=LONG)["tokens"] == expected["tokens"]
        assert second.result(timeout=LONG)["tokens"] != expected["tokens"]
        assert step.done()
        handle.remove()
        assert pipeline.sample(PROMPT, max_tokens=30, seed=1) == second.result(timeout=LONG)


def test_a_sample_in_the_middle_of_a_window_changes_nothing_of_the_training():
    def train(samples):
        model = tiny().train()
        with pipeline_of(model, gradient_accumulation_steps=2) as pipeline:
            for seed in range(4):
                pipeline.forward_backward(**batch(6, 3, seed=seed))
                for _ in range(samples):
                    pipeline.sample(PROMPT, max_tokens=3, seed=1, wait=False)
                if seed % 2:
                    pipeline.optim_step(sgd(model)).result(timeout=LONG)
        return weights(model), model.training

    (one, mode), (other, other_mode) = train(0), train(3)
    assert same(one, other) and mode is True and other_mode is True


def test_a_client_samples_too_and_returns_a_future():
    with client_of() as client, pipeline_of() as pipeline:
        future = client.sample(prompt=PROMPT, max_tokens=4, temperature=0.7, top_k=5, seed=1)
        expected = pipeline.sample(PROMPT, 4, 0.7, 5, seed=1)
        assert future.result(timeout=LONG) == expected


def test_numbers_of_any_library_are_prompts_and_stops():
    with pipeline_of() as pipeline:
        plain = pipeline.sample([3, 4, 5], max_tokens=3, seed=1)
        array, tensor = np.array([3, 4, 5]), torch.tensor([3, 4, 5])
        for prompt in (array, list(array), list(tensor)):
            assert pipeline.sample(prompt, max_tokens=3, seed=1) == plain
        rows = pipeline.sample([np.array([3, 4, 5]), [7]], max_tokens=3, seed=1)
        assert rows["prompt"] == [[3, 4, 5], [7]] and rows["tokens"][0] == plain["tokens"]
        first = plain["tokens"][0]
        for stop in (np.int64(first), [np.int64(first)], torch.tensor([first]), first):
            assert pipeline.sample([3, 4, 5], max_tokens=3, seed=1, stop=stop)["tokens"] == [first]
