"""Our side of `compare_trl.py dpo`, `reward`, `sft`: the work of `peers/trl_pairs.py`, by our API.

The Trainer's options are those of our `conf/trainer/default.yaml` and
`conf/algo/base/preferences.yaml`; checkpoints, reports and loggers are left out, as on TRL's side.
Standard output is one JSON line.
"""

import argparse
import contextlib
import json
import logging
import os
import resource
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
from ours_mode import bare_trainer, enter_mode, model_config
from side_by_side import add_mode

from datamodules import (
    DemonstrationDataModule,
    DemonstrationDataset,
    PreferenceDataModule,
    PreferenceDataset,
)
from datamodules.demonstrations.dataset import Demonstrated
from datamodules.examples.dataset import Example, ExampleBatch, ExampleDataset
from rlmodules import DPO, SFT, DPOConfig, RewardModel, RewardModelConfig, SFTConfig
from rlmodules.models.layout import shared_prefix

PRECISION = {"dpo": "bf16-true", "reward": "32-true", "sft": "bf16-true"}
"""`32-true` leaves every type as it was loaded: a bfloat16 model under a float32 head."""


class StepClock(L.Callback):
    """Wall seconds of each optimizer step, its pairs and its loss."""

    def __init__(self) -> None:
        self.stamps: list[float] = []
        self.losses: list[float] = []
        self.examples: list[list[Example]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stamps.append(time.perf_counter())

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: ExampleBatch[Any],
        batch_idx: int,
    ) -> None:
        self.losses.append(outputs["loss"].item())
        self.examples.append(batch.examples)
        self.stamps.append(time.perf_counter())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", required=True, choices=list(PRECISION))
    parser.add_argument("--model", required=True, help="folder of the checkpoint")
    parser.add_argument("--pairs", required=True, type=Path, help="JSONL; all are trained on, once")
    parser.add_argument("--warmup", type=int, default=0, help="optimizer steps that are not timed")
    parser.add_argument("--batch", type=int, default=8, help="pairs an optimizer step")
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    threads = int(os.environ.get("OMP_NUM_THREADS", "2"))
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--attention", default="auto")
    add_mode(parser)
    return parser.parse_args()


def build(args: argparse.Namespace) -> DPO | RewardModel | SFT:
    settings = {
        "model_name": args.model,
        "learning_rate": args.learning_rate,
        "batch_size": args.batch,
        "gradient_accumulation_steps": 1,
        "max_length": args.max_length,
        "lr_scheduler_type": "constant",
        "device": "cpu",
        "seed": args.seed,
    }
    if args.task == "sft":
        return SFT(SFTConfig(**settings), model_config(args))
    settings["max_prompt_length"] = args.max_length - 1  # TRL has no limit of its own for prompts
    if args.task == "dpo":
        return DPO(DPOConfig(**settings), model_config(args))
    plain = {"dropout_prob": 0.0, "center_rewards_coefficient": 0.0}
    return RewardModel(RewardModelConfig(**settings, **plain), model_config(args))


def dataset(path: Path, module: DPO | RewardModel | SFT) -> ExampleDataset[Any]:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    prompts, chosen, rejected = (
        [row[name] for row in rows] for name in ("prompt", "chosen", "rejected")
    )
    if isinstance(module, SFT):
        return DemonstrationDataset(
            chosen, module.tokenizer, module.config.max_length, prompts=prompts
        )
    return PreferenceDataset(
        prompts,
        chosen,
        rejected,
        module.tokenizer,
        module.config.max_length,
        module.config.max_prompt_length,
        close=module.closes_texts,
    )


def tokens(example: Example) -> int:
    """Of prompt and chosen together, and, where there is one, of prompt and rejected."""
    return sum(map(len, example.sequences))


def computed_tokens(example: Example) -> int:
    """Of a packed pair: what both sides begin with is there once."""
    if isinstance(example, Demonstrated):
        return tokens(example)
    return tokens(example) - shared_prefix(example.sequences)


def predictions(example: Example) -> int:
    """Positions of a pair that reach the vocabulary; common ones once."""
    if isinstance(example, Demonstrated):
        return len(example.learned)
    first = max(example.prompt_length, 1)
    common = max(shared_prefix(example.sequences), first)
    return common - first + sum(len(sequence) - common for sequence in example.sequences)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, and say how it went."""
    L.seed_everything(args.seed, verbose=False)
    mode, module, clock = enter_mode(args), build(args), StepClock()
    c = module.config
    made = dataset(args.pairs, module)
    data_class = DemonstrationDataModule if args.task == "sft" else PreferenceDataModule
    data = data_class(
        train_dataset=made,
        eval_size=0,
        batch_size=c.batch_size,
        gradient_accumulation_steps=c.gradient_accumulation_steps,
        seed=c.seed,
    )
    trainer = bare_trainer(module, PRECISION[args.task], [clock], max_epochs=c.num_epochs)
    trainer.fit(module, data)
    if not getattr(module, "policy", module).packs:
        raise RuntimeError("the model is not packed: computed_tokens would be wrong")
    timed = clock.examples[args.warmup :]
    predicts = args.task != "reward"
    every = made.examples
    return {
        "side": "ours",
        "version": "0.1.0",
        "seconds": [end - start for start, end in pairwise(clock.stamps)][args.warmup :],
        "losses": clock.losses[args.warmup :],
        "pairs_per_step": args.batch,
        "tokens_per_pair": sum(map(tokens, every)) / len(every),
        "tokens": [sum(map(tokens, step)) for step in timed],
        "computed_tokens": [sum(map(computed_tokens, step)) for step in timed],
        "predictions": [sum(map(predictions, step)) if predicts else 0 for step in timed],
        "peak_gib": peak_gib(),
        "notes": [
            f"{next(module.base_model.parameters()).dtype} weights, packed,"
            f" {torch.get_num_threads()} threads, trainer.precision={trainer.precision}",
            mode,
            f"{sum(map(computed_tokens, every)) / sum(map(tokens, every)):.0%} of all tokens are"
            " computed: shared prefixes once, no padding; pairs sorted by length within a few"
            " batches, batches in random order",
        ]
        + ([] if predicts else ["texts without an end token (TRL adds one); float32 head"]),
    }


def peak_gib() -> float:
    """Largest resident memory of this process, in GiB (`ru_maxrss` is bytes on macOS only)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):
        row = run(args)
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
