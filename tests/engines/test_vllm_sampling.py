"""A policy that samples through a server: the same tokens, the weights of now, its faults told."""

import csv
import math
import re

import pytest
import torch
from helpers import config
from torch.testing import assert_close
from vllm_helpers import fake_vllm

from datamodules.types import SamplingParams
from rlmodules import PPO, LoraConfig, ModelConfig
from rlmodules.engines.errors import SamplerError
from rlmodules.engines.vllm import VLLM
from rlmodules.models.embedded import tiny_model
from rlmodules.sampling.decoding import sample

PROMPTS = [torch.tensor([40, 41, 42]), torch.tensor([50]), torch.tensor([60, 61])]
SEEDS = [5, 6, 2**40 + 7]


def options(url, **changes):
    return VLLM(url=url, dtype="float32", **{"timeout_s": 20.0, "max_mismatch": 1e-3, **changes})


def ask(module, prompts=PROMPTS, seeds=SEEDS, **params):
    params = SamplingParams(**{"max_new_tokens": 12, "temperature": 0.7, **params})
    module.sampling = params
    return module.sampler(prompts, params, seeds)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"top_k": 20},
        {"top_p": 0.6},
        {"stop_strings": ("e", "a", "o", "\n")},
        {"stop_token_ids": tuple(range(60, 120))},
    ],
    ids=lambda params: next(iter(params), "plain"),
)
def test_responses_are_those_that_the_policys_weights_write(tmp_path, params):
    module = PPO(config())
    with fake_vllm() as server, options(server.url).serving(module, tmp_path):
        found = ask(module, **params)
        assert server.calls == ["take_weights", "reset"]  # once, whatever is asked
        ask(module, **params)
        assert server.calls == ["take_weights", "reset"]
    wanted = SamplingParams(max_new_tokens=12, temperature=0.7, **params)
    own = sample(module.policy, module.tokenizer, PROMPTS, wanted, SEEDS)
    for response, ours in zip(found, own, strict=True):
        assert response.tokens == ours.tokens and response.finish_reason == ours.finish_reason
        cut = "top_k" in params or "top_p" in params
        kept = torch.tensor(ours.kept_mass)
        drawn = torch.tensor(ours.logprobs) - kept.log()  # of what was left
        assert_close(torch.tensor(response.logprobs), drawn if cut else drawn + kept.log())
        assert response.kept_mass == [-1.0 if cut else 1.0] * len(response.tokens)
    assert not list(tmp_path.glob("sampler/*"))  # what was handed over is removed


def test_every_request_says_all_that_a_server_could_choose_by_itself(tmp_path):
    module = PPO(config())
    with fake_vllm() as server, options(server.url).serving(module, tmp_path):
        ask(module, top_p=0.9, top_k=7, stop_strings=("x",))
    asked = sorted(server.asked[-3:], key=lambda body: body["seed"])  # they come at once
    assert [body["seed"] for body in asked] == SEEDS and asked[0]["prompt"] == [40, 41, 42]
    said = {"model": "tiny", "max_tokens": 12, "temperature": 0.7, "top_p": 0.9, "top_k": 7}
    said |= {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "logprobs": 0}
    said |= {"frequency_penalty": 0.0, "stop": ["x"], "ignore_eos": True, "return_token_ids": True}
    said |= {"skip_special_tokens": False, "stop_token_ids": [module.tokenizer.eos_token_id]}
    for body in asked:
        assert said.items() <= body.items() and body.keys() - said.keys() == {"prompt", "seed"}


@pytest.mark.parametrize("lora", [0, 4])
def test_each_change_of_the_policy_is_handed_over_and_nothing_else_is(tmp_path, lora):
    module = PPO(config(), ModelConfig(name="random:tiny", lora=LoraConfig(r=lora)))
    weights = [p for p in module.base_model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.05, fused=True)
    with fake_vllm() as server, options(server.url).serving(module, tmp_path):
        before = ask(module)
        for _ in range(2):  # of fresh adapters one half gets no gradient at first
            for p in weights:
                p.grad = torch.ones_like(p)
            optimizer.step()
        after = ask(module)
        assert server.calls.count("take_weights") == 2
        own = sample(module.policy, module.tokenizer, PROMPTS, module.sampling, SEEDS)
        assert [r.tokens for r in after] == [r.tokens for r in own]
        assert [r.tokens for r in after] != [r.tokens for r in before]
        state = {name: torch.zeros_like(w) for name, w in module.policy.state_dict().items()}
        module.policy.load_state_dict(state)
        ask(module)
        assert server.calls.count("take_weights") == 3


