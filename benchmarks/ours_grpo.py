"""Our side of `compare_trl.py grpo` and `distill`: the work of `peers/trl_grpo.py`, by our API.

The Trainer's options are those of our `conf/trainer/default.yaml` and `conf/algo/base/online.yaml`;
checkpoints, reports and loggers are left out, as on TRL's side. Standard output is one JSON line.
"""

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Sequence
from functools import partial
from statistics import mean
from typing import Any

import lightning as L
import torch
from grpo_task import Work, arguments, check_lengths, questions, reward
from ours_mode import bare_trainer, enter_mode, model_config
from ours_pairs import peak_gib
from ours_ppo import IterationClock, no_end
from side_by_side import add_mode

from datamodules import RolloutDataModule, TextGenerationEnv
from datamodules.experience import Minibatch
from datamodules.rollouts.streams import nth_start
from datamodules.text.prompts import Prompt
from rlmodules import GRPO, Distillation, DistillationConfig, GRPOConfig
from rlmodules.models import backbone


class StepClock(IterationClock):
    """Wall seconds of each iteration, which is one optimizer step here, and what was sampled."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work
        self.prompt_lengths: list[list[int]] = []
        self.response_lengths: list[int] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self.prompt_lengths.append([])

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Minibatch,
        batch_idx: int,
    ) -> None:
        self.prompt_lengths[-1] += [int(at[0]) for at in batch.tokens.positions]
        self.response_lengths += map(len, batch.tokens.positions)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self.work.end_step()


def judge(
    prompts: Sequence[str], responses: Sequence[str], metadata: Sequence[dict[str, Any]]
) -> list[float]:
    """The shared reward as we call it."""
    return [reward(text, row["answer"]) for text, row in zip(responses, metadata, strict=True)]


def in_order(rows: Sequence[dict[str, str]], seed: int) -> list[Prompt]:
    """Prompts so arranged that the order of `seed` asks the questions as the file has them."""
    prompts: list[Any] = [None] * len(rows)
    for turn, row in enumerate(rows):
        prompts[nth_start(turn, len(rows), seed)] = Prompt(row["prompt"], row)
    return prompts


def build(args: argparse.Namespace, steps: int) -> GRPO | Distillation:
    episodes = args.questions_per_step * args.generations
    shared: dict[str, Any] = {
        "model_name": args.model,
        "learning_rate": args.learning_rate,
        "batch_size": episodes,
        "mini_batch_size": args.batch,
        "gradient_accumulation_steps": episodes // args.batch,
        "max_new_tokens": args.response_length,
        "beta": args.beta,
        "temperature": 1.0,
        "num_iterations": steps,
        "device": "cpu",
        "seed": args.seed,
    }
    module: GRPO | Distillation
    if args.teacher:
        config = DistillationConfig(**shared, teacher_model_name_or_path=args.teacher)
        module = Distillation(config, model_config(args))
    else:
        module = GRPO(GRPOConfig(**shared, num_generations=args.generations), model_config(args))
    no_end(module)
    return module


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, and say how it went."""
    L.seed_everything(args.seed, verbose=False)
    rows, mode = questions(args.questions), enter_mode(args)
    module = build(args, steps=len(rows) // args.questions_per_step)
    c, work = module.config, Work()
    clock = StepClock(work)
    work.watch(backbone(module.base_model), backbone(module.reference.model.base_model))
    data = RolloutDataModule(
        partial(TextGenerationEnv, reward_fn=judge, max_length=2048),
        prompts=in_order(rows, c.seed),
        eval_size=0,
        batch_size=c.batch_size,
        num_generations=args.generations,
        mini_batch_size=c.mini_batch_size,
        gradient_accumulation_steps=c.gradient_accumulation_steps,
        epochs=c.num_epochs,
        seed=c.seed,
    )
    trainer = bare_trainer(module, "bf16-true", [clock], max_epochs=c.num_iterations)
    trainer.fit(module, data)
    check_lengths(clock.response_lengths, args.response_length)
    if trainer.global_step != c.num_iterations:
        taken = f"{trainer.global_step} optimizer steps in {c.num_iterations} iterations"
        raise RuntimeError(f"{taken}, expected one each")
    timed, metrics = slice(args.warmup, None), trainer.callback_metrics
    weights = next(module.base_model.parameters())
    spent = ", ".join(
        f"{metrics[f'time/{x}_s']:.2f} {x}" for x in ("rollout", "evaluate", "update")
    )
    return {
        "side": "ours",
        "version": "0.1.0",
        "seconds": clock.seconds[timed],
        "samples_per_step": c.batch_size,
        "peak_gib": peak_gib(),
        "response_tokens": args.response_length,
        "prompt_tokens": [mean(lengths) for lengths in clock.prompt_lengths[timed]],
        "computed": work.steps[timed],
        "notes": [
            f"{weights.dtype} weights, {'packed' if module.policy.packs else 'padded'},"
            f" {torch.get_num_threads()} threads, trainer.precision={trainer.precision},"
            f" {c.mini_batch_size} x {c.gradient_accumulation_steps} responses a step",
            mode,
            f"seconds of the last step: {spent}",
        ],
    }


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--attention", default="auto")
    add_mode(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):
        row = run(args)
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
