"""Small runs of an algorithm of each kind, whose last checkpoint is looked at."""

from dataclasses import replace

import lightning as L
import torch
from helpers import config, count_e
from helpers import data as rollouts
from lightning.pytorch.callbacks import Callback
from pair_helpers import data as pairs

from rlmodules import DPO, GRPO, PPO, DPOConfig, GRPOConfig, RewardModel, RewardModelConfig
from rlmodules.callbacks import (
    AtomicCheckpointIO,
    PreferenceReport,
    RunRecord,
    RunReport,
    SaveLast,
)

OFFLINE = {
    "model_name": "random:tiny",
    "batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_epochs": 3,  # of 2 optimizer steps
    "learning_rate": 1e-2,
    "eval_every": 100,
    "device": "cpu",
}
ONLINE = {"num_iterations": 3, "learning_rate": 1e-2, "max_grad_norm": 0.05}


def settings(name, **changes):
    if name == "ppo":
        return config(**ONLINE | {"kl_penalty_coef": 0.1, "kl_horizon": 20} | changes)
    if name == "grpo":
        shared = {"model_name": "random:tiny", "device": "cpu", "gradient_accumulation_steps": 1}
        sizes = {"batch_size": 8, "mini_batch_size": 4, "num_generations": 4, "max_new_tokens": 6}
        return GRPOConfig(**ONLINE | shared | sizes | {"beta": 0.1, "num_epochs": 2} | changes)
    kind, own = (DPOConfig, {}) if name == "dpo" else (RewardModelConfig, {"dropout_prob": 0.0})
    return kind(**OFFLINE | own | changes)


MODULES = {"ppo": PPO, "grpo": GRPO, "dpo": DPO, "reward": RewardModel}


def data(name, c, **changes):
    if name == "ppo":
        return rollouts(c, **changes)
    if name == "grpo":
        sizes = {"epochs": c.num_epochs, "num_generations": c.num_generations}
        reward = changes.pop("reward", count_e)
        c = replace(config(), batch_size=c.batch_size, mini_batch_size=c.mini_batch_size)
        return rollouts(c, reward, **sizes | changes)
    return pairs(c, **changes)


def fit(
    name,
    folder,
    c,
    epochs,
    ckpt_path=None,
    callbacks=(),
    allow=(),
    rows=None,
    model=None,
    **options,
):
    """Train ``model`` (a ``ModelConfig``) for ``epochs`` in all; returns the last checkpoint."""
    report = RunReport(folder) if name in ("ppo", "grpo") else PreferenceReport(folder)
    report.on_train_end = lambda *_: None
    record = [RunRecord(allow=allow)] if allow else []
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        gradient_clip_val=c.max_grad_norm,
        accumulate_grad_batches=c.gradient_accumulation_steps,
        logger=False,
        limit_val_batches=0,
        callbacks=[*record, *callbacks, report, SaveLast(folder / "checkpoints")],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )
    module, datamodule = MODULES[name](c, model), data(name, c, **rows or {})
    trainer.fit(module, datamodule, ckpt_path=ckpt_path, weights_only=True)
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


class SaveAt(Callback):
    """Saves after a batch of an epoch, as one who stops there does."""

    def __init__(self, path, epoch, batch):
        self.path, self.at = path, (epoch, batch)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            trainer.save_checkpoint(self.path)
