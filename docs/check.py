"""Runs the commands of the pages, as ``make docs-check`` does: ``python docs/check.py [PAGE ...]``.

A comment before each block of a shell (```` ```sh ````) or of Python says what becomes of it:

    <!-- check: run -->                          run as it stands
    <!-- check: run with experiment=smoke -->    so many overrides more for each train.py
    <!-- check: serve -->                        what serves until it is stopped: for ten seconds
    <!-- check: compose (needs a hub) -->        each train.py is composed (--cfg job), and not run
    <!-- check: leave out (needs root) -->       nothing

Of a block of Python ``with`` says what its arguments are to be, wherever they stand in it:

    <!-- check: run with model_name="random:tiny" num_iterations=1 -->

Words in the variable DOCS_CHECK_WITH are overrides of every train.py that is run, behind these:
``DOCS_CHECK_WITH=algo.device=cpu make docs-check``.

The blocks of a page run in order in one new folder, which has ``train.py`` in it, so that a command
finds what an earlier one left. ``make train`` is what it calls, without building ``.venv``.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("run", "serve", "compose", "leave out")
LONGEST_S, SERVES_S, TIMED_OUT = 900, 10, 124
MARK = re.compile(r"<!-- check: (run|serve|compose|leave out)(?: with (.*?))?(?: \((.*?)\))? -->")
SHELLS, PYTHON = ("sh", "bash", "shell"), "python"
ARGUMENT = re.compile(r"(\w+)=(\"[^\"]*\"|\S+)")
OURS = re.compile(r"\s*(python train\.py|rlmodules-train|make train)\b")
"""What a block that is only composed is composed of."""
PRELUDE = """\
set -euo pipefail
python() {{
    if [ "${{1:-}}" != train.py ]; then command python "$@"; return; fi
    shift
    rlmodules-train "$@"
}}
make() {{
    if [ "$1" != train ]; then command make "$@"; return; fi
    local ARGS="" word; shift
    for word in "$@"; do local "$word"; done
    eval "rlmodules-train algo=ppo $ARGS"
}}
rlmodules-train() {{ {ours}; }}
"""
RUN = 'command python train.py "$@" {more}'
COMPOSE = """\
case " $* " in
    *" --cfg "* | *" --help "* | *" --info "*) command python train.py "$@" > /dev/null ;;
    *" -m "*) command python train.py "$@" --help > /dev/null ;;
    *) command python train.py "$@" --cfg job > /dev/null ;;
esac"""


class Block(NamedTuple):
    """A block of shell commands, or of Python, on a page."""

    page: Path
    line: int
    kind: str
    more: str
    """Overrides that cut its sizes."""
    commands: str
    is_python: bool = False

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Every block of a shell or of Python, in order.

    Raises:
        ValueError: nothing before a block says what becomes of it, or nothing that is known.
    """
    lines = page.read_text().splitlines()
    inside = False
    for number, line in enumerate(lines):
        if line.strip().startswith("```"):
            inside = not inside
        language = line.strip().removeprefix("```")
        if not inside or language == line.strip() or language not in (*SHELLS, PYTHON):
            continue
        before = next((text for text in reversed(lines[:number]) if text.strip()), "")
        mark = MARK.fullmatch(before.strip())
        if mark is None:
            raise ValueError(
                f"{page.name}:{number + 1}: say before this block what becomes of it, as in"
                f" <!-- check: run -->; there are {', '.join(KINDS)}; it says {before.strip()!r}"
            )
        end = next(i for i in range(number + 1, len(lines)) if lines[i].strip() == "```")
        commands = "\n".join(lines[number + 1 : end])
        is_python = language == PYTHON
        if is_python and mark[1] not in ("run", "leave out"):
            raise ValueError(f"{page.name}:{number + 1}: Python is run, or left out")
        yield Block(page, number + 2, mark[1], mark[2] or "", commands, is_python)


def script(block: Block) -> str:
    """What bash runs for a block."""
    if block.is_python:
        return f"python -c {shlex.quote(with_arguments(block))}"
    if block.kind == "compose":
        ours = joined(block.commands)
        return PRELUDE.format(ours=COMPOSE) + "\n".join(filter(OURS.match, ours))
    words = shlex.split(block.more) + shlex.split(os.environ.get("DOCS_CHECK_WITH", ""))
    more = " ".join(map(shlex.quote, words))
    return PRELUDE.format(ours=RUN.format(more=more)) + block.commands


def with_arguments(block: Block) -> str:
    """The Python of a block, with the arguments that its mark asks for.

    Raises:
        ValueError: an argument stands nowhere in it.
    """
    code = block.commands
    for name, value in ARGUMENT.findall(block.more):
        given = re.compile(rf'\b{name}=("[^"]*"|[\w.-]+)')
        if not given.search(code):
            raise ValueError(f"{block.place}: there is no {name}= to set")
        code = given.sub(lambda _, to=f"{name}={value}": to, code)
    return code


def joined(commands: str) -> list[str]:
    """Commands a line each, where a backslash had gone on with them."""
    return commands.replace("\\\n", " ").splitlines()


def run(block: Block, folder: Path) -> tuple[bool, str]:
    """Whether a block's commands end well, and what they print."""
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
    }
    serves = block.kind == "serve"
    limit = ["timeout", "--kill-after=10", str(SERVES_S if serves else LONGEST_S)]
    done = subprocess.run(
        [*limit, "bash", "-c", script(block)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    return done.returncode == (TIMED_OUT if serves else 0), done.stdout


def check(page: Path) -> list[str]:
    """What is wrong with a page: a sentence for each block that fails."""
    try:
        found = list(blocks(page))
    except (OSError, ValueError) as error:
        return [str(error)]
    failures = []
    with TemporaryDirectory(prefix="docs-check-") as folder:
        for name in ("train.py", "examples"):
            (Path(folder) / name).symlink_to(ROOT / name)
        for block in found:
            if block.kind == "leave out":
                continue
            began = time.perf_counter()
            well, output = run(block, Path(folder))
            took = f"{time.perf_counter() - began:.0f} s"
            print(f"{block.place} {block.kind}: {'ok' if well else 'FAILED'}, {took}", flush=True)
            if not well:
                tail = "\n".join(output.splitlines()[-25:])
                failures.append(f"{block.place} fails:\n{block.commands}\n\n{tail}")
    return failures


def main(names: Sequence[str]) -> int:
    """Check the named pages, else README.md and all of docs/; 1 if one of them fails."""
    pages = [Path(name) for name in names]
    pages = pages or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    failures = [failure for page in pages for failure in check(page)]
    print("\n\n".join(["", *failures]) if failures else f"{len(pages)} pages: all well")
    return min(len(failures), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
