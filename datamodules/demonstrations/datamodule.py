"""DemonstrationDataModule: a file of demonstrations -> batches for SFT."""

from collections.abc import Sequence
from typing import Any, ClassVar

from datamodules.checks import require_whole
from datamodules.demonstrations.dataset import DemonstrationRows, Learned
from datamodules.demonstrations.inspection import inspect_demonstrations, samples_of
from datamodules.demonstrations.rows import NAMES, read_demonstrations
from datamodules.examples.datamodule import ExampleDataModule
from datamodules.text.columns import Cells, Reading
from datamodules.text.encoding import Limits
from datamodules.text.inspection import Inspection, Sample
from datamodules.types import TextLearner


class DemonstrationDataModule(ExampleDataModule):
    """What a model is to write, read, checked and tokenized once.

    The formats of rows are those of ``datamodules.demonstrations.rows``.

    Args:
        max_length: most tokens of a text; it is cut on the right.
        completion_only_loss: learn completions alone, or with False their prompts too; None:
            completions where rows have a prompt apart, else all of a text.
        assistant_only_loss: of conversations, learn what the assistant says.
        options: see ``ExampleDataModule``.
    """

    kind: ClassVar = "demonstrations"
    names: ClassVar[Sequence[str]] = NAMES

    def __init__(
        self,
        path: str | None = None,
        *,
        max_length: int = 1024,
        completion_only_loss: bool | None = None,
        assistant_only_loss: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(path, **options)
        require_whole("data", 2, max_length=max_length)
        self.limits = Limits(max_length, max_length - 1)
        self.learned = Learned(completion_only_loss, assistant_only_loss)

    @property
    def unit(self) -> str:
        return "demonstrations"

    def read(
        self, rows: Sequence[tuple[str, Cells]], problems: list[str], reading: Reading
    ) -> list[tuple[str, Any]]:
        return read_demonstrations(rows, problems, reading)

    def made_of(
        self, items: Sequence[tuple[str, Any]], learner: TextLearner, problems: Sequence[str]
    ) -> DemonstrationRows:
        return DemonstrationRows(
            items,
            learner.tokenizer,
            self.limits,
            learned=self.learned,
            on_error=self.on_error,
            problems=problems,
        )

    def told_of(self, train: Any) -> str:
        tokens = sum(map(train.num_tokens, range(len(train))))
        share = sum(len(example.learned) for example in train.examples) / tokens
        return f"{super().told_of(train)}, the loss is of {share:.0%} of them"

    def inspection(self) -> Inspection:
        return inspect_demonstrations(self.train_dataset, self.eval_dataset)

    def samples(self, wanted: int) -> list[Sample]:
        return samples_of(self.train_dataset, wanted)
