"""TRL's side of the comparisons on preference pairs: TRL 1.16.0's `DPOTrainer`, `RewardTrainer` or
(on their chosen side) `SFTTrainer`, run as its users run them, and timed.

Runs in TRL's own environment (`compare_trl.py` builds it) and imports nothing of ours. Standard
output is one JSON line; whatever TRL prints goes to standard error.

Model and data are given as in TRL's examples: the checkpoint by name, rows of plain prompt, chosen
and rejected text. Settings are TRL's defaults, except where one costs time or has to agree with
our side:

- weights in bfloat16 and no autocast (`bf16=False`); SDPA attention; fused AdamW.
- no gradient checkpointing (on by default), no saving, no logging, no reporting.
- a constant learning rate; `max_length` is that of the comparison, and no pair is longer.
- DPO's reference is evaluated as training goes (`precompute_ref_log_probs=False`, the default).
- pairs in the order of the file (`train_sampling_strategy="sequential"`), so that both sides time
  the same set.
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

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

KINDS = {
    "dpo": (DPOConfig, DPOTrainer),
    "reward": (RewardConfig, RewardTrainer),
    "sft": (SFTConfig, SFTTrainer),
}


class Clock(TrainerCallback):
    """Stamps the end of each optimizer step, and counts what each is given."""

    def __init__(self) -> None:
        self.stamps: list[float] = []
        self.losses: list[float] = []
        self.tokens: list[int] = []
        self.computed: list[int] = []
        self.predictions: list[int] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.stamps.append(time.perf_counter())

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.stamps.append(time.perf_counter())

    def watch(self, training_step: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        """Wrap the trainer's `training_step`, which is called once an optimizer step here."""

        def counted(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
            self.tokens.append(int(inputs["attention_mask"].sum()))
            self.computed.append(inputs["input_ids"].numel())
            answers = inputs.get("completion_mask")  # the fused head projects no other position
            answers = inputs["labels"] >= 0 if "labels" in inputs else answers
            self.predictions.append(0 if answers is None else int(answers[:, 1:].sum()))
            loss = training_step(model, inputs, *args, **kwargs)
            self.losses.append(loss.item())
            return loss

        return counted


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", required=True, choices=list(KINDS))
    parser.add_argument("--model", required=True, help="folder of the checkpoint")
    parser.add_argument("--pairs", required=True, type=Path, help="JSONL; all are trained on, once")
    parser.add_argument("--warmup", type=int, default=0, help="optimizer steps that are not timed")
    parser.add_argument("--batch", type=int, default=8, help="pairs an optimizer step")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    return parser.parse_args()


def read(path: Path, task: str) -> Dataset:
    """The pairs, or for SFT the chosen side of each."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    if task == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    return Dataset.from_list(rows)


def build(args: argparse.Namespace, output_dir: str) -> DPOTrainer | RewardTrainer | SFTTrainer:
    """TRL's trainer with the settings that the module's docstring explains."""
    config_class, trainer_class = KINDS[args.task]
    config = config_class(
        output_dir=output_dir,
        model_init_kwargs={"dtype": args.dtype, "attn_implementation": args.attention},
        use_cpu=True,
        bf16=False,
        seed=args.seed,
        num_train_epochs=1,
        per_device_train_batch_size=args.batch,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        max_length=args.max_length,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return trainer_class(
        model=args.model,
        args=config,
        train_dataset=read(args.pairs, args.task),
    )


def peak_gib() -> float:
    """Largest resident memory of this process, in GiB (`ru_maxrss` is bytes on macOS only)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, and say how it went."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = build(args, output_dir)
        trainer.add_callback(clock)
        trainer.training_step = clock.watch(trainer.training_step)
        pairs = len(trainer.train_dataset)
        trainer.train()
    if len(clock.losses) != len(clock.stamps) - 1:
        raise RuntimeError(f"{len(clock.losses)} backward passes, {len(clock.stamps) - 1} steps")
    timed = slice(args.warmup, None)
    optimizer = trainer.optimizer.optimizer
    padded = 1 - sum(clock.tokens) / sum(clock.computed)
    return {
        "side": "trl",
        "version": version("trl"),
        "seconds": [end - start for start, end in pairwise(clock.stamps)][timed],
        "losses": clock.losses[timed],
        "pairs_per_step": args.batch,
        "tokens_per_pair": sum(clock.tokens) / pairs,
        "tokens": clock.tokens[timed],
        "computed_tokens": clock.computed[timed],
        "predictions": clock.predictions[timed],
        "peak_gib": peak_gib(),
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
        "notes": [
            f"{trainer.model.dtype} weights, {trainer.model.config._attn_implementation} attention,"
            f" {torch.get_num_threads()} threads, mixed precision"
            f" {trainer.accelerator.mixed_precision}, gradient checkpointing"
            f" {trainer.model.is_gradient_checkpointing},"
            f" {type(optimizer).__name__} fused={optimizer.defaults.get('fused')}",
            f"{padded:.0%} of the computed tokens are padding;"
            f" order of the pairs: {trainer.args.train_sampling_strategy}",
        ],
    }


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    with contextlib.redirect_stdout(sys.stderr):
        row = run(args)
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
