"""What dominates: the operators and waits of a few decoding steps and of one training step.

`busy` is the share of wall time in which the card computes; where it is low, the processor cannot
launch work as fast as the card does it. `waits` counts where the processor waits for the card.
"""

import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from ours_ppo import no_end
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, StaticCache

from datamodules import PreferenceDataset
from datamodules.experience import Experience, action_mask
from datamodules.preferences.dataset import PreferenceBatch
from datamodules.types import SamplingParams
from on_gpu.bench import Bench
from on_gpu.parts import Result
from on_gpu.shapes import pairs, prompts
from rlmodules import DPO, PPO, DPOConfig, ModelConfig, PPOConfig
from rlmodules.sampling import decoding as sampling

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
CALLS = (*WAITS, "cudaMemcpyAsync", "cudaLaunchKernel", "cuLaunchKernel", "cudaLaunchKernelExC")
TOP = 10


def traced(bench: Bench, run: Callable[[], Any], per: int) -> Result:
    """The profile of ``run``, after one that is not looked at.

    Args:
        per: tokens or steps that ``run`` does; counts of calls are given for one.
    """
    run()
    bench.synchronize()
    start = time.perf_counter()
    run()
    bench.synchronize()
    plain = time.perf_counter() - start
    on_card = bench.device == "cuda"
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_card
    with profile(activities=kinds) as profiler:
        run()
        bench.synchronize()
    events = profiler.key_averages()
    card = lambda e: getattr(e, "self_device_time_total", 0.0) / 1e3  # noqa: E731
    # Kernels are events of the device; operators carry the time of theirs once more.
    kernels = [e for e in events if card(e) and str(e.device_type).endswith("CUDA")]
    total = sum(map(card, kernels))
    row = lambda e, ms: [e.key[:80], round(ms / per, 4), round(e.count / per, 1)]  # noqa: E731
    by_card = sorted(kernels, key=card, reverse=True)[:TOP]
    operators = [e for e in events if card(e) and e not in kernels]
    by_operator = sorted(operators, key=card, reverse=True)[:TOP]
    host = lambda e: e.self_cpu_time_total / 1e3  # noqa: E731
    by_host = sorted(events, key=host, reverse=True)[:TOP]
    return {
        "ms_each": plain * 1e3 / per,
        "card_ms_each": total / per,
        "busy": total / (plain * 1e3),
        "calls_each": {e.key: round(e.count / per, 1) for e in events if e.key in CALLS},
        "top_kernels_ms": [row(e, card(e)) for e in by_card],
        "top_operators_card_ms": [row(e, card(e)) for e in by_operator],
        "top_host_ms": [row(e, host(e)) for e in by_host],
        **bench.memory(),
    }


def decoding(bench: Bench, size: str, *, recorded: bool) -> Result:
    """Tokens of all rows whose prompts are read, by recorded steps or by single ones."""
    bench.fresh()
    folder, steps = str(bench.model(size)), 4 if bench.tiny else 16
    c = PPOConfig(model_name=folder, device=bench.device)
    module = PPO(c, ModelConfig(name=folder)).to(bench.device)
    no_end(module)
    s = bench.size
    ids = [torch.tensor(module.tokenizer(p)["input_ids"])
           for p in prompts(s["episodes"], s["prompt"])]  # fmt: skip
    params = SamplingParams(max_new_tokens=8 * steps)
    on_card = bench.device == "cuda"
    with (
        mock.patch.object(sampling, "can_record", return_value=recorded and on_card),
        torch.autocast(bench.device, torch.bfloat16),
    ):
        rows = sampling.Decoding(module.policy, module.tokenizer)
        said = rows.admit(ids, [params] * len(ids), range(len(ids)))

        def run() -> None:
            start = len(said[0].tokens)
            while len(said[0].tokens) - start < steps:
                rows.step()

        found = traced(bench, run, steps)
    w = bench.counts(size)
    weights = 2 * (w["layers"] + w["vocabulary"])
    cached = w["cache_bytes"] * len(ids) * (s["prompt"] + 2 * steps)
    limit = (weights + cached) / bench.bandwidth * 1e3
    return {**found, "limit_ms": limit, "share": limit / found["ms_each"]}


