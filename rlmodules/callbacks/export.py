"""At the end: the trained model in Hugging Face format."""

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from safetensors import safe_open
from torch import nn

from datamodules.atomic import replacing, swap
from rlmodules.callbacks.card import write_card
from rlmodules.callbacks.report import Report

TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Of safetensors."""
COARSE = (torch.bfloat16, torch.float16)


class ExportModel(Callback):
    """Has the module write what was trained; see the ``export`` of each algorithm.

    The folder is there once it is whole.

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
        report = next((c for c in trainer.callbacks if isinstance(c, Report)), None)
        with pl_module.to_be_written():
            if not trainer.is_global_zero:
                return
            with replacing(self.dirpath, swap) as partial:
                partial.mkdir()
                pl_module.export(partial, **self.options)
                if report is not None:
                    report.rounded = rounding(pl_module, partial)
                write_card(pl_module, partial, report, trainer.datamodule)


def rounding(module: nn.Module, dirpath: Path) -> str:
    """The type of the numbers in a folder, where they are coarser than those that were trained."""
    trained = {p.dtype for p in module.parameters() if p.requires_grad}
    path = next(iter(sorted(dirpath.glob("*model*.safetensors"))))
    with safe_open(path, "pt") as file:
        written = {TYPES.get(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
    coarser = sorted(str(kind)[6:] for kind in written if kind in COARSE and kind not in trained)
    return coarser[0] if coarser else ""
