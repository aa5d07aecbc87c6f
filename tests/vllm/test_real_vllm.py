"""Runs that sample through the real vLLM (``make vllm``): its tokens, its faults, going on.

The model is a tiny Llama whose heads vLLM's CPU kernels take, in float32 on both sides: these are
1e-6 nats a token apart.
"""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import config
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from datamodules.types import SamplingParams
from rlmodules import PPO, LoraConfig, ModelConfig
from rlmodules.engines.handover import trainer_logprobs
from rlmodules.engines.sampler import VLLMSampler
from rlmodules.engines.vllm import VLLM
from rlmodules.models.embedded import tiny_tokenizer

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / ".venv-vllm/bin/python"
PROMPTS = [torch.tensor([40, 41, 42]), torch.tensor([50]), torch.tensor([60, 61, 90, 12])]
NEAR = 1e-3
"""Nats a token that the two engines may differ by on average, with the same weights."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tiny model with tied embeddings that is sharp enough to prefer some tokens."""
    tokenizer = tiny_tokenizer()
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served(home, tmp_path_factory):
    """A module, with adapters, that samples through a server of its own."""
    model = ModelConfig(name=str(home), dtype="float32", lora=LoraConfig(r=4))
    module = PPO(config(model_name=str(home)), model)
    folder = tmp_path_factory.mktemp("run")
    with VLLM(dtype="float32", max_mismatch=NEAR, timeout_s=300).serving(module, folder):
        yield module


def ask(module, prompts=PROMPTS, seeds=(5, 6, 7), **params):
    module.sampling = SamplingParams(**{"max_new_tokens": 16, "temperature": 0.7, **params})
    return module.sampler(prompts, module.sampling, seeds)


def apart(module, responses, prompts=PROMPTS):
    """Mean difference to the trainer's log-probabilities."""
    said = torch.tensor([x for response in responses for x in response.logprobs])
    known = trainer_logprobs(module.policy, prompts, responses, module.sampling.temperature)
    return (said - known).abs().mean().item()


def test_log_probabilities_are_the_trainers_and_a_seed_is_a_text(served):
    responses = ask(served)
    assert apart(served, responses) < NEAR
    assert [r.tokens for r in ask(served)] == [r.tokens for r in responses]
    alone = served.sampler(PROMPTS[1:2], served.sampling, [6])
    assert alone[0].tokens == responses[1].tokens  # whatever the batch
    others = ask(served, seeds=(8, 9, 10))
    assert [r.tokens for r in others] != [r.tokens for r in responses]


def test_every_change_of_tied_weights_arrives(served):
    """Twice, for what is packed anew must be unpacked again; the adapters' merged, and the head."""
    before = ask(served)
    for _ in range(2):
        with torch.no_grad():
            for name, weight in served.policy.named_parameters():
                if weight.requires_grad and "lora" in name:
                    weight.add_(0.3 * torch.randn_like(weight))
            served.policy.base_model.get_input_embeddings().weight.add_(0.05)
        after = ask(served)
        assert apart(served, after) < NEAR
        assert apart(served, before) > 100 * NEAR
        before = after


def test_responses_end_as_our_own_do(served):
    eos = served.tokenizer.eos_token_id
    ends = ask(served, stop_token_ids=tuple(range(100, 200)), max_new_tokens=40)
    for response in ends:
        cut = response.tokens[:-1]
        assert not any(100 <= token < 200 or token == eos for token in cut)
        last = response.tokens[-1]
        assert (response.finish_reason == "eos") == (100 <= last < 200 or last == eos)
    assert any(response.finish_reason == "eos" for response in ends)
    letters = tuple("aeiou stnrlhd")
    stopped = ask(served, stop_strings=letters, max_new_tokens=60)
    for response in stopped:
        texts = [served.tokenizer.decode(response.tokens[:n]) for n in range(len(response.tokens))]
        assert not any(letter in text for letter in letters for text in texts)
        if response.finish_reason == "stop":
            assert any(c in served.tokenizer.decode(response.tokens) for c in letters)
    assert any(response.finish_reason == "stop" for response in stopped)


def test_truncated_sampling_tells_what_was_left(served):
    responses = ask(served, top_k=1)
    assert all(abs(x) < 1e-4 for r in responses for x in r.logprobs)  # certain
    responses = ask(served, top_p=0.8, seeds=(11, 12, 13))
    said = torch.tensor([x for response in responses for x in response.logprobs])
    known = trainer_logprobs(served.policy, PROMPTS, responses, 0.7)
    kept = (known - said).exp()  # the probability of what was left
    assert 0.75 < kept.mean() < 0.97
    assert {k for r in responses for k in r.kept_mass} == {-1.0}


