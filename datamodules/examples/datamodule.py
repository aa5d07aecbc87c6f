"""What data modules of examples share: files -> rows -> examples -> batches; what is held out."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import lightning as L
import torch

from datamodules.checks import require_seed, require_whole
from datamodules.examples.dataset import ExampleDataset
from datamodules.examples.streams import HeldOutExamples, TrainExamples
from datamodules.template_options import set_template_defaults
from datamodules.text.columns import (
    NAMES,
    TEXT,
    Cells,
    Reading,
    check_columns,
    require_columns,
)
from datamodules.text.encoding import Limits
from datamodules.text.held_out import how_many, source_of
from datamodules.text.inspection import Inspection, Sample
from datamodules.text.tables import read_rows, require_dataset
from datamodules.types import TextLearner, as_text_learner

AT_MOST = 256
"""Held-out rows, where no number was asked for."""


class ExampleDataModule(L.LightningDataModule):
    """Rows of one kind, read, checked and tokenized once; a subclass says which kind.

    The algorithm is ``trainer.lightning_module``, a ``datamodules.types.TextLearner``.

    Args:
        path: see ``read_rows`` for files; what stands in their rows, the data module says.
        columns: what the file calls otherwise: ``{prompt: frage, chosen: gut}``; null for a column
            that is not meant.
        eval_path: held-out rows; without it the data set's own test split, or else a tenth of the
            training rows, with their prompts.
        eval_size: held-out rows; 0 evaluates nothing, null takes at most 256.
        train_dataset, eval_dataset: already tokenized, instead of a path.
        chat_template_kwargs: what the chat template reads beside the conversation, such as
            ``{"enable_thinking": False}``; written into the template, so that an exported model
            has it too (``set_template_defaults``). A column of that name says it for single rows.
        split, eval_split, name: of folders and Hugging Face datasets, see ``read_rows``; default
            ``train`` and ``test``. The name of a configuration is of both paths.
        on_error: ``raise``, or ``skip`` rows that cannot be learned from.
        batch_size: examples a backward pass, over all processes.
        gradient_accumulation_steps: backward passes an optimizer step, as the Trainer is told.
        eval_batch_size: examples evaluated at once, over all processes.
        seed: of the order of examples and of the split.

    Attributes:
        limits: how long texts may be.
        readings: what was read of each file, by the option that names it.
    """

    trainer: L.Trainer
    limits: Limits
    names: ClassVar[Sequence[str]] = NAMES
    """What ``columns`` can give a column to be."""

    def __init__(
        self,
        path: str | None = None,
        *,
        columns: Mapping[str, str | None] | None = None,
        eval_path: str | None = None,
        eval_size: int | None = None,
        train_dataset: ExampleDataset[Any] | None = None,
        eval_dataset: ExampleDataset[Any] | None = None,
        split: str | None = None,
        eval_split: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        on_error: str = "raise",
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
        if eval_size is not None:
            require_whole("data", 0, eval_size=eval_size)
        require_seed("data.seed", seed)
        self.path, self.eval_path, self.eval_size = path, eval_path, eval_size
        require_dataset("data.split", split, path)
        require_dataset("data.eval_split", eval_split, eval_path or path)
        require_dataset("data.name", name, path, eval_path)
        self.split, self.eval_split, self.name = split, eval_split, name
        check_columns(columns, self.names)
        self.columns = columns
        self.readings: dict[str, Reading] = {}
        self.train_dataset: Any = train_dataset  # of the data module's own kind
        self.eval_dataset: Any = eval_dataset
        self.chat_template_kwargs, self.on_error = chat_template_kwargs, on_error
        self.batch_size, self.accumulate = batch_size, gradient_accumulation_steps
        self.eval_batch_size, self.seed = eval_batch_size, seed

    # ------------------------------------------------------- what a kind of rows says

    kind: ClassVar[str]
    """What algorithms say that they learn from: ``preferences``."""

    @property
    def numbers(self) -> Collection[str]:
        """Columns that hold numbers."""
        return ()

    @property
    def sides(self) -> int:
        """Responses of an example."""
        return 1

    @property
    def unit(self) -> str:
        """What the rows are, in words."""
        raise NotImplementedError

    def read(
        self, rows: Sequence[tuple[str, Cells]], problems: list[str], reading: Reading
    ) -> list[tuple[str, Any]]:
        """What rows say, with where they stand; why one says nothing goes to ``problems``, remarks
        to ``reading``."""
        raise NotImplementedError

    def made_of(
        self, items: Sequence[tuple[str, Any]], learner: TextLearner, problems: Sequence[str]
    ) -> ExampleDataset[Any]:
        """Examples of what was read."""
        raise NotImplementedError

    def told_of(self, train: ExampleDataset[Any]) -> str:
        """How long the texts are, in words."""
        tokens = sum(map(train.num_tokens, range(len(train))))
        return f"{tokens / len(train) / len(train[0].sequences):.0f} tokens a text"

    def inspection(self) -> Inspection:
        """What there is to see in the rows, once they are read."""
        raise NotImplementedError

    def samples(self, wanted: int) -> list[Sample]:
        """So many rows that are trained on, to look at."""
        raise NotImplementedError

    # --------------------------------------------------------------- what is common

    def setup(self, stage: str | None = None) -> None:
        """Read, check and tokenize, once.

        Raises:
            ValueError: the algorithm is no ``TextLearner``, or of another kind of rows, or they
                cannot be learned from.
        """
        learner = as_text_learner(self.trainer.lightning_module, self.kind)
        given = self.chat_template_kwargs
        set_template_defaults(learner.tokenizer, given, "data.chat_template_kwargs")
        train, held_out = self.train_dataset, self.eval_dataset
        said = "drawn from them"
        if train is None:
            assert self.path is not None  # __init__ has seen to it
            train = self._load(self.path, self.split, "data.path")
        if self.eval_size != 0 and held_out is None:
            paths = (self.path, self.split, self.eval_path, self.eval_split)
            if (source := source_of(*paths, self.name)) is not None:
                said = source.said
                held_out = self._load(source.path, source.split, source.option, held_out=True)
                size = AT_MOST if self.eval_size is None else self.eval_size
                held_out = held_out.subset(range(len(held_out))[:size])
            elif self.train_dataset is None:
                train, held_out = self._draw(train)
        if self.train_dataset is None and self.trainer.is_global_zero:
            print(self._counts(train, held_out, said), flush=True)
        self.train_dataset, self.eval_dataset = train, held_out

    def _draw(
        self, train: ExampleDataset[Any]
    ) -> tuple[ExampleDataset[Any], ExampleDataset[Any] | None]:
        """Training rows without some of them, and these."""
        wanted = how_many(len(train), self.eval_size, min(AT_MOST, len(train) // 10))
        if self.eval_size is None and wanted and train.smallest_batch > 1:
            wanted = max(wanted, train.smallest_batch * self.trainer.world_size)
        rows, held_out_rows = split_prompts(train, wanted, self.seed)
        if self.eval_size is not None and len(held_out_rows) != self.eval_size:
            raise ValueError(
                f"data.eval_size={self.eval_size}: rows of one prompt are held out together, which"
                f" makes {len(held_out_rows)} here: ask for these, or leave it out for a tenth"
            )
        if not held_out_rows:
            return train, None
        left = train.subset(rows)
        left.problems = train.problems
        return left, train.subset(held_out_rows)

    def findings(self) -> list[str]:
        """What is suspicious in the rows."""
        return self.inspection().findings

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

    def _load(
        self, path: str, split: str | None, option: str, held_out: bool = False
    ) -> ExampleDataset[Any]:
        reading = self.readings["data.eval_path" if held_out else option] = Reading(path)
        problems: list[str] = []
        text = TEXT | {name for name in (self.columns or {}).values() if name is not None}
        text -= {*self.numbers}
        rows = []
        for where, row in read_rows(
            path, split, problems.append, option, name=self.name, text=text
        ):
            try:
                rows.append((where, Cells(row, self.columns)))
            except ValueError as error:
                problems.append(f"{where}: {error}")
        if not rows and not problems:
            raise ValueError(f"{option}={path!r} holds no rows")
        items = self.read(rows, problems, reading)
        require_columns(self.columns, reading)
        learner = as_text_learner(self.trainer.lightning_module, self.kind)
        dataset = self.made_of(items, learner, problems)
        reading.skipped, reading.places = dataset.problems, dataset.places
        reading.rows = len(dataset) + len(dataset.problems)
        return dataset

    def _counts(
        self, train: ExampleDataset[Any], held_out: ExampleDataset[Any] | None, said: str
    ) -> str:
        skipped = len(train.problems) + (len(held_out.problems) if held_out else 0)
        line = (
            f"{len(train)} {self.unit} to train on ({self.told_of(train)}),"
            f" {len(held_out) if held_out else 0} held out"
            + (f" ({said})" if held_out else "")
            + (f", {skipped} skipped" if skipped else "")
        )
        return "\n".join([line, *(text for r in self.readings.values() if (text := str(r)))])


def rows_digest(dataset: ExampleDataset[Any]) -> str:
    """Changes with any row, whatever the tokenizer makes of it."""
    state = hashlib.sha256()
    for item in dataset.items:
        state.update(repr(item).encode(errors="surrogatepass"))
    return state.hexdigest()[:32]


def split_prompts(
    dataset: ExampleDataset[Any], wanted: int, seed: int
) -> tuple[list[int], list[int]]:
    """Training rows and held-out ones: ``wanted`` of these if that can be, no prompt in both."""
    groups: dict[str, list[int]] = {}
    for row, item in enumerate(dataset.items):
        key = repr(item.prompt.content) if item.prompt.content else str(row)
        groups.setdefault(key, []).append(row)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(groups), generator=generator).tolist()
    shuffled = [list(groups.values())[i] for i in order]
    held_out: list[int] = []
    for group in shuffled:
        if len(held_out) + len(group) <= wanted:
            held_out += group
    if wanted and not held_out and len(shuffled) > 1:  # every prompt has more rows than that
        smallest = min(shuffled, key=len)
        held_out = smallest if len(smallest) <= max(wanted, AT_MOST) else []
    return sorted(set(range(len(dataset))) - set(held_out)), sorted(held_out)
