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


class Step:
    """What a class's ``training_step`` calls of this project.

    Follows ``self.method`` through the base classes, from method to method, and collects the
    files that define the methods and whatever else of the project their bodies and signatures name.
    """

    def __init__(self, module: str, name: str, root: Path = ROOT) -> None:
        self.root, self.files, self.methods = root, set[str](), set[str]()
        self.classes = list(self._lineage(module, name))
        self._follow("training_step")

    def _lineage(self, module: str, name: str) -> Iterator[tuple[str, ast.ClassDef]]:
        """The class and its bases, depth first, as far as they are of this project."""
        path = file_of(module, self.root)
        statements = [] if path is None else tree_of(path).body
        for node in statements:
            if isinstance(node, ast.ClassDef) and node.name == name:
                yield module, node
                known = self._known(module)
                for base in node.bases:
                    if isinstance(base, ast.Subscript):
                        base = base.value
                    if isinstance(base, ast.Name):
                        yield from self._lineage(known.get(base.id, module), base.id)

    def _known(self, module: str) -> dict[str, str]:
        """Names that a module imports from this project -> where they are defined."""
        path = file_of(module, self.root)
        assert path is not None
        return {
            here: source_of(source, there, self.root) if there else source
            for here, source, there in imported_names(path)
            if source.split(".")[0] in PACKAGES
        }

    def _follow(self, method: str) -> None:
        self.methods.add(method)
        for module, node in self.classes:
            for statement in node.body:
                if isinstance(statement, ast.FunctionDef) and statement.name == method:
                    self._read(module, statement)
                    return

    def _read(self, module: str, function: ast.FunctionDef) -> None:
        self.files.add(self._path(module))
        known = self._known(module)
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and node.id in known:
                self.files.add(self._path(known[node.id]))
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "self"
                and node.attr not in self.methods
            ):
                self._follow(node.attr)

    def _path(self, module: str) -> str:
        path = file_of(module, self.root)
        assert path is not None, module
        return path.relative_to(self.root).as_posix()


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
