"""``task=evaluate``: judge a model on held-out data, instead of training it."""

from collections.abc import Mapping
from typing import Any

import lightning as L


def evaluate(
    module: L.LightningModule,
    data: L.LightningDataModule,
    trainer: L.Trainer,
    settings: Mapping[str, Any],
) -> str:
    """Every ``val/`` metric of ``module``, which ``settings`` name, as lines of text.

    Raises:
        ValueError: nothing is held out.
    """
    found = trainer.validate(module, data, verbose=False)
    if not found or not found[0]:
        raise ValueError("nothing is held out to evaluate on: see data.eval_size, data.eval_path")
    lines = [f"{settings['ckpt_path'] or settings['model']['name']} on held-out data:"]
    return "\n".join([*lines, *(f"  {name}  {value:.4f}" for name, value in found[0].items())])
