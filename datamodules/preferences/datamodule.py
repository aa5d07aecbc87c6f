"""PreferenceDataModule: a file of preferences -> batches for DPO, ORPO and reward models."""

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from datamodules.examples.datamodule import ExampleDataModule
from datamodules.examples.limits import prompt_limits
from datamodules.preferences.dataset import PreferenceRows
from datamodules.preferences.inspection import inspect_preferences, samples_of
from datamodules.preferences.reading import read_items
from datamodules.text.columns import Cells, Reading
from datamodules.text.inspection import Inspection, Sample
from datamodules.types import TextLearner


class PreferenceDataModule(ExampleDataModule):
    """Pairs (or, with ``objectives``, scored responses), read, checked and tokenized once.

    The formats of rows are those of ``datamodules.preferences.rows``.

    Args:
        objectives: columns that hold scores; rows then have ``prompt`` and ``response``.
        max_length, max_prompt_length: see ``prompt_limits``.
        options: see ``ExampleDataModule``.
    """

    kind: ClassVar = "preferences"

    def __init__(
        self,
        path: str | None = None,
        *,
        objectives: Sequence[str] | None = None,
        max_length: int = 512,
        max_prompt_length: int = 256,
        **options: Any,
    ) -> None:
        super().__init__(path, **options)
        self.objectives = list(objectives) if objectives else None
        self.limits = prompt_limits(max_length, max_prompt_length)

    @property
    def numbers(self) -> Collection[str]:
        return self.objectives or ()

    @property
    def sides(self) -> int:
        return 1 if self.objectives else 2

    @property
    def unit(self) -> str:
        return "scored responses" if self.objectives else "pairs"

    def read(
        self, rows: Sequence[tuple[str, Cells]], problems: list[str], reading: Reading
    ) -> list[tuple[str, Any]]:
        return read_items(rows, self.objectives, problems, reading)

    def made_of(
        self, items: Sequence[tuple[str, Any]], learner: TextLearner, problems: Sequence[str]
    ) -> PreferenceRows:
        return PreferenceRows(
            items,
            learner.tokenizer,
            self.limits,
            close=learner.closes_texts,
            on_error=self.on_error,
            problems=problems,
        )

    def inspection(self) -> Inspection:
        assert self.train_dataset is not None, "setup comes first"
        scored = self.objectives is not None
        return inspect_preferences(self.train_dataset, self.eval_dataset, scored=scored)

    def samples(self, wanted: int) -> list[Sample]:
        return samples_of(self.train_dataset, wanted)
