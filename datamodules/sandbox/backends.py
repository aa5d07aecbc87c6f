"""Ways to keep an answer away from everything else, and the commands that start them.

``bubblewrap``
    namespaces of its own (files, processes, network, users) by bwrap(1), and the seccomp filter.
``landlock``
    for machines without bwrap or user namespaces, such as most containers: Landlock hides the
    files and the seccomp filter the rest. What ``stat`` says of other files (that they exist, how
    large they are) stays visible.
``unsafe``
    limits on time, memory and output only: an answer can do all that the user can.
"""

import glob
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

BACKENDS = ("bubblewrap", "landlock")
"""Those that isolate, the stronger one first."""
STDLIB = Path(os.__file__).parent
INSTALLED = ("site-packages", "dist-packages")
PACKAGES = ("numpy",)
"""What the tests of a problem may import besides the standard library."""


@dataclass(frozen=True)
class Backend:
    """How a sandboxed interpreter is started."""

    name: str
    prefix: tuple[str, ...] = ()
    """What stands before the interpreter's own command."""
    readable: tuple[str, ...] | None = None
    """The files that Landlock leaves to be read; None where it is not used."""
    filter: bool = True
    """Whether system calls are filtered."""
    packages: tuple[str, ...] = ()
    """What can be imported besides the standard library."""


def interpreter() -> str:
    """This Python without its virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def package_folders(name: str) -> list[str]:
    """Where a package and its libraries lie; nothing if a sandbox has no such package."""
    spec = importlib.util.find_spec(name) if name in PACKAGES else None
    if spec is None or spec.origin is None:
        return []
    folder = os.path.dirname(spec.origin)
    return [folder, *(path for path in (f"{folder}.libs",) if os.path.isdir(path))]


def missing_packages(names: Iterable[str]) -> list[str]:
    """Those of these packages that a sandbox cannot have."""
    return sorted(name for name in names if not package_folders(name))


def find_backend(name: str, packages: Iterable[str] = ()) -> Backend:
    """The backend of that name, in which ``packages`` can be read.

    Raises:
        OSError: this machine has not what it needs.
    """
    if not sys.platform.startswith("linux"):
        raise OSError(f"it needs Linux, this is {sys.platform}")
    if name == "unsafe":
        return Backend(name, filter=False)
    folders = [folder for package in packages for folder in package_folders(package)]
    if name == "landlock":
        return Backend(name, readable=(*_standard_library(), *_shared_libraries(), *folders))
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise OSError("bwrap is not installed")
    return Backend(name, prefix=(bwrap, *_bubblewrap_options(folders)))


def _bubblewrap_options(folders: list[str]) -> list[str]:
    """Nothing is writable: a temporary folder would be memory that no limit counts."""
    options = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    for path in (interpreter(), str(STDLIB), *_shared_libraries()):
        options += _bound(path)
    for path in (STDLIB / name for name in INSTALLED):
        if path.is_dir():  # the project itself may be installed there
            options += ["--tmpfs", str(path)]
            options += [x for f in folders if Path(f).parent == path for x in _bound(f)]
            options += ["--remount-ro", str(path)]
    elsewhere = [f for f in folders if Path(f).parent.parent != STDLIB]
    options += [x for folder in elsewhere for x in _bound(folder)]
    return [*options, "--remount-ro", "/", "--chdir", "/", "--"]


def _bound(path: str) -> list[str]:
    return ["--ro-bind", path, path]


def _standard_library() -> list[str]:
    """Its entries one by one, without the packages installed beside them."""
    return sorted(str(path) for path in STDLIB.iterdir() if path.name not in INSTALLED)


def _shared_libraries() -> list[str]:
    """Where the standard library's C modules find theirs."""
    patterns = ("/lib64", "/usr/lib64", "/lib/*-linux-gnu", "/usr/lib/*-linux-gnu")
    found = [path for pattern in patterns for path in glob.glob(pattern)]
    own = glob.glob(os.path.join(sys.base_prefix, "lib", "lib*.so*"))
    return [*found, *own, *(p for p in ("/etc/ld.so.cache",) if os.path.exists(p))]
