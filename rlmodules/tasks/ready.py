"""A policy and its data, ready to sample outside of a training."""

import lightning as L

from datamodules import RolloutDataModule
from rlmodules.algorithms.online import OnlineModule


def make_ready(module: OnlineModule, data: RolloutDataModule, trainer: L.Trainer) -> None:
    """Put ``module`` where ``trainer`` computes, and set up ``data`` with it."""
    trainer.strategy.connect(module)  # what loaders and `act` know of a Trainer
    module.trainer = data.trainer = trainer
    trainer.precision_plugin.convert_module(module.to(trainer.strategy.root_device))
    module.eval()
    data.setup()
