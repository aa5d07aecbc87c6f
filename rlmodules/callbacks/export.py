"""At the end: the trained model in Hugging Face format."""

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback

from rlmodules.callbacks.card import write_card
from rlmodules.callbacks.report import Report


class ExportModel(Callback):
    """Has the module write what was trained; see the ``export`` of each algorithm.

    Args:
        dirpath: where to.
        merge: under LoRA, write the merged model instead of the adapter; None: as the algorithm
            thinks best.
        dtype: of the weights; None: what they were trained in.
    """

    def __init__(self, dirpath: str, merge: bool | None = None, dtype: str | None = None) -> None:
        self.dirpath, self.options = Path(dirpath), {"merge": merge, "dtype": dtype}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.require_export(**self.options)  # before the work, not after it

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            pl_module.export(self.dirpath, **self.options)
            report = next((c for c in trainer.callbacks if isinstance(c, Report)), None)
            write_card(pl_module, self.dirpath, report, trainer.datamodule)
