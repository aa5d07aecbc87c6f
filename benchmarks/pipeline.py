"""The forward-backward client beside loops without it; every figure is a ratio within one run.

- `training`: cross-entropy steps queued through the client, and the same steps in a plain PyTorch
  loop over the same functions (target: at most 3% slower); beside them the loop that one would
  write with transformers alone.
- `overlap`: a PPO-like step with a reward callback that takes 100 ms, everything awaited at once,
  and with reward, reference and training queued beside each other.
- `sampling`: requests made together, one after another, and by transformers' continuous batching.
- `remote`: what a call costs over Ray, on this machine, with the tiny model.

    PYTHONPATH=. python benchmarks/pipeline.py
    PYTHONPATH=. python benchmarks/pipeline.py --parts remote --rounds 1
"""

import argparse
import copy
import logging
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from inputs import model_folder
from side_by_side import spread
from torch import Tensor, nn

from rlmodules.forward_backward import AsyncTrainingClient
from rlmodules.forward_backward.tokens import tokens_of
from rlmodules.models import ModelConfig, PolicyModel, load_model

REWARD_SECONDS = 0.1


def timed(fn: Callable[[], Any]) -> float:
    began = time.perf_counter()
    fn()
    return time.perf_counter() - began


def interleaved(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, taken in turns; one turn before them does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, fn in ways.items():
            spent = timed(fn)
            if turn:
                seconds[name].append(spent)
    return seconds


def table(title: str, seconds: dict[str, list[float]], base: str) -> str:
    """Medians, and how much longer each way takes than `base`, round by round."""
    lines = [f"**{title}**", "", "| way | seconds | times that of the last |", "|---|---:|---:|"]
    for name, spent in seconds.items():
        ratios = [mine / other for mine, other in zip(spent, seconds[base], strict=True)]
        lines.append(f"| {name} | {spread(spent, 3)} | {spread(ratios, 3)} |")
    return "\n".join(lines)


def optimizer_of(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-5, fused=True)


# ------------------------------------------------------------------------ training


def training(model: nn.Module, args: argparse.Namespace) -> str:
    ids = torch.randint(100, 40_000, (8, args.tokens))
    ours, plain, library = (copy.deepcopy(model) for _ in range(3))
    client = AsyncTrainingClient(ours, device="cpu", optimizer=optimizer_of)
    optimizers = {id(m): optimizer_of(m.parameters()) for m in (plain, library)}

    def by_client() -> None:
        steps = []
        for _ in range(args.steps):
            client.forward_backward({"input_ids": ids})
            steps.append(client.optim_step())
        steps[-1].result()

    def by_loop(net: nn.Module, loss_of: Callable[[nn.Module], Tensor]) -> None:
        optimizer = optimizers[id(net)]
        for _ in range(args.steps):
            loss_of(net).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    policy = PolicyModel(plain)
    policy.enable_packing()
    if not policy.packs:
        raise RuntimeError("the model is not packed: the plain loop would do other work")

    def same_functions(net: nn.Module) -> Tensor:
        return -policy.score(tokens_of(ids).tokens).logprobs.mean()

    def transformers_alone(net: nn.Module) -> Tensor:
        return net(input_ids=ids, labels=ids, use_cache=False).loss

    seconds = interleaved(
        {
            "transformers' loss in a loop": lambda: by_loop(library, transformers_alone),
            "client": by_client,
            "plain loop": lambda: by_loop(plain, same_functions),
        },
        args.rounds,
    )
    client.shutdown()
    title = f"Training: {args.steps} steps of 8 x {args.tokens} tokens"
    return table(title, seconds, "plain loop")


# ------------------------------------------------------------------------- overlap


def overlap(model: nn.Module, args: argparse.Namespace) -> str:
    ids = torch.randint(100, 40_000, (8, args.tokens))
    client = AsyncTrainingClient(
        copy.deepcopy(model), copy.deepcopy(model), device="cpu", optimizer=optimizer_of
    )
    batch = {"input_ids": ids}

    def reward() -> Tensor:
        time.sleep(REWARD_SECONDS)  # a judge across the network
        return torch.rand(8)

    def one_by_one() -> None:
        for _ in range(args.steps):
            old = client.forward(batch).result().logprobs
            client.forward(batch, use_reference=True).result()
            rewards = client.submit(reward).result()
            client.forward_backward(
                batch, loss_fn="ppo", old_log_probs=old, advantages=rewards
            ).result()
            client.optim_step().result()

    def queued() -> None:
        for _ in range(args.steps):
            rewards = client.submit(reward)
            reference = client.forward(batch, use_reference=True)
            policy = client.forward(batch)
            old = client.submit(lambda x: x.logprobs, policy)
            advantages = client.submit(lambda r, _: r, rewards, reference)
            client.forward_backward(batch, loss_fn="ppo", old_log_probs=old, advantages=advantages)
            step = client.optim_step()
        step.result()

    seconds = interleaved({"queued": queued, "each awaited": one_by_one}, args.rounds)
    client.shutdown()
    title = f"Overlap: {args.steps} PPO-like steps with a reward of {REWARD_SECONDS:.1f} s"
    return table(title, seconds, "each awaited")


# ------------------------------------------------------------------------ sampling


def sampling(model: nn.Module, args: argparse.Namespace) -> str:
    model, length = copy.deepcopy(model), args.response_length
    prompts = [torch.randint(100, 40_000, (10 + 7 * i,)).tolist() for i in range(args.requests)]
    client = AsyncTrainingClient(model, device="cpu")
    ask = partial(client.sample, max_tokens=length, seed=0)

    def together() -> None:
        for answer in [ask(prompt) for prompt in prompts]:
            answer.result()

    def in_turn() -> None:
        for prompt in prompts:
            ask(prompt).result()

    ways = {"together": together, "one after another": in_turn}
    note = ""
    try:
        theirs = their_batching(load_model(ModelConfig(args.model, dtype="bfloat16")), length)
        theirs(prompts)
        ways = {"transformers' continuous batching": lambda: theirs(prompts)} | ways
    except Exception as error:
        note = f"\n\ntransformers' continuous batching did not run: {str(error)[:200]!r}"
    seconds = interleaved(ways, args.rounds)
    client.shutdown()
    title = f"Sampling: {len(prompts)} requests of {length} tokens"
    return table(title, seconds, "one after another") + note


def their_batching(model: nn.Module, length: int) -> Callable[[list[list[int]]], Any]:
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=length, min_new_tokens=length, do_sample=True, eos_token_id=-1
    )
    return lambda prompts: model.generate_batch(inputs=prompts, generation_config=config)


