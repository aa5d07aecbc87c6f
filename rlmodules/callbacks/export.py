"""At the end: the trained model in Hugging Face format."""

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback


class ExportModel(Callback):
    """Has the module write what was trained; see the ``export`` of each algorithm.

    Args:
        dirpath: where to.
        merge: under LoRA, write the merged model instead of the adapter; None leaves it to what is
            exported: a language model's adapter, a merged reward model.
    """

    def __init__(self, dirpath: str, merge: bool | None = False) -> None:
        self.dirpath, self.merge = Path(dirpath), merge

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.require_export(merge=self.merge)  # before the work, not after it

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            pl_module.export(self.dirpath, merge=self.merge)
