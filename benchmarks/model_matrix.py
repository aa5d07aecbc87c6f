"""Every causal architecture of transformers, tiny, through everything: ``docs/models.md``.

    PYTHONPATH=. python benchmarks/model_matrix.py                         # all rows, and the table
    PYTHONPATH=. python benchmarks/model_matrix.py llama "bert (encoder)"  # these, and no table
    PYTHONPATH=. python benchmarks/model_matrix.py --write                # newest result of each

What a column demands is in ``tests/matrix_helpers.py``. Rows are computed one after another in a
process of their own, which is ended after ``SECONDS`` and started again after a crash. They are
kept in ``benchmarks/.cache/model_matrix.jsonl``: a run that is repeated at the same commit goes on
where it stopped.
"""

import importlib.metadata
import json
import logging
import multiprocessing
import re
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
RESULTS = ROOT / "benchmarks/.cache/model_matrix.jsonl"
TABLE = ROOT / "docs/models.md"
SECONDS = 300
"""Most that one row may take."""
LONGEST = 300
"""Characters of a reason that the table shows."""

Row = dict[str, str]
"""Column -> ``right``, ``refused: sentence`` or ``WRONG: what``."""


def work(pipe: Connection) -> None:
    """Compute the rows that are named on ``pipe``."""
    import torch
    from matrix_helpers import check_row
    from transformers.utils import logging as transformers_logging

    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):  # which set their own while imported
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    pipe.send("ready")
    while True:
        name = pipe.recv()
        with tempfile.TemporaryDirectory() as folder:
            pipe.send(check_row(name, Path(folder)))


class Worker:
    """A process that computes rows, replaced when it hangs or dies."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.recv()

    def row(self, name: str) -> Row:
        self.pipe.send(name)
        try:
            if self.pipe.poll(SECONDS):
                return self.pipe.recv()
            reason = f"it took more than {SECONDS} s"
        except (EOFError, OSError):
            reason = "its process died"
        self.close()
        return {"all": f"WRONG: {reason}"}

    def close(self) -> None:
        self.process.kill()
        self.process.join()


def compute(names: list[str], commit: str) -> None:
    """Add a line for each of ``names`` to the results."""
    RESULTS.parent.mkdir(exist_ok=True)
    worker = Worker()
    for i, name in enumerate(names, 1):
        started = time.time()
        row = worker.row(name)
        if not worker.process.is_alive():
            worker = Worker()
        with RESULTS.open("a") as file:
            file.write(json.dumps({"commit": commit, "name": name, "row": row}) + "\n")
        bad = {column: cell for column, cell in row.items() if not cell.startswith("right")}
        print(f"{i}/{len(names)} {name} {time.time() - started:.1f} s", flush=True)
        for column, cell in bad.items():
            print(f"    {column:7} {cell[:300]}", flush=True)
    worker.close()


def computed() -> dict[str, tuple[str, Row]]:
    """Each row's newest result, and the commit that it is of."""
    lines = RESULTS.read_text().splitlines() if RESULTS.is_file() else []
    return {line["name"]: (line["commit"], line["row"]) for line in map(json.loads, lines)}


def table(rows: dict[str, Row], not_built: dict[str, str]) -> str:
    """``docs/models.md``."""
    from matrix_helpers import COLUMNS

    reasons: dict[str, int] = {}
    lines = []
    for name, row in rows.items():
        cells = [_cell(row.get(column, row.get("all", "")), reasons) for column in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    cells = Counter(cell.split(":")[0] for row in rows.values() for cell in row.values())
    kinds = Counter(_kind(row) for row in rows.values())
    versions = ", ".join(
        f"{package} {importlib.metadata.version(package).split('+')[0]}"
        for package in ("transformers", "torch", "peft", "lightning")
    )
    text = _INTRODUCTION.format(
        versions=versions,
        rows=len(rows),
        right=kinds["right"],
        partly=kinds["partly"],
        refused=kinds["refused"],
        wrong=kinds["wrong"],
        cells=f"{cells['right']} right, {cells['refused']} refused, {cells['WRONG']} wrong",
    )
    head = f"| model type | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}\n"
    said = [f"{number}. {reason}" for reason, number in reasons.items()]
    missing = [f"- {name}: {reason}" for name, reason in not_built.items()]
    return "\n".join([
        text + head + "\n".join(lines),
        "\n## Reasons\n", *said,
        "\n## Not built\n", *missing, "",
    ])  # fmt: skip


def _kind(row: Row) -> str:
    kinds = {cell.split(":")[0] for cell in row.values()}
    if "WRONG" in kinds:
        return "wrong"
    return "partly" if len(kinds) > 1 else kinds.pop()


def _cell(cell: str, reasons: dict[str, int]) -> str:
    kind, _, text = cell.partition(": ")
    if kind in ("refused", "WRONG"):
        text = re.sub(r"'/\S+/model'", "DIR", " ".join(text.replace("|", "/").split()))
        text = textwrap.shorten(text, LONGEST, placeholder=" ...")
        return f"{kind} [{reasons.setdefault(text, len(reasons) + 1)}]"
    return text or kind


_INTRODUCTION = """# Models

Written by `PYTHONPATH=. python benchmarks/model_matrix.py` with {versions}.

Every causal language model of transformers is built tiny, with random weights, and taken through
the columns; variants follow `:`. **{rows} rows: {right} right in every column, {partly} refused in
some, {refused} refused in all, {wrong} wrong.** Cells: {cells}.

All numbers are compared with transformers' own forward pass over one unpadded text at a time:

| column | what is compared |
|---|---|
| sample | log-probabilities noted while sampling rows that join, repeat and leave; the likeliest tokens |
| score | log-probabilities and entropies of a text, alone and beside others |
| pack | the same where responses share prompts: in one packed row, or padded where that is not exact |
| ppo, grpo, dpo | the first step: old and reference log-probabilities, loss, every gradient; DPO starts at ln 2 |
| reload | logits of the trained model's folder under `from_pretrained` |
| lora | DPO with adapters on all linear layers: off they are the reference; adapter and merged exports |
| reward | scores, loss and gradients of a reward model on it; its folder |

`refused [n]`: the reason n below is said before the first step.

"""  # noqa: E501


def main() -> None:
    from matrix_helpers import names

    if sys.argv[1:] == ["--write"]:
        return write()
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    if sys.argv[1:]:
        return compute(sys.argv[1:], commit)
    done = {name for name, (at, _) in computed().items() if at == commit}
    compute([name for name in names() if name not in done], commit)
    write()


def write() -> None:
    """Write the table of each row's newest result."""
    from architectures import NOT_BUILT
    from matrix_helpers import names

    found = computed()
    TABLE.parent.mkdir(exist_ok=True)
    rows = {name: found[name][1] for name in names()}
    TABLE.write_text(table(rows, NOT_BUILT))
    print(f"{TABLE}: {dict(Counter(map(_kind, rows.values())))}")


if __name__ == "__main__":
    main()
