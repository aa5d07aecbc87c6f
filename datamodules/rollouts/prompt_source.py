"""Where the prompts of an environment come from, and those that it is evaluated on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datamodules.text.columns import Reading, check_columns
from datamodules.text.held_out import source_of
from datamodules.text.prompt_files import READ, gather_prompts
from datamodules.text.prompts import Prompt
from datamodules.text.tables import require_dataset, require_path


@dataclass
class PromptSource:
    """Options of ``RolloutDataModule`` that say which prompts there are.

    Raises:
        ValueError: two of them contradict each other, or nothing is read that one could be of.
    """

    prompts: Sequence[Any] | None
    path: str | None
    eval_prompts: Sequence[Any] | None
    eval_path: str | None
    split: str | None
    eval_split: str | None
    name: str | None
    column: str | None
    columns: Mapping[str, str | None] | None
    chat: bool
    on_error: str
    readings: dict[str, Reading] = field(default_factory=dict)
    """What was read, by the option that names it."""

    def __post_init__(self) -> None:
        paths = (self.path, self.eval_path)
        if self.prompts is not None and self.path is not None:
            raise ValueError("give either data.prompts (a list) or data.path (a file), not both")
        if self.eval_prompts is not None and self.eval_path is not None:
            raise ValueError("give either data.eval_prompts (a list) or data.eval_path (a file)")
        held_out = {"eval_prompts": self.eval_prompts, "eval_path": self.eval_path}
        named = next((name for name, value in held_out.items() if value is not None), None)
        if named and self.is_empty:
            raise ValueError(
                f"data.{named} goes with data.path or data.prompts; an environment without"
                " prompts holds out its own starting states"
            )
        require_path("data.prompt_column", self.column, *paths)
        require_path("data.columns", self.columns, *paths)
        check_columns(self.columns, READ)
        require_dataset("data.split", self.split, self.path)
        require_dataset("data.eval_split", self.eval_split, self.eval_path or self.path)
        require_dataset("data.name", self.name, *paths)
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"data.on_error={self.on_error!r} must be raise or skip")

    @property
    def is_empty(self) -> bool:
        """Whether there are none to train on."""
        return self.prompts is None and self.path is None

    @property
    def places(self) -> list[str]:
        """File and line of each prompt that ``load`` gave, in order."""
        return [place for reading in self.readings.values() for place in reading.places]

    def load(self, most: int) -> tuple[list[Prompt], int, str]:
        """Prompts, how many of the last ones are for evaluation alone, and where these are from.

        Args:
            most: prompts for evaluation.
        """
        train = self._read(self.prompts, self.path, self.split, "data.path")
        if not most:
            return train, 0, ""
        paths = (self.path, self.split, self.eval_path, self.eval_split)
        if self.eval_prompts is not None:
            held_out = self._read(self.eval_prompts, None, None, "data.eval_path")
            said = "data.eval_prompts"
        elif (source := source_of(*paths, self.name)) is not None:
            held_out = self._read(None, source.path, source.split, source.option, held_out=True)
            said = source.said
        else:
            return train, 0, ""
        held_out = held_out[:most]
        return train + held_out, len(held_out), said

    def _read(
        self,
        given: Sequence[Any] | None,
        path: str | None,
        split: str | None,
        option: str,
        held_out: bool = False,
    ) -> list[Prompt]:
        reading = Reading(path or option.replace("path", "prompts"))
        self.readings["data.eval_path" if held_out else option] = reading
        options: dict[str, Any] = {"chat": self.chat, "on_error": self.on_error}
        options |= {"column": self.column, "columns": self.columns}
        options |= {"split": split, "name": self.name, "option": option, "reading": reading}
        return gather_prompts(given, path, **options)
