"""Our side of ``compare_trl.py ppo``: the same work as ``peers/trl_ppo.py``, one JSON line out."""

import argparse
import json
import logging
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import lightning as L
import torch
from ours_mode import enter_mode, model_config
from side_by_side import add_mode

from datamodules import rewards
from rlmodules import PPOConfig, PPOTrainer
from rlmodules.algorithms.online import OnlineModule
from rlmodules.models.vocabulary import match_ends

SPENT = ("time/rollout_s", "time/evaluate_s")


class IterationClock(L.Callback):
    """Wall seconds of each iteration, from the start of its rollout to the end of its updates."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds.append(time.perf_counter() - self._began)


def no_end(module: OnlineModule) -> None:
    """Have every response take its full length, as TRL's do here: nothing ends one."""
    module.tokenizer.eos_token = module.tokenizer.chat_template = None
    module.base_model.generation_config.eos_token_id = None
    match_ends(module.base_model, module.tokenizer)  # which has noted what there was before


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--reward-model", required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--response-length", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatch", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attention", default="auto")
    add_mode(parser)
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    mode = enter_mode(args)
    config = PPOConfig(
        model_name=args.model,
        batch_size=args.episodes,
        mini_batch_size=args.minibatch,
        ppo_epochs=args.epochs,
        max_new_tokens=args.response_length,
        num_iterations=args.warmup + args.iterations,
        save_every=10**6,
        temperature=0.7,
        top_p=1.0,
        learning_rate=3e-6,
        seed=args.seed,
        device="cpu",
    )
    clock = IterationClock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            config,
            reward_fn=rewards.model(args.reward_model),
            model_config=model_config(args),
            output_dir=folder,
            precision="bf16-true",
            logger=False,
            callbacks=[clock],
            enable_progress_bar=False,
        )
        no_end(trainer.module)
        trainer.train(Path(args.prompts).read_text().splitlines())
    metrics = trainer.module.rollout_metrics
    print(
        json.dumps(
            {
                "side": "ours",
                "version": "0.1.0",
                "seconds": clock.seconds[args.warmup :],
                "episodes_per_iteration": args.episodes,
                "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "response_tokens": metrics["rollout/response_length"],
                "notes": [mode]
                + [f"{k} {metrics[k]:.2f}" for k in ("time/rollout_s", "time/evaluate_s")],
            }
        )
    )


if __name__ == "__main__":
    sys.exit(main())