# -------------------------------------------------------------------------- remote


def tiny_client() -> AsyncTrainingClient:
    return AsyncTrainingClient(
        load_model(ModelConfig("random:tiny")), device="cpu", optimizer=optimizer_of
    )


def remote(model: nn.Module, args: argparse.Namespace) -> str:
    batch = {"input_ids": torch.randint(0, 200, (4, 16))}
    calls = 200

    def run(client: Any) -> None:
        for _ in range(calls // 2):
            client.forward_backward(batch)
            step = client.optim_step()
        step.result()

    def waiting(client: Any) -> None:
        for _ in range(calls):
            client.forward(batch).result()

    torch.set_num_threads(1)  # as Ray gives an actor of one core
    here = tiny_client()
    with AsyncTrainingClient.connect("local", tiny_client) as there:
        seconds = interleaved(
            {
                "Ray, queued": lambda: run(there),
                "here, queued": lambda: run(here),
                "Ray, each awaited": lambda: waiting(there),
                "here, each awaited": lambda: waiting(here),
            },
            args.rounds,
        )
    here.shutdown()
    milli = {name: 1000 * median(spent) / calls for name, spent in seconds.items()}
    lines = [f"**Remote: {calls} calls, tiny model**", "", "| way | ms a call |", "|---|---:|"]
    return "\n".join([*lines, *(f"| {name} | {value:.2f} |" for name, value in milli.items())])


PARTS = {"training": training, "overlap": overlap, "sampling": sampling, "remote": remote}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--model", help="checkpoint folder; default: the embedded model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64, help="of each of 8 texts")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--response-length", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("lightning").setLevel(logging.ERROR)
    args.model = args.model or str(model_folder(None))
    model = load_model(ModelConfig(args.model, dtype="bfloat16"))
    for part in args.parts:
        print(PARTS[part](model, args), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
