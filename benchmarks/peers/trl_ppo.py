"""TRL's side of the PPO comparison: TRL 1.12.0 `PPOTrainer`, run as its users run it, and timed.

Runs in TRL's own environment (`compare_trl.py` builds it) and imports nothing of ours. Standard
output is one JSON line; whatever TRL prints goes to standard error.

The settings follow TRL's own PPO example, with the cheapest choice wherever TRL leaves one open:

- `per_device_train_batch_size` = the whole rollout, `gradient_accumulation_steps` = 1 and
  `num_mini_batches` = episodes / minibatch: 4 x 4 optimizer steps of 4 episodes an iteration. No
  other setting gives that. With accumulation G > 1 `PPOTrainer` steps once in G micro-batches
  whatever `num_mini_batches` says (4 steps for 4 x 4 x 4), except on the last rollout of a pass
  over the prompts, where each micro-batch steps. The steps are counted here, and checked.
- The pad token is "[PAD]", added as in TRL's example. Its id lies beyond the vocabulary (TRL masks
  it before the embedding), so that it cannot be sampled; with `stop_token=None` generation has no
  end token. Every response therefore has exactly `--response-length` tokens.
- No sample generations, no saving, no reporting. `gradient_checkpointing` and `bf16` (autocast),
  both on by default, are off here; `PPOTrainer` ignores both when it is run by `python`.
- The value model is a second full network, as `PPOTrainer` demands: a sequence-classification model
  with the policy's weights. The reference model is TRL's own copy of the policy.
- KL, clipping, GAE, learning rate and optimizer are TRL's defaults.
"""

import argparse
import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
    set_seed,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


class Clock(TrainerCallback):
    """Stamps the end of each iteration; TRL calls `on_step_end` once for an iteration."""

    def __init__(self) -> None:
        self.stamps: list[float] = []
        self.cpu_stamps: list[float] = []
        self.generation: list[float] = []
        self.lengths: list[float] = []
        self.prompts: list[int] = []
        self.optimizer_steps = 0
        self.steps: list[int] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.stamp()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.stamp()
        self.steps.append(self.optimizer_steps)
        self.optimizer_steps = 0

    def stamp(self) -> None:
        self.stamps.append(time.perf_counter())
        self.cpu_stamps.append(time.process_time())

    def count_step(self, *args: Any) -> None:
        self.optimizer_steps += 1

    def watch(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap TRL's `batch_generation`: its wall time and the lengths of what it returns."""

        def timed(
            model: Any, queries: torch.Tensor, rows: int, pad_id: int, config: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            start = time.perf_counter()
            sequences, logits = generate(model, queries, rows, pad_id, config)
            self.generation.append(time.perf_counter() - start)
            responses = sequences[:, queries.shape[1] :]
            alive = (responses != pad_id).cumprod(dim=1)  # TRL ends a response at its first pad
            self.lengths.append(alive.sum(dim=1).float().mean().item())
            self.prompts.append(queries.shape[1])
            return sequences, logits

        return timed


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder of the policy's checkpoint")
    parser.add_argument("--reward-model", required=True, help="folder of the reward model")
    parser.add_argument("--prompts", required=True, type=Path, help="text file, one prompt a line")
    parser.add_argument("--iterations", type=int, default=3, help="timed iterations")
    parser.add_argument("--warmup", type=int, default=1, help="iterations before the timed ones")
    parser.add_argument("--episodes", type=int, default=16, help="responses an iteration")
    parser.add_argument("--response-length", type=int, default=48, help="tokens of a response")
    parser.add_argument("--epochs", type=int, default=4, help="passes over a rollout")
    parser.add_argument("--minibatch", type=int, default=4, help="episodes an optimizer step")
    parser.add_argument("--seed", type=int, default=0)
    threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    args = parser.parse_args()
    if args.episodes % args.minibatch:
        parser.error(f"--minibatch {args.minibatch} must divide --episodes {args.episodes}")
    return args


def build(args: argparse.Namespace, clock: Clock, output_dir: str) -> PPOTrainer:
    """TRL's trainer with the settings that the module's docstring explains."""
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    prompts = args.prompts.read_text(encoding="utf-8").splitlines()
    needed = args.episodes * (args.warmup + args.iterations)
    rows = [prompts[index % len(prompts)] for index in range(needed)]
    dataset = Dataset.from_dict({"input_ids": tokenizer(rows)["input_ids"]})

    loading = {"dtype": getattr(torch, args.dtype), "attn_implementation": args.attention}
    policy = AutoModelForCausalLM.from_pretrained(args.model, **loading)
    classifier = AutoModelForSequenceClassification
    value = classifier.from_pretrained(args.model, num_labels=1, **loading)
    reward = classifier.from_pretrained(args.reward_model, num_labels=1, **loading)
    config = PPOConfig(
        output_dir=output_dir,
        use_cpu=True,
        bf16=False,  # the weights are already in the wanted type; no autocast on top
        seed=args.seed,
        total_episodes=needed,
        per_device_train_batch_size=args.episodes,
        gradient_accumulation_steps=1,
        num_mini_batches=args.episodes // args.minibatch,
        num_ppo_epochs=args.epochs,
        local_rollout_forward_batch_size=args.episodes,
        response_length=args.response_length,
        stop_token=None,
        num_sample_generations=0,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward,
        value_model=value,
        train_dataset=dataset,
        eval_dataset=dataset.select(range(1)),  # PPOTrainer builds its loader even when unused
        callbacks=[clock],
    )
    trainer.optimizer.optimizer.register_step_post_hook(clock.count_step)
    ppo_trainer.batch_generation = clock.watch(ppo_trainer.batch_generation)
    return trainer


def gaps(stamps: list[float]) -> list[float]:
    return [end - start for start, end in pairwise(stamps)]


def peak_gib() -> float:
    """Largest resident memory of this process, in GiB (`ru_maxrss` is bytes on macOS only)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    set_seed(args.seed)  # `PPOTrainer` seeds torch, but not NumPy, which shuffles its minibatches
    clock = Clock()
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as output_dir:
        trainer = build(args, clock, output_dir)
        trainer.train()
    expected = args.epochs * args.episodes // args.minibatch
    if set(clock.steps) != {expected}:
        raise RuntimeError(f"TRL took {clock.steps} optimizer steps, expected {expected} each")
    optimizer = trainer.optimizer.optimizer
    notes = [
        f"{args.dtype} weights, {args.attention} attention, {torch.get_num_threads()} threads",
        f"accelerate mixed precision: {trainer.accelerator.mixed_precision}",
        f"gradient checkpointing: {trainer.model.policy.is_gradient_checkpointing}",
        f"optimizer: {type(optimizer).__name__}, fused={optimizer.defaults.get('fused')}",
        "separate value network, as PPOTrainer demands",
        "pad id beyond the vocabulary and no stop token: no response ends early",
    ]
    row = {
        "side": "trl",
        "version": version("trl"),
        "seconds": gaps(clock.stamps)[args.warmup :],
        "episodes_per_iteration": args.episodes,
        "peak_gib": peak_gib(),
        "response_tokens": sum(clock.lengths) / len(clock.lengths),
        "prompt_tokens": sum(clock.prompts) / len(clock.prompts),
        "optimizer_steps": expected,
        "cpu_seconds": gaps(clock.cpu_stamps)[args.warmup :],
        "generation_seconds": clock.generation[args.warmup :],
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
        "notes": notes,
    }
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
