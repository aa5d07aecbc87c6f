"""Says what is suspicious in the data, before anything is learned from it."""

import lightning as L
from lightning.pytorch.callbacks import Callback


class DataCheck(Callback):
    """Prints one line of all findings of the data module, and the command that shows them.

    Args:
        command: that shows the rows behind it; None where no command was typed.
    """

    def __init__(self, command: str | None = None) -> None:
        self.command = command
        self._said = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lightning has set up the data by now."""
        look = getattr(trainer.datamodule, "findings", None)
        if self._said or look is None or not trainer.is_global_zero:
            return
        self._said = True
        if findings := look():
            how = f" See: {self.command}" if self.command else ""
            print(f"Suspicious in the data: {'; '.join(findings)}.{how}", flush=True)