def test_other_weights_than_the_trainers_are_noticed(served):
    engine = served.sampler.engine
    ask(served)
    client, hand_over = engine.client(served), engine.hand_over
    served.policy.base_model.get_input_embeddings().weight.data.mul_(3)
    sampler = VLLMSampler(engine, served)
    with pytest.raises(RuntimeError, match=r"other weights.*nats a token and the trainer"):
        sampler._compare(client, PROMPTS)
    served.policy.base_model.get_input_embeddings().weight.data.div_(3)
    assert hand_over == engine.hand_over
    sampler._compare(client, PROMPTS)


# ------------------------------------------------------------------- whole runs


def command(home, folder, *more, algo="ppo"):
    """A run's command; its sampler is the real one."""
    return [
        sys.executable, str(ROOT / "train.py"), f"algo={algo}", "env=text", "reward=length",
        "model=hf", f"model.name={home}", "sampler=vllm", "sampler.dtype=float32",
        "logger=csv", "trainer.precision=32-true", "algo.device=cpu", "algo.batch_size=8",
        "algo.mini_batch_size=4", "algo.gradient_accumulation_steps=1", "algo.max_new_tokens=8",
        "algo.num_iterations=3", "algo.eval_every=2", "algo.save_every=1", "data.eval_size=4",
        "callbacks.report=null", "callbacks.export=null", f"hydra.run.dir={folder}", *more,
    ]  # fmt: skip


def started(*args, **more):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command(*args, **more), cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def rows_of(folder):
    paths = list(folder.glob("**/metrics.csv"))
    return list(csv.DictReader(paths[0].open())) if paths else []


def servers_of(folder):
    """Processes that were started with the weights in ``folder``, by their ids."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if f"--model={folder}/sampler/model" in words and "train.py" not in " ".join(words):
            found.append(int(path.parent.name))
    return found


def gone(folder, within_s=20):
    deadline = time.monotonic() + within_s
    while servers_of(folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not servers_of(folder)


def wait_for_rows(folder, run, count=1):
    while len(rows_of(folder)) < count:
        assert run.poll() is None, run.stdout.read()[-3000:]
        time.sleep(0.05)


@pytest.mark.parametrize("algo", ["ppo", "grpo"])
def test_a_run_samples_what_it_trains_on(home, tmp_path, algo):
    more = ["algo.sampler_is=token"] + (["algo.num_generations=2"] if algo == "grpo" else [])
    run = started(home, tmp_path, *more, algo=algo)
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 0, said[-3000:]
    rows = [row for row in rows_of(tmp_path) if row.get("rollout/sampler_kl")]
    assert len(rows) == 3
    for row in rows:
        assert abs(float(row["rollout/sampler_kl"])) < 1e-4
        assert_close(float(row["rollout/sampler_is_weight"]), 1.0, rtol=0, atol=1e-2)
    assert gone(tmp_path, 1) and not list((tmp_path / "sampler").glob("*model*"))


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
def test_a_run_whose_server_fails_goes_on_from_its_checkpoint(home, tmp_path, fault):
    many = "algo.num_iterations=400"
    run = started(home, tmp_path, "sampler.timeout_s=5", many)
    wait_for_rows(tmp_path, run)
    for pid in servers_of(tmp_path)[1:]:  # the first watches over them
        os.kill(pid, fault)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 1
    told = r"has ended|cannot be reached" if fault == signal.SIGKILL else "not answered for 5 s"
    assert re.search(told, said) and "Continue with the same command" in said, said[-3000:]
    assert gone(tmp_path)
    done = len(rows_of(tmp_path))
    run = started(home, tmp_path, f"ckpt_path={tmp_path}", "algo.num_iterations=500")
    wait_for_rows(tmp_path, run, done + 2)
    run.send_signal(signal.SIGTERM)
    said, _ = run.communicate(timeout=120)
    assert "Resuming from" in said and gone(tmp_path), said[-3000:]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_server_ends_with_the_run(home, tmp_path, number):
    run = started(home, tmp_path, "algo.num_iterations=400")
    wait_for_rows(tmp_path, run)
    assert len(servers_of(tmp_path)) >= 2
    run.send_signal(number)
    run.communicate(timeout=120)
    assert gone(tmp_path)


def test_a_server_that_cannot_start_says_why(home, tmp_path):
    run = started(home, tmp_path, "sampler.arguments=[--no-such-option]")
    said, _ = run.communicate(timeout=200)
    assert run.returncode == 1 and "no-such-option" in said and "vllm.log" in said