def changed(**more):
    """An answer whose response has something else in it."""
    return lambda answer, body: {"choices": [answer["choices"][0] | more]}


def half(answer, body):
    logprobs = answer["choices"][0]["logprobs"]["token_logprobs"]
    return changed(logprobs={"token_logprobs": logprobs[1:]})(answer, body)


def failing(status, path="/v1/completions"):
    return {path: status}


REAL = "/v1/completions"
FAULTS = {
    # fault -> what the server does, and the sentence that it ends in
    "500": (failing(500), r"said 500.*no"),
    "no JSON": ({REAL: b"<html>"}, r"answered '<html>', no JSON"),
    "no choice": ({REAL: b'{"choices": []}'}, "without tokens, log-probabilities"),
    "no tokens": ({REAL: changed(token_ids=None)}, "gave tokens None and"),
    "fewer numbers": ({REAL: half}, "as many of these as of those"),
    "NaN": (
        {REAL: changed(token_ids=[5], logprobs={"token_logprobs": [float("nan")]})},
        "each finite",
    ),
    "none": (
        {REAL: changed(token_ids=[], logprobs={"token_logprobs": []})},
        r"gave tokens \[\] and",
    ),
    "another prompt": ({REAL: changed(prompt_token_ids=[1, 2])}, r"read another prompt: \[1, 2\]"),
    "aborted": ({REAL: changed(finish_reason="abort")}, "ended a response by 'abort'"),
    "raw": (
        {REAL: changed(token_ids=[5], logprobs={"token_logprobs": [-0.4]})},
        r"says -0\.400 nats \(the median\) of tokens that top_k=1.*--logprobs-mode=processed",
    ),
    "no dev mode": (failing(404, "/collective_rpc"), "VLLM_SERVER_DEV_MODE=1.*docs/vllm.md"),
    "no method": (failing(500, "/collective_rpc"), "collective_rpc said 500"),
    "cannot read": (
        {"/collective_rpc": b'{"results": [{"error": "KeyError: lm_head"}]}'},
        "could not take_weights: KeyError: lm_head",
    ),
    "reads a part": ({"/collective_rpc": b'{"results": [{"tensors": 3}]}'}, "read 3 of the"),
    "no result": ({"/collective_rpc": b"{}"}, "which is no result"),
    "cache kept": ({"/reset_prefix_cache": b'{"success": false}'}, "kept its prefix cache"),
    "no models": ({"/v1/models": b"[]"}, "no list of models"),
    "stale": ({"stale": True}, r"other weights.*says -\d.\d+ nats.*trainer -\d.\d+.*max_mismatch"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_a_server_does_wrong_is_said(tmp_path, name):
    faults, said = FAULTS[name]
    module = PPO(config())
    with fake_vllm(faults) as server, options(server.url).serving(module, tmp_path):  # noqa: SIM117
        with pytest.raises(SamplerError, match=re.compile(said, re.DOTALL)):
            ask(module)


@pytest.mark.parametrize("path", [REAL, "/collective_rpc", "/v1/models"])
def test_a_server_that_hangs_is_given_up(tmp_path, path):
    module = PPO(config())
    with fake_vllm({path: None}) as server:
        o = options(server.url, timeout_s=0.3)
        with (
            o.serving(module, tmp_path),
            pytest.raises(SamplerError, match=r"not answered for 0\.3 s"),
        ):
            ask(module)


def test_a_server_that_is_not_there_or_goes_away_is_said(tmp_path):
    module = PPO(config())
    with fake_vllm() as server, options(server.url).serving(module, tmp_path):
        ask(module)
        server.shutdown()
        server.server_close()
        with pytest.raises(SamplerError, match=f"{server.url} cannot be reached"):
            ask(module)
    with (
        options(server.url).serving(module, tmp_path),
        pytest.raises(SamplerError, match=f"no server at sampler.url={server.url}: start it"),
    ):
        ask(module)


def test_a_model_that_the_server_does_not_know_is_said(tmp_path):
    module = PPO(config())
    two = b'{"data": [{"id": "a"}, {"id": "b"}]}'
    for faults, model, said in (
        ({}, "other", "has 'tiny', and sampler.model names 'other'"),
        ({"/v1/models": two}, None, "has 'a', 'b', and sampler.model names none"),
    ):
        with (
            fake_vllm(faults) as server,
            options(server.url, model=model).serving(module, tmp_path),
            pytest.raises(SamplerError, match=said),
        ):
            ask(module)


def test_a_text_that_is_too_long_for_the_server_is_refused(tmp_path):
    module = PPO(config())
    with (
        fake_vllm({"/v1/models": b'{"data": [{"id": "tiny", "max_model_len": 14}]}'}) as server,
        options(server.url).serving(module, tmp_path),
        pytest.raises(ValueError, match=r"prompt of 3 tokens.*exceed the 14 tokens of vLLM"),
    ):
        ask(module)


# ------------------------------------------------------------------- whole runs

RUN = ("experiment=smoke", "logger=csv", "trainer.precision=32-true", "data.eval_size=2")
OTHER_METRICS = ("time/", "rollout/sampler_")


def rows_of(folder):
    (path,) = folder.glob("**/metrics.csv")
    rows = list(csv.DictReader(path.open()))
    return [{k: v for k, v in row.items() if not k.startswith(OTHER_METRICS)} for row in rows]


@pytest.mark.parametrize("algo", ["ppo", "grpo"])
def test_a_run_through_a_server_is_the_run_without_one(tmp_path, command, algo):
    """The server samples as we do: tokens, and so metrics, are the same, held-out ones too."""
    told = (*RUN, f"algo={algo}", "env=text")
    if algo == "grpo":
        told += ("algo.num_generations=2",)
    command(*told, f"hydra.run.dir={tmp_path}/own")
    with fake_vllm() as server:
        there = ("sampler=vllm", f"sampler.url={server.url}", "sampler.dtype=float32")
        command(*told, *there, f"hydra.run.dir={tmp_path}/vllm", "algo.sampler_is=token")
    own, found = rows_of(tmp_path / "own"), rows_of(tmp_path / "vllm")
    assert len(own) == len(found) >= 3
    for ours, row in zip(own, found, strict=True):
        for name, value in ours.items():
            if value:
                assert float(row[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-4), name
    assert server.calls.count("take_weights") >= 3  # before each iteration, and at the end


def test_a_run_whose_server_fails_keeps_a_checkpoint_and_goes_on_from_it(tmp_path, command):
    told = (*RUN, "algo=ppo", "env=text", "algo.num_iterations=3", "sampler=vllm")
    told += ("sampler.dtype=float32", "callbacks.report=null", "callbacks.export=null")
    answered = []

    def until_the_second_iteration(answer, body):
        answered.append(body)
        enough = len(server.calls) > 4
        return {"choices": []} if enough else answer

    with fake_vllm({REAL: until_the_second_iteration}) as server:
        said = command(*told, f"sampler.url={server.url}", f"hydra.run.dir={tmp_path}/a", status=1)
    assert "SamplerError" in said and "Continue with the same command" in said
    here = (f"hydra.run.dir={tmp_path}/a", f"ckpt_path={tmp_path}/a")
    with fake_vllm() as server:
        said = command(*told, f"sampler.url={server.url}", *here)
    assert "Resuming from" in said and "Changed" not in said
    assert len(rows_of(tmp_path / "a")) >= 3
    own = [option for option in told if not option.startswith("sampler")]
    said = command(*own, "algo.num_iterations=4", *here)  # our own may take over
    assert re.search(r"Changed from here on:\s+sampler", said), said


def test_what_has_no_use_for_a_sampler_refuses_it(command):
    there = ("sampler=vllm", "sampler.url=http://127.0.0.1:9")
    said = command("algo=dpo", "model=tiny", *there, status=1)
    assert "has no use for sampler=: leave it out" in said
    told = ("experiment=smoke", "algo=ppo", "logger=none", "trainer.accelerator=cpu", *there)
    said = command(*told, "trainer.devices=2", status=1)
    assert "sampler=vllm serves one process, and 2 are asked for" in said


def test_tokens_that_have_an_equal_are_no_fault_of_the_server(tmp_path):
    """In bfloat16 top_k=1 often leaves two, of which each has a half."""

    def with_a_tie(answer, body):
        logprobs = answer["choices"][0]["logprobs"]["token_logprobs"]
        if body["top_k"] == 1:
            logprobs[:3] = [math.log(0.5)] * 3
        return answer

    module = PPO(config())
    with fake_vllm({REAL: with_a_tie}) as server, options(server.url).serving(module, tmp_path):
        assert len(ask(module)) == 3


def test_tiny_models_differ():
    """Else the server above would need no weights."""
    assert not torch.equal(tiny_model(seed=1)[0].lm_head.weight, tiny_model()[0].lm_head.weight)
