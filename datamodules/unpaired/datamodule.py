"""UnpairedPreferenceDataModule: a file of labelled responses -> batches for KTO."""

from collections.abc import Sequence
from typing import Any, ClassVar

from datamodules.examples.datamodule import ExampleDataModule
from datamodules.examples.inspection import inspect_examples, rows_to_show
from datamodules.examples.limits import prompt_limits
from datamodules.text.columns import Cells, Reading
from datamodules.text.inspection import Inspection, Sample, parts
from datamodules.types import TextLearner
from datamodules.unpaired.dataset import UnpairedRows
from datamodules.unpaired.rows import NAMES, read_labelled


class UnpairedPreferenceDataModule(ExampleDataModule):
    """Responses that are desirable or not, read, checked and tokenized once.

    The formats of rows are those of ``datamodules.unpaired.rows``.

    Args:
        max_length, max_prompt_length: see ``prompt_limits``.
        options: see ``ExampleDataModule``.
    """

    kind: ClassVar = "unpaired"
    names: ClassVar[Sequence[str]] = NAMES

    def __init__(
        self,
        path: str | None = None,
        *,
        max_length: int = 512,
        max_prompt_length: int = 256,
        **options: Any,
    ) -> None:
        super().__init__(path, **options)
        self.limits = prompt_limits(max_length, max_prompt_length)

    @property
    def unit(self) -> str:
        return "labelled responses"

    def told_of(self, train: Any) -> str:
        desirable, others = train.counts
        return f"{super().told_of(train)}; {desirable} desirable, {others} not"

    def read(
        self, rows: Sequence[tuple[str, Cells]], problems: list[str], reading: Reading
    ) -> list[tuple[str, Any]]:
        return read_labelled(rows, problems, reading)

    def made_of(
        self, items: Sequence[tuple[str, Any]], learner: TextLearner, problems: Sequence[str]
    ) -> UnpairedRows:
        return UnpairedRows(
            items, learner.tokenizer, self.limits, on_error=self.on_error, problems=problems
        )

    def inspection(self) -> Inspection:
        found = inspect_examples(self.train_dataset, self.eval_dataset, ("response",))
        desirable, others = self.train_dataset.counts
        found.counts["desirable"], found.counts["not desirable"] = f"{desirable}", f"{others}"
        return found

    def samples(self, wanted: int) -> list[Sample]:
        rows = self.train_dataset
        shown = []
        for row in rows_to_show(rows, wanted):
            told = ("prompt", rows[row].prompt.tolist()), ("response", rows[row].response.tolist())
            said = "desirable" if rows[row].is_desirable else "not desirable"
            shown.append(Sample(f"{rows.places[row]}, {said}", {"text": parts(*told)}))
        return shown
