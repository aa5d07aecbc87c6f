"""PreferenceDataModule: a file of preferences -> batches for DPO, ORPO and reward models."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch

from datamodules.checks import require_seed, require_whole
from datamodules.preferences.dataset import ExampleDataset
from datamodules.preferences.rows import Pair, Scored, as_pair, as_scored
from datamodules.preferences.streams import HeldOutExamples, TrainExamples
from datamodules.template_options import set_template_defaults
from datamodules.text.encoding import Limits
from datamodules.text.tables import read_rows, require_dataset
from datamodules.types import as_preference_learner


class PreferenceDataModule(L.LightningDataModule):
    """Pairs (or, with ``objectives``, scored responses), read, checked and tokenized once.

    The algorithm is ``trainer.lightning_module``, a ``datamodules.types.PreferenceLearner``.

    Args:
        path: see ``read_rows`` and ``datamodules.preferences.rows`` for files and formats.
        eval_path: held-out rows; without it a tenth of the training prompts is held out.
        eval_size: held-out rows, at most; 0 evaluates nothing.
        train_dataset, eval_dataset: already tokenized, instead of a path.
        objectives: columns that hold scores; rows then have ``prompt`` and ``response``.
        split, eval_split: of Hugging Face datasets; default ``train`` and ``test``.
        chat_template_kwargs: what the chat template reads beside the conversation, such as
            ``{"enable_thinking": False}``; written into the template, so that an exported model
            has it too (``set_template_defaults``). A column of that name says it for single rows.
        on_error: ``raise``, or ``skip`` rows that cannot be learned from.
        max_length, max_prompt_length: see ``Limits``.
        batch_size: examples a backward pass, over all processes.
        gradient_accumulation_steps: backward passes an optimizer step, as the Trainer is told.
        eval_batch_size: examples evaluated at once, over all processes.
        seed: of the order of examples and of the split.
    """

    trainer: L.Trainer

    def __init__(
        self,
        path: str | None = None,
        *,
        eval_path: str | None = None,
        eval_size: int = 256,
        train_dataset: ExampleDataset | None = None,
        eval_dataset: ExampleDataset | None = None,
        objectives: Sequence[str] | None = None,
        split: str | None = None,
        eval_split: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
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
        sizes = {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
        sizes |= {"gradient_accumulation_steps": gradient_accumulation_steps}
        require_whole("data", 1, **sizes)
        require_whole("data", 0, eval_size=eval_size)
        require_seed("data.seed", seed)
        self.path, self.eval_path, self.eval_size = path, eval_path, eval_size
        require_dataset("data.split", split, path)
        require_dataset("data.eval_split", eval_split, eval_path)
        self.splits = (split or "train", eval_split or "test")
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.objectives = list(objectives) if objectives else None
        require_whole("data", 2, max_length=max_length)
        require_whole("data", 1, max_prompt_length=max_prompt_length)
        try:
            self.limits = Limits(max_length, max_prompt_length)
        except ValueError as error:
            raise ValueError(f"data.{error}") from None
        self.chat_template_kwargs, self.on_error = chat_template_kwargs, on_error
        self.batch_size, self.accumulate = batch_size, gradient_accumulation_steps
        self.eval_batch_size, self.seed = eval_batch_size, seed

    def setup(self, stage: str | None = None) -> None:
        """Read, check and tokenize, once.

        Raises:
            ValueError: the algorithm is no ``PreferenceLearner``, or rows cannot be learned from.
        """
        learner = as_preference_learner(self.trainer.lightning_module)
        given = self.chat_template_kwargs
        set_template_defaults(learner.tokenizer, given, "data.chat_template_kwargs")
        train, held_out = self.train_dataset, self.eval_dataset
        if train is None:
            assert self.path is not None  # __init__ has seen to it
            train = self._load(self.path, self.splits[0])
        if self.eval_size and held_out is None:
            if self.eval_path is not None:
                held_out = self._load(self.eval_path, self.splits[1], "data.eval_path")
                held_out = held_out.subset(range(len(held_out))[: self.eval_size])
            elif self.train_dataset is None:
                rows, held_out_rows = split_prompts(train, self.eval_size, self.seed)
                if held_out_rows:
                    problems, held_out = train.problems, train.subset(held_out_rows)
                    train = train.subset(rows)
                    train.problems = problems
        if self.train_dataset is None and self.trainer.is_global_zero:
            print(self._counts(train, held_out), flush=True)
        self.train_dataset, self.eval_dataset = train, held_out

    def contents(self) -> dict[str, dict[str, str]]:
        """What was read, once it is, for runs to be told apart by."""
        sets = {"data.rows": self.train_dataset, "data.rows.held_out": self.eval_dataset}
        return {
            name: {"shown": f"{self.path or len(rows)}", "digest": rows_digest(rows)}
            for name, rows in sets.items()
            if rows is not None
        }

    def train_dataloader(self) -> TrainExamples:
        assert self.train_dataset is not None, "setup comes first"
        return TrainExamples(
            self.train_dataset, self.trainer, self.batch_size, self.accumulate, self.seed
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps."""
        return len(self.train_dataloader()) // self.accumulate

    def val_dataloader(self) -> HeldOutExamples | list[Any]:
        if self.eval_dataset is None:
            return []
        return HeldOutExamples(self.eval_dataset, self.trainer, self.eval_batch_size)

    def _load(self, path: str, split: str, option: str = "data.path") -> ExampleDataset:
        learner = as_preference_learner(self.trainer.lightning_module)
        problems: list[str] = []
        rows: list[tuple[str, Pair | Scored]] = []
        for where, row in read_rows(path, split, problems.append, option):
            try:
                item = as_scored(row, self.objectives) if self.objectives else as_pair(row)
                rows.append((where, item))
            except ValueError as error:
                problems.append(f"{where}: {error}")
        if not rows and not problems:
            raise ValueError(f"{option}={path!r} holds no rows")
        return ExampleDataset(
            rows,
            learner.tokenizer,
            self.limits,
            close=learner.closes_texts,
            on_error=self.on_error,
            problems=problems,
        )

    def _counts(self, train: ExampleDataset, held_out: ExampleDataset | None) -> str:
        unit = "scored responses" if self.objectives else "pairs"
        skipped = len(train.problems) + (len(held_out.problems) if held_out else 0)
        tokens = sum(map(train.num_tokens, range(len(train))))
        mean = tokens / len(train) / len(train[0].sequences)
        return (
            f"{len(train)} {unit} to train on ({mean:.0f} tokens a text),"
            f" {len(held_out) if held_out else 0} held out"
            + (f", {skipped} skipped" if skipped else "")
        )


def rows_digest(dataset: ExampleDataset) -> str:
    """Changes with any row, whatever the tokenizer makes of it."""
    state = hashlib.sha256()
    for item in dataset.items:
        state.update(repr(item).encode(errors="surrogatepass"))
    return state.hexdigest()[:32]


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
    shuffled = [list(groups.values())[i] for i in order]
    held_out: list[int] = []
    for group in shuffled:
        if len(held_out) + len(group) <= wanted:
            held_out += group
    if wanted and not held_out and len(shuffled) > 1:  # every prompt has more rows than a tenth
        smallest = min(shuffled, key=len)
        held_out = smallest if len(smallest) <= eval_size else []
    return sorted(set(range(len(dataset))) - set(held_out)), sorted(held_out)
