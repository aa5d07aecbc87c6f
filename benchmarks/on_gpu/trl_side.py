"""TRL's side of `speed.py`, on the same card and checkpoints: GRPO, DPO, a reward model, SFT.

TRL's defaults (float32 weights under bf16), except what costs time or has to agree with our side:
no gradient checkpointing (on by default), no saving, no logging; a constant learning rate; the same
texts, sizes and lengths. Imports nothing of ours but texts and shapes.
"""

import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from on_gpu.parts import Parts, Result, arguments, quiet
from on_gpu.shapes import SIZES, model_folder, pairs, prompts

KINDS = {
    "grpo": (GRPOConfig, GRPOTrainer),
    "dpo": (DPOConfig, DPOTrainer),
    "reward": (RewardConfig, RewardTrainer),
    "sft": (SFTConfig, SFTTrainer),
}


class Clock(TrainerCallback):
    """Stamps the end of each optimizer step."""

    def __init__(self, device: str) -> None:
        self.device, self.stamps = device, []

    def stamp(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.stamps.append(time.perf_counter())

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.stamp()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.stamp()


def letters(completions: list[str], **kwargs: Any) -> list[float]:
    return [sum(map(str.isalpha, text)) / max(len(text), 1) for text in completions]


def settings(name: str, s: dict[str, int]) -> dict[str, Any]:
    """What a kind of trainer is told besides what all are."""
    if name != "grpo":
        return {"per_device_train_batch_size": s["pairs"], "max_length": 1024}
    return {
        "per_device_train_batch_size": s["minibatch"],
        "gradient_accumulation_steps": s["episodes"] // s["minibatch"],
        "num_generations": s["generations"],
        "max_completion_length": s["response"],
        "generation_kwargs": {"min_new_tokens": s["response"]},
        "beta": 0.04,
        "temperature": 1.0,
        "shuffle_dataset": False,
    }


def run(name: str, s: dict[str, int], folder: Path, device: str) -> Result:
    """Train, and say how long a step takes; the first two are not timed."""
    steps, warmup = (4, 1) if name == "grpo" else (8, 2)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if name == "grpo":
        asked = s["episodes"] // s["generations"]
        rows = [{"prompt": prompt} for prompt in prompts(asked * steps, s["prompt"])]
        extra: dict[str, Any] = {"reward_funcs": letters}
    else:
        rows = pairs(s["pairs"] * steps, s["pair_prompt"], s["shortest"], s["longest"])
        extra = {}
    if name == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    config_kind, kind = KINDS[name]
    clock = Clock(device)
    with tempfile.TemporaryDirectory() as out:
        config = config_kind(
            output_dir=out,
            use_cpu=device == "cpu",
            bf16=True,
            num_train_epochs=1,
            gradient_checkpointing=False,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **settings(name, s),
        )
        trainer = kind(model=str(folder), args=config, train_dataset=Dataset.from_list(rows),
                       callbacks=[clock], **extra)  # fmt: skip
        trainer.train()
    seconds = [end - start for start, end in pairwise(clock.stamps)]
    result: Result = {"step_s": median(seconds[warmup:]), "first_step_s": seconds[0],
                      "steps": len(seconds)}  # fmt: skip
    if device == "cuda":
        result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    result["weights"] = str(next(trainer.model.parameters()).dtype)
    result["attention"] = trainer.model.config._attn_implementation
    return result


def main() -> None:
    args = arguments(__doc__.splitlines()[0]).parse_args()
    parts = Parts(args.out, args.seconds, args.only)
    size = "tiny" if args.tiny else "0.5B"
    sizes = SIZES["tiny" if args.tiny else "full"]
    with tempfile.TemporaryDirectory() as folder:
        path = model_folder(size, Path(folder), args.device)
        for name in KINDS:
            part = partial(run, name, sizes, path, args.device)
            parts.run(f"trl-{name}-0.5B", part, seconds=60)


if __name__ == "__main__":
    with quiet():
        main()
