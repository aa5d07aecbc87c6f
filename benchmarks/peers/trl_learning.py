"""TRL's side of `compare_trl.py ... --learn`: TRL 1.16.0's trainers as its users run them.

Runs in TRL's own environment (`compare_trl.py` builds it); of ours it imports the task alone.
Standard output is one JSON line; whatever TRL prints goes to standard error.

Settings are TRL's defaults, except where one costs time or has to agree with our side: weights in
float32, under autocast to bfloat16 where `--precision=bf16-mixed`; fused AdamW, a constant learning
rate, no gradient checkpointing (on by default), no saving, logging or reporting. Of GRPO also:
questions in the order of the file, and tokens that end a line end a response, as our stop string
does. Accuracy on pairs is what `trainer.evaluate()` reports; answers are judged by `count_right`.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.append(str(Path(__file__).resolve().parent.parent))

import torch
from datasets import Dataset
from learning_inputs import EVALUATED_AT_ONCE
from learning_task import Course, arguments, count_right, ending_tokens, reward, rows
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl_pairs import KINDS, peak_gib

ACCURACY = {"dpo": "eval_rewards/accuracies", "reward": "eval_accuracy"}
Trainer = Any


class Looks(TrainerCallback):
    """Times the training, and looks now and then at what was learned."""

    def __init__(self, args: argparse.Namespace, updates: int) -> None:
        self.args, self.updates, self.course = args, updates, Course()
        self.trainer: Trainer = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.course.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.args.look_every == 0 or state.global_step == self.updates:
            self.look(state.global_step)

    def look(self, step: int) -> None:
        self.course.pause()
        held_out = rows(self.args.held_out)
        if self.args.task == "grpo":
            tokenizer, most = self.trainer.processing_class, self.args.max_new_tokens
            with torch.autocast("cpu", torch.bfloat16, enabled=self.args.precision != "32-true"):
                right: float = count_right(self.trainer.model, tokenizer, held_out, most)
        else:
            right = self.trainer.evaluate()[ACCURACY[self.args.task]] * len(held_out)
        self.course.resume(step, right)


def judge(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    """The shared reward as TRL calls it."""
    return [reward(text, right) for text, right in zip(completions, answer, strict=True)]


def settings(args: argparse.Namespace, output_dir: str) -> dict[str, Any]:
    """Of every trainer."""
    return {
        "output_dir": output_dir,
        "use_cpu": True,
        "bf16": args.precision == "bf16-mixed",
        "seed": args.seed,
        "num_train_epochs": args.passes,
        "gradient_checkpointing": False,
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def build_grpo(args: argparse.Namespace, output_dir: str) -> GRPOTrainer:
    config = GRPOConfig(
        **settings(args, output_dir),
        shuffle_dataset=False,
        per_device_train_batch_size=args.backward,
        gradient_accumulation_steps=args.batch * args.generations // args.backward,
        num_generations=args.generations,
        max_completion_length=args.max_new_tokens,
        temperature=1.0,
    )
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32")
    model.generation_config.eos_token_id = ending_tokens(tokenizer)
    data = Dataset.from_list(rows(args.train))
    return GRPOTrainer(
        model=model,
        reward_funcs=judge,
        args=config,
        train_dataset=data,
        processing_class=tokenizer,
    )


def build_pairs(args: argparse.Namespace, output_dir: str) -> Trainer:
    config_class, trainer_class = KINDS[args.task]
    config = config_class(
        **settings(args, output_dir),
        model_init_kwargs={"dtype": "float32"},
        per_device_train_batch_size=args.batch,
        per_device_eval_batch_size=EVALUATED_AT_ONCE,
    )
    train, held_out = (Dataset.from_list(rows(path)) for path in (args.train, args.held_out))
    return trainer_class(model=args.model, args=config, train_dataset=train, eval_dataset=held_out)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, and say how it went."""
    updates = len(rows(args.train)) // args.batch * args.passes
    looks = Looks(args, updates)
    with tempfile.TemporaryDirectory() as output_dir:
        build = build_grpo if args.task == "grpo" else build_pairs
        trainer = looks.trainer = build(args, output_dir)
        trainer.add_callback(looks)
        looks.look(0)
        trainer.train()
    if trainer.state.global_step != updates:
        raise RuntimeError(f"{trainer.state.global_step} optimizer steps, expected {updates}")
    optimizer = trainer.optimizer.optimizer
    return {
        "side": "trl",
        "version": version("trl"),
        "looks": looks.course.looks,
        "judged": len(rows(args.held_out)),
        "peak_gib": peak_gib(),
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
        "notes": [
            f"{trainer.model.dtype} weights, {trainer.model.config._attn_implementation} attention,"
            f" {torch.get_num_threads()} threads, mixed precision"
            f" {trainer.accelerator.mixed_precision}, gradient checkpointing"
            f" {trainer.model.is_gradient_checkpointing},"
            f" {type(optimizer).__name__} fused={optimizer.defaults.get('fused')}"
        ],
    }


def main() -> None:
    args = arguments(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(args.threads)
    with contextlib.redirect_stdout(sys.stderr):
        row = run(args)
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
