"""PreferenceDataModule: a file of preferences -> batches for DPO, ORPO and reward models."""

from collections.abc import Sequence

import lightning as L
import torch

from datamodules.preferences.dataset import ExampleDataset
from datamodules.preferences.rows import as_pair, as_scored
from datamodules.preferences.streams import EvaluationStream, TrainStream
from datamodules.text.encoding import Limits
from datamodules.text.tables import read_rows
from datamodules.types import as_preference_learner


class PreferenceDataModule(L.LightningDataModule):
    """Pairs (or, with ``objectives``, scored responses), read, checked and tokenized once.

    The algorithm is ``trainer.lightning_module``; it must have ``tokenizer`` and ``closes_texts``
    (see ``rlmodules.algorithms.offline``).

    Args:
        path: see ``read_rows`` and ``datamodules.preferences.rows`` for files and formats.
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
        made = self.train_dataset is None
        if made:
            self.train_dataset = self._load(self.path, self.splits[0])
        if self.eval_size and self.eval_dataset is None:
            if self.eval_path is not None:
                held_out = self._load(self.eval_path, self.splits[1])
                self.eval_dataset = held_out.subset(range(len(held_out))[: self.eval_size])
            elif made:
                parts = split_prompts(self.train_dataset, self.eval_size, self.seed)
                if parts[1]:
                    whole = self.train_dataset
                    self.train_dataset, self.eval_dataset = map(whole.subset, parts)
                    self.train_dataset.problems = whole.problems
        if made and self.trainer.is_global_zero:
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

    def _load(self, path: str, split: str) -> ExampleDataset:
        learner = as_preference_learner(self.trainer.lightning_module)
        problems: list[str] = []
        rows = []
        for where, row in read_rows(path, split, on_bad=problems.append):
            try:
                item = as_scored(row, self.objectives) if self.objectives else as_pair(row)
                rows.append((where, item))
            except ValueError as error:
                problems.append(f"{where}: {error}")
        if not rows and not problems:
            raise ValueError(f"data.path={path!r} holds no rows")
        return ExampleDataset(
            rows,
            learner.tokenizer,
            self.limits,
            close=learner.closes_texts,
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
    dataset: ExampleDataset, eval_size: int, seed: int
) -> tuple[list[int], list[int]]:
    """Training and held-out rows: about a tenth, at most ``eval_size``, no prompt in both."""
    groups: dict[str, list[int]] = {}
    for row, item in enumerate(dataset.items):
        key = repr(item.prompt.content) if item.prompt.content else str(row)
        groups.setdefault(key, []).append(row)
    wanted = min(eval_size, len(dataset) // 10)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(groups), generator=generator).tolist()
    groups = [list(groups.values())[i] for i in order]
    held_out: list[int] = []
    for group in groups:
        if len(held_out) + len(group) <= wanted:
            held_out += group
    if wanted and not held_out and len(groups) > 1:  # every prompt has more rows than a tenth
        smallest = min(groups, key=len)
        held_out = smallest if len(smallest) <= eval_size else []
    kept = set(held_out)
    return [row for row in range(len(dataset)) if row not in kept], sorted(held_out)
