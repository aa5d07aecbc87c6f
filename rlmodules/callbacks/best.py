"""The best weights so far, through all continuations of a run."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from rlmodules.resuming.shares import copy_checkpoint


class SaveBest(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, which a run that goes on in another folder takes with it.

    Lightning's own forgets the best score there, so that a worse ``best.ckpt`` would be written.
    The files are copied; what is no longer there does not count.
    (List it before ``SaveLast``, whose file then knows of the epoch's best.)
    """

    _brought: dict[Path, Path] | None = None
    """Where files are that come from another folder -> where they go."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.current_score = state_dict["current_score"]
        here = Path(str(self.dirpath))
        scores = {Path(path): score for path, score in state_dict["best_k_models"].items()}
        scores = {path: score for path, score in scores.items() if path.is_file()}
        self._brought = {path: here / path.name for path in scores if path.parent != here}
        best = {str(here / path.name): score for path, score in scores.items()}
        if not best:
            return
        worst, first = (max, min) if self.mode == "min" else (min, max)
        path = first(best, key=lambda p: float(best[p]))
        kth = worst(best, key=lambda p: float(best[p]))
        super().load_state_dict(
            state_dict
            | {
                "dirpath": self.dirpath,
                "best_k_models": best,
                "best_model_path": path,
                "best_model_score": best[path],
                "kth_best_model_path": kth if len(best) == self.save_top_k else "",
                "kth_value": best[kth],
                "last_model_path": "",
            }
        )

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bring(trainer)  # the evaluation of an end may come before all else

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._bring(trainer)

    def _bring(self, trainer: L.Trainer) -> None:
        """Copy the files, once: later ones of this run are better."""
        brought, self._brought = self._brought or {}, None
        for path, place in brought.items() if trainer.is_global_zero else ():
            copy_checkpoint(path, place)
