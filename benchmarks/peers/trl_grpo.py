"""TRL's side of `compare_trl.py grpo` and `distill`: TRL 1.16.0's `GRPOTrainer` or, where there is
a teacher, `DistillationTrainer` as its users run it, timed.

Runs in TRL's own environment (`compare_trl.py` builds it); of ours it imports the task alone.
Standard output is one JSON line; whatever TRL prints goes to standard error.

Model and data are given as in TRL's examples: the checkpoint by name, rows of `prompt` and
`answer`, a reward function. Settings are TRL's defaults (transformers' `generate`, loss, clipping,
no worker processes), except where one costs time or has to agree with our side:

- weights in bfloat16 and no autocast (`bf16=False`); SDPA attention; fused AdamW.
- no gradient checkpointing (on by default; `--checkpointing` leaves it on), no saving, no logging,
  no reporting.
- questions in the order of the file (`shuffle_dataset=False`), so that both sides' steps are alike.
- `beta`, the sizes and a constant learning rate are those of the comparison; one generation and one
  optimizer step a batch, in `episodes / --batch` backward passes.
- of distillation the teacher is held as the policy is; each question has one response.
- `min_new_tokens` forbids the end token, so that every response has exactly `--response-length`.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.append(str(Path(__file__).resolve().parent.parent))

import torch
from datasets import Dataset
from grpo_task import Work, arguments, check_lengths, questions, reward
from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer
from trl_pairs import Clock, peak_gib


class StepClock(Clock):
    """Stamps the end of each optimizer step, and notes what was generated for it."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work
        self.generation: list[float] = []
        self.prompt_lengths: list[float] = []
        self.response_lengths: list[int] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        super().on_step_end(*args, **kwargs)
        self.work.end_step()

    def watch(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the trainer's `_generate_single_turn`, which is called once a batch."""

        def timed(prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            generated = generate(prompt_ids, *args, **kwargs)
            self.generation.append(time.perf_counter() - start)
            self.prompt_lengths.append(mean(map(len, prompt_ids)))
            responses = generated[0] if isinstance(generated, tuple) else generated
            self.response_lengths += map(len, responses)
            return generated

        return timed


def judge(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    """The shared reward as TRL calls it."""
    return [reward(text, right) for text, right in zip(completions, answer, strict=True)]


def build(args: argparse.Namespace, output_dir: str) -> GRPOTrainer | DistillationTrainer:
    """TRL's trainer with the settings that the module's docstring explains."""
    episodes = args.questions_per_step * args.generations
    loaded = {"dtype": "bfloat16", "attn_implementation": args.attention}
    own: dict[str, Any] = {"num_generations": args.generations}
    if args.teacher:
        own = {"teacher_model_init_kwargs": loaded}
    config = (DistillationConfig if args.teacher else GRPOConfig)(
        output_dir=output_dir,
        model_init_kwargs=loaded,
        use_cpu=True,
        bf16=False,
        seed=args.seed,
        num_train_epochs=1,
        shuffle_dataset=False,
        per_device_train_batch_size=args.batch,
        gradient_accumulation_steps=episodes // args.batch,
        gradient_checkpointing=args.checkpointing,
        max_completion_length=args.response_length,
        generation_kwargs={"min_new_tokens": args.response_length},
        beta=args.beta,
        temperature=1.0,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **own,
    )
    rows = Dataset.from_list(questions(args.questions))
    if args.teacher:
        models = {"model": args.model, "teacher_model": args.teacher}
        prompts = rows.select_columns("prompt")
        return DistillationTrainer(**models, args=config, train_dataset=prompts)
    return GRPOTrainer(model=args.model, reward_funcs=judge, args=config, train_dataset=rows)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, and say how it went."""
    work = Work()
    clock = StepClock(work)
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = build(args, output_dir)
        trainer.add_callback(clock)
        trainer._generate_single_turn = clock.watch(trainer._generate_single_turn)
        frozen = trainer.teacher_model if args.teacher else trainer.ref_model
        work.watch(trainer.model.base_model, frozen.base_model)
        trainer.train()
    check_lengths(clock.response_lengths, args.response_length)
    steps = len(trainer.train_dataset) // args.questions_per_step
    if not len(clock.generation) == len(clock.stamps) - 1 == steps:
        taken = f"{len(clock.generation)} generations, {len(clock.stamps) - 1} optimizer steps"
        raise RuntimeError(f"{taken}, expected {steps} each")
    timed = slice(args.warmup, None)
    config, optimizer = trainer.args, trainer.optimizer.optimizer
    return {
        "side": "trl",
        "version": version("trl"),
        "seconds": [end - start for start, end in pairwise(clock.stamps)][timed],
        "samples_per_step": args.questions_per_step * args.generations,
        "peak_gib": peak_gib(),
        "response_tokens": args.response_length,
        "prompt_tokens": clock.prompt_lengths[timed],
        "computed": work.steps[timed],
        "generation_seconds": clock.generation[timed],
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
        "notes": [
            f"{trainer.model.dtype} weights, {trainer.model.config._attn_implementation} attention,"
            f" {torch.get_num_threads()} threads, mixed precision"
            f" {trainer.accelerator.mixed_precision}, gradient checkpointing"
            f" {config.gradient_checkpointing}, {config.per_device_train_batch_size} x"
            f" {config.gradient_accumulation_steps} responses a step,"
            f" {type(optimizer).__name__} fused={optimizer.defaults.get('fused')}",
            f"generating takes {mean(clock.generation[timed]):.2f} s of a step",
        ],
    }


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with contextlib.redirect_stdout(sys.stderr):
        row = run(args)
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
