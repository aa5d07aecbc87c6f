"""The reference's log-probabilities of every pair, computed once and kept on disk."""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.examples.dataset import ExampleBatch, ExampleDataset
from datamodules.text.cache import cached, digest, load_cached
from rlmodules.models.adapters import weights_in_use


class ReferenceTable:
    """[pairs, 2] for the training and the held-out set, on the CPU."""

    def __init__(self) -> None:
        self.tables: dict[str, Tensor] = {}
        self._of: dict[str, ExampleDataset[Any]] = {}
        self._weights = ""

    def rows(self, batch: ExampleBatch[Any]) -> Tensor:
        """[B, 2] of a batch."""
        return self.tables[batch.split][batch.rows]

    def missing(self, datamodule: Any) -> dict[str, ExampleDataset[Any]]:
        """Sets of ``datamodule`` that have no table yet."""
        sets = {"train": datamodule.train_dataset, "val": datamodule.eval_dataset}
        return {
            name: s for name, s in sets.items() if s is not None and s is not self._of.get(name)
        }

    def note(self, model: nn.Module) -> None:
        """Remember the reference by its digest, while its weights are all here."""
        self._weights = self._weights or model_digest(model)

    def fill(
        self,
        trainer: Any,
        model: nn.Module,
        compute: Callable[[ExampleBatch[Any]], Tensor],
        batch_size: int,
    ) -> None:
        """Make what is missing; the processes share the work.

        Args:
            model: the reference, which together with the data names the file in the cache.
            compute: batch -> [B, 2].
        """
        missing = self.missing(trainer.datamodule)
        if not missing:
            return
        self.note(model)
        precision = str(trainer.precision)
        for name, dataset in missing.items():
            key, self._of[name] = digest(self._weights, precision, dataset.digest()), dataset
            found = load_cached("reference", key)
            everywhere = trainer.strategy.reduce_boolean_decision(found is not None, all=True)
            if found is not None and everywhere:
                self.tables[name] = found["logps"]
                continue
            table = self._compute(trainer, dataset, compute, batch_size)
            self.tables[name] = table
            if trainer.is_global_zero:
                cached("reference", key, partial(dict, logps=table))

    def _compute(
        self, trainer: Any, dataset: ExampleDataset[Any], compute: Callable, batch_size: int
    ) -> Tensor:
        order = sorted(range(len(dataset)), key=dataset.num_tokens)
        mine = order[trainer.global_rank :: trainer.world_size]
        table = torch.zeros(len(dataset), 2)
        for start in range(0, len(mine), batch_size):
            rows = mine[start : start + batch_size]
            table[rows] = compute(dataset.batch(rows, {}, "")).cpu()
        strategy = trainer.strategy
        return strategy.reduce(table.to(strategy.root_device), reduce_op="sum").cpu()


def model_digest(model: nn.Module) -> str:
    """Changes with any weight that ``model`` computes with as it is, adapters included if on."""
    state = hashlib.sha256()
    for name, weight in sorted(weights_in_use(model).items()):
        state.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        state.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()[:32]
