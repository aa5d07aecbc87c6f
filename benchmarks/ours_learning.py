"""Our side of `compare_trl.py ... --learn`: the work of `peers/trl_learning.py`, by our API.

Options of the Trainer are those of our `conf/trainer/default.yaml` and `conf/algo/base`;
checkpoints, reports and loggers are left out, as on TRL's side. Standard output is one JSON line.
"""

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from learning_task import END_OF_LINE, Course, arguments, count_right, reward, rows
from ours_grpo import in_order
from ours_mode import bare_trainer
from ours_pairs import dataset, peak_gib

from datamodules import PreferenceDataModule, RolloutDataModule, TextGenerationEnv
from rlmodules import (
    DPO,
    GRPO,
    DPOConfig,
    GRPOConfig,
    ModelConfig,
    RewardModel,
    RewardModelConfig,
)

Module = DPO | GRPO | RewardModel
LONGEST = 64
"""Tokens of a pair's text, at most; no problem has so many."""


class PairLooks(L.Callback):
    """Notes Lightning's evaluations, on pairs."""

    def __init__(self, course: Course, judged: int) -> None:
        self.course, self.judged = course, judged

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.course.start()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.course.pause()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        share = trainer.callback_metrics["val/accuracy"].item()
        self.course.resume(trainer.global_step, share * self.judged)


class AnswerLooks(L.Callback):
    """Has held-out questions answered now and then."""

    def __init__(self, course: Course, asked: list[dict[str, str]], args: Any) -> None:
        self.course, self.asked, self.args = course, asked, args

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._look(pl_module, 0)
        self.course.start()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        if step % self.args.look_every == 0 or step == trainer.max_epochs:
            self._look(pl_module, step)

    def _look(self, module: Any, step: int) -> None:
        self.course.pause()
        with module.inference():
            model, tokenizer = module.base_model, module.tokenizer
            right = count_right(model, tokenizer, self.asked, self.args.max_new_tokens)
        self.course.resume(step, right)


def judge(
    prompts: Sequence[str], responses: Sequence[str], metadata: Sequence[dict[str, Any]]
) -> list[float]:
    """The shared reward as we call it."""
    return [reward(text, row["answer"]) for text, row in zip(responses, metadata, strict=True)]


def build(args: argparse.Namespace) -> Module:
    shared = {
        "model_name": args.model,
        "learning_rate": args.learning_rate,
        "device": "cpu",
        "seed": args.seed,
    }
    model = ModelConfig(name=args.model, dtype="float32")
    if args.task == "grpo":
        episodes = args.batch * args.generations
        sizes = {"batch_size": episodes, "mini_batch_size": args.backward}
        sizes |= {"gradient_accumulation_steps": episodes // args.backward}
        sizes |= {"num_generations": args.generations, "max_new_tokens": args.max_new_tokens}
        return GRPO(GRPOConfig(**shared, **sizes, num_iterations=args.updates), model)
    shared |= {
        "batch_size": args.batch,
        "gradient_accumulation_steps": 1,
        "num_epochs": args.passes,
        "max_length": LONGEST,
        "max_prompt_length": LONGEST - 1,
        "lr_scheduler_type": "constant",
    }
    if args.task == "dpo":
        return DPO(DPOConfig(**shared, warmup_ratio=0.0), model)
    plain = {"dropout_prob": 0.0, "center_rewards_coefficient": 0.0, "warmup_steps": 0}
    return RewardModel(RewardModelConfig(**shared, **plain), model)


def question_data(args: argparse.Namespace, module: Module) -> RolloutDataModule:
    c = module.config
    env = partial(
        TextGenerationEnv, reward_fn=judge, stop_sequences=(END_OF_LINE,), max_length=2 * LONGEST
    )
    return RolloutDataModule(
        env,
        prompts=in_order(rows(args.train), c.seed),
        eval_size=0,
        batch_size=c.batch_size,
        num_generations=c.num_generations,
        mini_batch_size=c.mini_batch_size,
        gradient_accumulation_steps=c.gradient_accumulation_steps,
        epochs=c.num_epochs,
        seed=c.seed,
    )


def pair_data(args: argparse.Namespace, module: Module) -> PreferenceDataModule:
    c = module.config
    return PreferenceDataModule(
        train_dataset=dataset(args.train, module),
        eval_dataset=dataset(args.held_out, module),
        max_length=c.max_length,
        max_prompt_length=c.max_prompt_length,
        batch_size=c.batch_size,
        gradient_accumulation_steps=c.gradient_accumulation_steps,
        seed=c.seed,
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, and say how it went."""
    L.seed_everything(args.seed, verbose=False)
    train, held_out, is_grpo = rows(args.train), rows(args.held_out), args.task == "grpo"
    args.updates = len(train) // args.batch * args.passes
    module, course = build(args), Course()
    looks = AnswerLooks(course, held_out, args) if is_grpo else PairLooks(course, len(held_out))
    evaluations = {"check_val_every_n_epoch": None, "val_check_interval": args.look_every}
    trainer = bare_trainer(
        module,
        args.precision,
        [looks],
        max_epochs=args.updates if is_grpo else args.passes,
        **({} if is_grpo else evaluations),
    )
    data = question_data(args, module) if is_grpo else pair_data(args, module)
    if not is_grpo:
        trainer.validate(module, data, verbose=False)
    trainer.fit(module, data)
    if trainer.global_step != args.updates:
        raise RuntimeError(f"{trainer.global_step} optimizer steps, expected {args.updates}")
    weights = next(module.base_model.parameters())
    packs = getattr(module, "policy", module).packs
    return {
        "side": "ours",
        "version": "0.1.0",
        "looks": course.looks,
        "judged": len(held_out),
        "peak_gib": peak_gib(),
        "notes": [
            f"{weights.dtype} weights, {'packed' if packs else 'padded'},"
            f" {torch.get_num_threads()} threads, trainer.precision={trainer.precision}"
        ],
    }


def main() -> None:
    args = arguments(__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(args.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):
        row = run(args)
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
