"""The program in a response: which of its blocks it is, and what of a text that has none.

Models write a program and then how to use it, or helpers first, or forget a fence. Of all that, the
program is what binds the names that the tests call. Whatever stands in a response, it is read in
time linear in its length: how many blocks are tried is bounded.
"""

import ast
import builtins
import re
import textwrap
import warnings
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

ANSWER = "<answer>"
FENCE = re.compile(r"[ \t]*(?:<\w+>[ \t]*|[-*+][ \t]+|\d+[.)][ \t]+)?(`{3,}|~{3,})([^`\n]*)$")
"""A line that opens or closes a block; in a list too, or just after a tag."""
PYTHON = re.compile(r"\{?\.?(python|py|ipython)[\d.]*\}?")
CODE = re.compile(r"(async |def |class |import |from \w[\w.]* import |@)")
"""How a line of code begins that prose does not begin with."""
TRIED = 32
"""Most blocks of a response that are tried, the last ones."""
# What Python remarks on a model's code while it is parsed is of no use to the user.
for category in (SyntaxWarning, DeprecationWarning):
    warnings.filterwarnings("ignore", category=category, module=re.escape(ANSWER))


@dataclass(frozen=True)
class Block:
    """Lines between two fences, or before the first one, or after the last."""

    code: str
    language: str | None
    """The word after the fence that opens it, or empty; None outside of blocks."""

    @property
    def is_python(self) -> bool:
        return self.language is not None and bool(PYTHON.fullmatch(self.language))


def spoken(text: str) -> str:
    """What a response says after its thoughts, all of which an unfinished one is."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def extract_code(text: str, names: Collection[str] = ()) -> str:
    """The program that binds one of ``names``: the last block that does, with those before it that
    define what it uses; else lines of the text that do.

    Where nothing does: the last ```` ```python ```` block, else the last block of any kind, else
    the text itself. A block that is never closed reaches to the end.
    """
    blocks = blocks_of(text)
    for code in candidates(text, blocks):
        if binds(code, names):
            return _with_helpers(code, blocks, names)
    fenced = [block for block in blocks if block.language is not None]
    python = [block for block in fenced if block.is_python]
    return (python or fenced or [Block(text, None)])[-1].code


def candidates(text: str, blocks: list[Block]) -> Iterator[str]:
    """What may be the program, the likelier first."""
    recent = blocks[-TRIED:][::-1]
    yield from (block.code for block in recent if block.language is not None)
    for block in recent:  # a fence may be missing: what stands outside may be inside
        yield block.code
        yield from _code_in_prose(block.code)
    if len(recent) > 1:
        yield from _across_fences(text)
    tag, said = text.rpartition(ANSWER)[1:]
    if tag:
        yield said.partition("</answer>")[0].strip("\n")


def blocks_of(text: str) -> list[Block]:
    """A text split at its fences. A fence that names a language opens a block, inside of one too:
    a prompt may have opened one that the response opens again."""
    blocks, lines, opened, language = [], [], None, None
    for line in text.split("\n"):
        found = FENCE.match(_untagged(line))
        if found is None or (opened and found[1][0] != opened[0]):
            lines.append(line)
            continue
        fence, said = found[1], found[2].strip().split()
        if opened and not said and len(fence) < len(opened):
            lines.append(line)
            continue
        blocks.append(Block(_outdented(lines, line if opened else ""), language))
        lines = []
        opened = fence if said or not opened else None
        language = None if opened is None else (said or [""])[0].lower()
    blocks.append(Block("\n".join(lines), language))
    return [block for block in blocks if block.language is not None or block.code.strip()]


def _untagged(line: str) -> str:
    """Without a closing tag behind a fence, as in ```` ```</answer> ````."""
    return re.sub(r"[ \t]*</\w+>[ \t]*$", "", line[-40:]) if len(line) < 40 else line


def _outdented(lines: list[str], fence: str) -> str:
    """A block's lines, without the indentation of its fence."""
    margin = len(fence) - len(fence.lstrip(" "))
    code = "".join(f"{line}\n" for line in lines)
    return re.sub(rf"^ {{1,{margin}}}", "", code, flags=re.MULTILINE) if margin else code


def _code_in_prose(text: str) -> Iterator[str]:
    """From a line that begins as code does, up to the first one that Python cannot read."""
    lines = text.split("\n")
    starts = [i for i, line in enumerate(lines) if CODE.match(line)][:TRIED]
    for start in starts[:4]:
        code = lines[start:]
        for _ in range(4):
            error = _error_line("\n".join(code))
            if error is None:
                yield "\n".join(code).rstrip() + "\n"
                break
            code = code[: error - 1]


def _error_line(code: str) -> int | None:
    """The first line that is no Python; None if all are."""
    try:
        ast.parse(code, ANSWER)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):
        return 1
    return None


def _across_fences(text: str) -> Iterator[str]:
    """Blocks whose program holds fences of its own, in a docstring."""
    lines = text.split("\n")
    fences = [i for i, line in enumerate(lines) if FENCE.match(line)][-TRIED:]
    for first, start in reversed(list(enumerate(fences))):
        for end in [*fences[first + 2 : first + 8], len(lines)]:
            yield "".join(f"{line}\n" for line in lines[start + 1 : end])


def binds(code: str, names: Collection[str]) -> bool:
    """Whether it is Python that binds one of ``names`` at its top."""
    if not any(name in code for name in names):
        return False
    tree = parse(code) or parse(textwrap.dedent(code))
    return tree is not None and not defined(tree.body).isdisjoint(names)


def _with_helpers(code: str, blocks: list[Block], names: Collection[str]) -> str:
    """The program, after the blocks before it that define what it lacks."""
    if parse(code) is None:
        code = textwrap.dedent(code)
    lacking = _lacks(code) | (set(names) - defined(_statements(code)))
    before: list[str] = []
    for block in [b for b in blocks if b.language is not None][-TRIED:][::-1]:
        if block.code.strip() and block.code.strip() in code:
            continue
        given = defined(_statements(block.code))
        if not lacking.isdisjoint(given):
            before.insert(0, block.code)
            lacking = (lacking - given) | _lacks(block.code)
    return "".join([*before, code])


def _statements(code: str) -> list[ast.stmt]:
    tree = parse(code)
    return tree.body if tree else []


def _lacks(code: str) -> set[str]:
    tree = parse(code)
    return free_names(tree) if tree else set()


def parse(code: str) -> ast.Module | None:
    """Its syntax tree; None if it is no Python, or nested too deeply for Python's own parser."""
    try:
        return ast.parse(code, ANSWER)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def same_code(left: str, right: str) -> bool:
    """Whether two programs differ in comments and layout only, as far as Python can tell."""
    trees = parse(left), parse(right)
    try:
        return None not in trees and ast.dump(trees[0]) == ast.dump(trees[1])
    except (RecursionError, MemoryError):  # its parser goes deeper than its printer
        return False


def free_names(tree: ast.AST) -> set[str]:
    """Names that it reads and binds nowhere, but for builtins."""
    used: set[str] = set()
    bound = set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
        elif isinstance(node, ast.stmt):
            bound |= defined([node])
    return used - bound


def defined(statements: Iterable[ast.stmt]) -> set[str]:
    """Names that top-level statements bind."""
    names: set[str] = set()
    for statement in statements:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(statement.name)
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            names |= {(a.asname or a.name).split(".")[0] for a in statement.names}
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            found = [node for target in targets for node in ast.walk(target)]
            names |= {
                n.id for n in found if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            }
    return names
