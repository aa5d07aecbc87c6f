"""PreferenceDataModule: a file of preferences -> batches for DPO, ORPO and reward models."""

from collections.abc import Sequence

import lightning as L
import torch

from datamodules.batching import EvaluationStream, TrainStream
from datamodules.encoding import Limits
from datamodules.pairs import Pair, Scored, as_pair, as_scored
from datamodules.preferences import ExampleDataset, PreferenceDataset, ScoredDataset
from datamodules.tables import read_rows


class PreferenceDataModule(L.LightningDataModule):
    """Pairs (or, with ``objectives``, scored responses), read, checked and tokenized once.

    The algorithm is ``trainer.lightning_module``; it must have ``tokenizer`` and ``closes_texts``
    (see ``rlmodules.offline``).

    Args:
        path: see ``read_rows`` and ``datamodules.pairs`` for files and formats.
        eval_path: held-out rows; without it a tenth of the training prompts is held out.
        eval_size: held-out rows, at most; 0 evaluates nothing.
        train_dataset, eval_dataset: already tokenized, instead of a path.
        objectives: columns that hold scores; rows then have ``prompt`` and ``response``.
        split, eval_split: of Hugging Face datasets.
        on_error: ``raise``, or ``skip`` rows that cannot be learned from.
        max_length, max_prompt_length: see ``Limits``.
        batch_size: examples a backward pass, over all processes.
        gradient_accumulation_steps: backward passes an optimizer step, as the Trainer is told.
        eval_batch_size: examples evaluated at once, over all processes.
        seed: of the order of examples and of the split.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        eval_path: str | None = None,
        eval_size: int = 256,
        train_dataset: ExampleDataset | None = None,
        eval_dataset: ExampleDataset | None = None,
        objectives: Sequence[str] | None = None,
        split: str = "train",
        eval_split: str = "test",
        on_error: str = "raise",
        max_length: int = 512,
        max_prompt_length: int = 256,
        batch_size: int = 8,
        gradient_accumulation_steps: int = 1,
        eval_batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if (path is None) == (train_dataset is None):
            raise ValueError("give either data.path (a file) or a train_dataset, not both")
        self.path, self.eval_path, self.eval_size = path, eval_path, eval_size
        self.splits = (split, eval_split)
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.objectives = list(objectives) if objectives else None
        self.on_error, self.limits = on_error, Limits(max_length, max_prompt_length)
        self.batch_size, self.accumulate = batch_size, gradient_accumulation_steps
        self.eval_batch_size, self.seed = eval_batch_size, seed

    def setup(self, stage: str | None = None) -> None:
        """Read, check and tokenize, once."""
        if self.train_dataset is None:
            rows, problems = self._read(self.path, self.splits[0])
            held_out: list = []
            if self.eval_size and self.eval_path is None:
                rows, held_out = split_prompts(rows, self.eval_size, self.seed)
            self.train_dataset = self._dataset(rows, problems)
            if self.eval_size and self.eval_path is not None:
                held_out, problems = self._read(self.eval_path, self.splits[1])
                self.eval_dataset = self._dataset(held_out[: self.eval_size], problems)
            elif held_out:
                self.eval_dataset = self._dataset(held_out, [])
            if self.trainer.is_global_zero:
                print(self._counts(), flush=True)
        if self.eval_dataset is None:
            self.trainer.limit_val_batches = 0

    def train_dataloader(self) -> TrainStream:
        return TrainStream(
            self.train_dataset, self.trainer, self.batch_size, self.accumulate, self.seed
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps."""
        return len(self.train_dataloader()) // self.accumulate

    def val_dataloader(self) -> "EvaluationStream | list":
        if self.eval_dataset is None:
            return []
        return EvaluationStream(self.eval_dataset, self.trainer, self.eval_batch_size)

    def _read(self, path: str, split: str) -> tuple[list[tuple[str, Pair | Scored]], list[str]]:
        problems: list[str] = []
        rows = []
        for where, row in read_rows(path, split, on_bad=problems.append):
            try:
                rows.append(
                    (where, as_scored(row, self.objectives) if self.objectives else as_pair(row))
                )
            except ValueError as error:
                problems.append(f"{where}: {error}")
        return rows, problems

    def _dataset(self, rows: list, problems: list[str]) -> ExampleDataset:
        module = self.trainer.lightning_module
        build = ScoredDataset if self.objectives else PreferenceDataset.of_pairs
        return build(
            rows,
            module.tokenizer,
            self.limits,
            close=module.closes_texts,
            on_error=self.on_error,
            problems=problems,
        )

    def _counts(self) -> str:
        unit = "scored responses" if self.objectives else "pairs"
        held_out = len(self.eval_dataset) if self.eval_dataset else 0
        skipped = len(self.train_dataset.problems)
        skipped += len(self.eval_dataset.problems) if self.eval_dataset else 0
        tokens = sum(map(self.train_dataset.num_tokens, range(len(self.train_dataset))))
        mean = tokens / len(self.train_dataset) / len(self.train_dataset[0].sequences)
        return (
            f"{len(self.train_dataset)} {unit} to train on ({mean:.0f} tokens a text),"
            f" {held_out} held out" + (f", {skipped} skipped" if skipped else "")
        )


def split_prompts(
    rows: list[tuple[str, Pair | Scored]], eval_size: int, seed: int
) -> tuple[list, list]:
    """Training and held-out rows: about a tenth, at most ``eval_size``, no prompt in both."""
    groups: dict[str, list] = {}
    for row in rows:
        key = repr(row[1].prompt.content) if row[1].prompt.content else row[0]
        groups.setdefault(key, []).append(row)
    wanted = min(eval_size, len(rows) // 10)
    generator = torch.Generator().manual_seed(seed)
    keys = list(groups)
    held_out: list = []
    for index in torch.randperm(len(keys), generator=generator).tolist():
        if len(held_out) + len(groups[keys[index]]) <= wanted:
            held_out += groups.pop(keys[index])
    return [row for group in groups.values() for row in group], held_out
