"""A JSONL file of collected pairs that grows as they come, and goes on where it was interrupted."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.atomic import appending


class PairsFile:
    """Rows of one collection. A row names its starting state in ``index``, and in ``source`` what
    it was made by.

    Args:
        path: where the pairs go. A file that is there already is continued if it is of this very
            source; another one is left as it is.
        source: plain values, equal wherever the pairs would be.

    Attributes:
        rows: what the file holds, in order.

    Raises:
        ValueError: the file holds something else, or pairs of another source.
    """

    def __init__(self, path: str | Path, source: Mapping[str, Any]) -> None:
        self.path, self.source = Path(path), json.loads(json.dumps(source))  # as it is read back
        if self.path.suffix != ".jsonl":
            raise ValueError(f"out={str(path)!r}: the pairs are JSON lines, so call it NAME.jsonl")
        self.rows: list[dict[str, Any]] = []
        if self.path.exists():
            self._continue()
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write all rows of one starting state, at once and to the disk."""
        added = [{**row, "source": self.source} for row in rows]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in added)
        appending(self.path, text.encode())
        self.rows += added

    def _continue(self) -> None:
        whole = self.path.read_bytes()
        *lines, rest = whole.split(b"\n")
        for number, line in enumerate(lines, start=1):
            self.rows.append(self._row(f"{self.path}, line {number}", line))
        if not rest:
            return
        # Killed while it wrote: the rows of the last starting state are collected once more.
        if not self.rows:
            raise ValueError(f"out={str(self.path)!r} {_FOREIGN}")
        last = self.rows[-1]["index"]
        while self.rows and self.rows[-1]["index"] == last:
            self.rows.pop()
        with self.path.open("r+b") as file:
            file.truncate(sum(len(line) + 1 for line in lines[: len(self.rows)]))

    def _row(self, where: str, line: bytes) -> dict[str, Any]:
        try:
            row: dict[str, Any] = json.loads(line)
            source = row["source"]
            known = {"index", "score_chosen", "score_rejected"} <= set(row)
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise ValueError(f"{where}: out={str(self.path)!r} {_FOREIGN}")
        if source != self.source:
            changed = sorted(
                f"{name}={source.get(name)!r}, now {self.source.get(name)!r}"
                for name in {*source, *self.source}
                if source.get(name) != self.source.get(name)
            )
            raise ValueError(
                f"{where}: out={str(self.path)!r} holds pairs of other settings"
                f" ({'; '.join(changed)}): give another file, or the settings that it was made with"
            )
        return row


_FOREIGN = "holds something else than collected pairs, and is left as it is: give another file"
