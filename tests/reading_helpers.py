"""Which files one has to read: imports, definitions and steps, found in the source alone."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("rlmodules", "datamodules")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def file_of(module: str, root: Path = ROOT) -> Path | None:
    """The source of a module or package; of a lazy package, the stub that names its contents."""
    base = root / module.replace(".", "/")
    places = (base.with_suffix(".py"), base / "__init__.pyi", base / "__init__.py")
    return next((path for path in places if path.is_file()), None)


def imported_names(path: Path, package: str = "") -> Iterator[tuple[str, str, str | None]]:
    """(name here, module, name there or None for the module itself) of every import in a file."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0], alias.name, None
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(part for part in (package * bool(node.level), node.module) if part)
            yield from ((alias.asname or alias.name, module, alias.name) for alias in node.names)


def imports(path: Path, root: Path = ROOT) -> set[str]:
    """The modules that a file imports; of a package's public name, the module that defines it."""
    found = set()
    for _, module, name in imported_names(path):
        found.add(source_of(module, name, root) if name else module)
    return found


def source_of(module: str, name: str, root: Path = ROOT) -> str:
    """The module that ``from module import name`` ends in, through packages that pass it on."""
    if file_of(f"{module}.{name}", root):
        return f"{module}.{name}"
    path = file_of(module, root)
    if path is None or path.stem != "__init__":
        return module
    for here, source, there in imported_names(path, module):
        if here == name and there and source != module:
            return source_of(source, there, root)
    return module


Lineage = tuple[tuple[str, ast.ClassDef], ...]
"""A class and its bases, each with the module that defines it."""


class Step:
    """What a class's ``training_step`` calls of this project.

    Follows ``self.method`` through the base classes; collects the files that define these methods
    and whatever else of the project their bodies and signatures name, ``self.part.method`` too
    where the class says of which class ``part`` is.
    """

    def __init__(self, module: str, name: str, root: Path = ROOT) -> None:
        self.root, self.files, self.done = root, set[str](), set[str]()
        self._follow(tuple(self._lineage(module, name)), "training_step")

    def _lineage(self, module: str, name: str) -> Iterator[tuple[str, ast.ClassDef]]:
        """The class and its bases, depth first, as far as they are of this project."""
        path = file_of(module, self.root)
        for node in tree_of(path).body if path else []:
            if isinstance(node, ast.ClassDef) and node.name == name:
                yield module, node
                for base in node.bases:
                    base = base.value if isinstance(base, ast.Subscript) else base
                    if isinstance(base, ast.Name):
                        yield from self._lineage(self._home(module, base.id), base.id)

    def _home(self, module: str, name: str) -> str:
        """The module of this project that defines a name of ``module``."""
        return self._known(module).get(name, module)

    def _known(self, module: str) -> dict[str, str]:
        """Names that a module imports from this project -> where they are defined."""
        path = file_of(module, self.root)
        return {
            here: source_of(source, there, self.root) if there else source
            for here, source, there in imported_names(path)
            if source.split(".")[0] in PACKAGES
        }

    def _defining(self, lineage: Lineage, method: str) -> list[tuple[str, ast.FunctionDef]]:
        """The first definition of a method in a class and its bases; nothing if there is none."""
        return [
            (module, statement)
            for module, node in lineage
            for statement in node.body
            if isinstance(statement, ast.FunctionDef) and statement.name == method
        ][:1]

    def _follow(self, lineage: Lineage, method: str) -> None:
        if method not in self.done:
            self.done.add(method)
            for module, function in self._defining(lineage, method):
                self._read(module, function, lineage)

    def _read(self, module: str, function: ast.FunctionDef, lineage: Lineage) -> None:
        self.files.add(self._path(module))
        known = self._known(module)
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and node.id in known:
                self.files.add(self._path(known[node.id]))
            if not isinstance(node, ast.Attribute):
                continue
            owner = ast.unparse(node.value)
            if owner == "self":
                self._follow(lineage, node.attr)
            elif owner.startswith("self."):
                part = self._part(lineage, owner.removeprefix("self."))
                self.files |= {self._path(home) for home, _ in self._defining(part, node.attr)}

    def _part(self, lineage: Lineage, name: str) -> Lineage:
        """The class that an annotation in the class's body gives an attribute."""
        for module, node in lineage:
            for statement in node.body:
                if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == name:
                    kind = ast.unparse(statement.annotation)
                    return tuple(self._lineage(self._home(module, kind), kind))
        return ()

    def _path(self, module: str) -> str:
        return file_of(module, self.root).relative_to(self.root).as_posix()


def check_reading_list(module: str, name: str, listed: list[str], root: Path = ROOT) -> None:
    """Whether these files, and no others, are what one reads to understand a training step.

    Args:
        module: where the algorithm's class ``name`` is defined; its file comes first in the list.
        listed: paths from the root of the repository.

    Raises:
        AssertionError: a file is missing, or is not reached by the imports of the others.
    """
    missing = Step(module, name, root).files - set(listed)
    assert not missing, f"the step of {name} needs {sorted(missing)} too"
    paths = {root / file for file in listed}
    reached, queue = set(), [root / listed[0]]
    assert queue[0] == file_of(module, root), f"{listed[0]} does not define {name}"
    while queue:
        path = queue.pop()
        reached.add(path)
        found = {file_of(m, root) for m in imports(path, root) if m.split(".")[0] in PACKAGES}
        queue += [file for file in found & paths if file not in reached]
    assert not paths - reached, f"nothing listed imports {sorted(map(str, paths - reached))}"
