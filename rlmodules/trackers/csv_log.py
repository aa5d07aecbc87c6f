"""Rows of a run as a CSV file that a kill leaves whole, and that a resumed run goes on with."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from datamodules.atomic import appending, replacing
from rlmodules.trackers.rows import AXES

NAME = "metrics.csv"


class CSVLog(Logger):
    """Writes ``metrics.csv``, each row at once.

    (Lightning's own begins a new file when a run goes on, and writes every 100 steps.)

    Args:
        save_dir: the folder of the file.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self._save_dir = Path(save_dir)
        self.path = self._save_dir / NAME
        self.columns: list[str] = []
        self._again: int | None = None

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self._save_dir)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: ``config.yaml`` in the run's folder holds them."""

    @rank_zero_only
    def go_on(self, over: Mapping[str, float]) -> None:
        """Keep the rows up to the step that is over; those at it until they come again."""
        step = int(over["step"])
        rows = [row for row in self._rows() if int(row["step"]) <= step]
        self.columns = columns_of(rows)
        self._write(rows)
        self._again = step

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self.columns:  # another run's, which a notebook repeats in its folder
            self.path.unlink(missing_ok=True)
        row: dict[str, Any] = {"step": step or 0, **metrics}
        if step == self._again:
            named = row.keys() - set(AXES)
            kept = [r for r in self._rows() if not (r["step"] == str(step) and named & r.keys())]
            self._write(kept)
        if new := row.keys() - set(self.columns):
            rows = list(self._rows())
            self.columns = columns_of([dict.fromkeys([*self.columns, *new])])
            self._write(rows)
        appending(self.path, self._text([row]).encode())

    def _rows(self) -> Iterator[dict[str, str]]:
        """What the file holds, without the line that a kill cut off."""
        if not self.path.is_file():
            return
        with self.path.open(newline="") as file:
            whole = (line for line in file if line.endswith("\n"))
            for row in csv.DictReader(whole):
                yield {name: value for name, value in row.items() if value not in ("", None)}

    def _write(self, rows: list[dict[str, Any]]) -> None:
        with replacing(self.path) as partial:
            partial.write_text(",".join(self.columns) + "\r\n" + self._text(rows), newline="")

    def _text(self, rows: list[dict[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.columns).writerows(rows)
        return text.getvalue()


def columns_of(rows: list[dict[str, Any]]) -> list[str]:
    """Their names, what curves are drawn over first."""
    names = {name for row in rows for name in row}
    return [*(axis for axis in AXES if axis in names), *sorted(names - set(AXES))]