def graphed(bench: Bench, size: str) -> Result:
    """What a decoding step could take: bf16 weights, a static cache, one CUDA graph."""
    bench.fresh()
    s = bench.size
    model: Any = AutoModelForCausalLM.from_pretrained(bench.model(size), dtype=torch.bfloat16)
    model = model.to(bench.device).eval()
    rows, prompt, response = s["episodes"], s["prompt"], s["response"]
    cache = StaticCache(config=model.config, max_cache_len=prompt + response + 64)
    ids = torch.randint(3, 200, (rows, prompt), device=bench.device)
    took = {}
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
        token = ids[:, :1].clone()
        at = torch.full((rows, 1), prompt, device=bench.device)

        def step() -> torch.Tensor:
            out = model(input_ids=token, position_ids=at, past_key_values=cache, use_cache=True)
            return out.logits[:, -1].float()

        for _ in range(3):
            step()
        took["static_cache_ms"] = bench.seconds(step, repeats=5) * 1e3
        if bench.device == "cuda":
            graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                step()
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                step()
            took["graph_ms"] = bench.seconds(graph.replay) * 1e3
    w = bench.counts(size)
    weights = 2 * (w["layers"] + w["vocabulary"])
    cached = w["cache_bytes"] * rows * (prompt + response)
    return {"rows": rows, **took, "limit_ms": (weights + cached) / bench.bandwidth * 1e3}


def iteration(bench: Bench, algorithm: str, size: str) -> Result:
    """Training steps of PPO or DPO: forward, backward, clipping and optimizer."""
    bench.fresh()
    folder = str(bench.model(size))
    shared = {"model_name": folder, "device": bench.device}
    module: Any
    if algorithm == "ppo":
        module = PPO(PPOConfig(**shared), ModelConfig(name=folder)).to(bench.device)
    else:
        module = DPO(DPOConfig(**shared), ModelConfig(name=folder)).to(bench.device)
    loss = {"ppo": _ppo_loss, "dpo": _dpo_loss}[algorithm](bench, module)
    weights = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=True)

    def run() -> None:
        with torch.autocast(bench.device, torch.bfloat16):
            value = loss()
        value.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in weights if p.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(weights, 1.0, norm)
        optimizer.step()
        optimizer.zero_grad()

    return traced(bench, run, 1)


def _ppo_loss(bench: Bench, module: PPO) -> Callable[[], torch.Tensor]:
    s = bench.size
    rows, width = s["minibatch"], s["response"]
    sequences = [torch.randint(3, 200, (s["prompt"] + width,)) for _ in range(rows)]
    positions = [torch.arange(s["prompt"], len(ids)) for ids in sequences]
    mask = action_mask(positions)
    numbers = {name: torch.randn(mask.shape) for name in ("advantages", "values", "returns")}
    numbers["old_logprobs"] = torch.full(mask.shape, -11.0)
    experience = Experience(sequences, positions, mask, **numbers)
    batch = experience.minibatch(list(range(rows)), float(mask.sum())).to(bench.device)
    return lambda: module._loss(batch)[0]


def _dpo_loss(bench: Bench, module: DPO) -> Callable[[], torch.Tensor]:
    s = bench.size
    rows = pairs(s["pairs"], s["pair_prompt"], s["shortest"], s["longest"])
    columns = ([row[name] for row in rows] for name in ("prompt", "chosen", "rejected"))
    every = PreferenceDataset(*columns, module.tokenizer, 1024, 512)
    totals = {"num_examples": float(len(rows)), "num_response_tokens": 1.0}
    batch = PreferenceBatch(every.examples, torch.arange(len(rows)), totals, "train")
    return lambda: module.losses(batch)[0]
