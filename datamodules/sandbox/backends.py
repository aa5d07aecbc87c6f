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
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

BACKENDS = ("bubblewrap", "landlock")
"""Those that isolate, the stronger one first."""
STDLIB = Path(os.__file__).parent
PACKAGES = ("site-packages", "dist-packages")


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


def interpreter() -> str:
    """This Python without its virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def find_backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        OSError: this machine has not what it needs.
    """
    if not sys.platform.startswith("linux"):
        raise OSError(f"it needs Linux, this is {sys.platform}")
    if name == "unsafe":
        return Backend(name, filter=False)
    if name == "landlock":
        return Backend(name, readable=(*_standard_library(), *_shared_libraries()))
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise OSError("bwrap is not installed")
    return Backend(name, prefix=(bwrap, *_bubblewrap_options()))


def _bubblewrap_options() -> list[str]:
    """Nothing is writable: a temporary folder would be memory that no limit counts."""
    options = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    for path in (interpreter(), str(STDLIB), *_shared_libraries()):
        options += ["--ro-bind", path, path]
    for path in (STDLIB / name for name in PACKAGES):
        if path.is_dir():  # the project itself may be installed there
            options += ["--tmpfs", str(path), "--remount-ro", str(path)]
    return [*options, "--remount-ro", "/", "--chdir", "/", "--"]


def _standard_library() -> list[str]:
    """Its entries one by one, without the packages installed beside them."""
    return sorted(str(path) for path in STDLIB.iterdir() if path.name not in PACKAGES)


def _shared_libraries() -> list[str]:
    """Where the standard library's C modules find theirs."""
    patterns = ("/lib64", "/usr/lib64", "/lib/*-linux-gnu", "/usr/lib/*-linux-gnu")
    found = [path for pattern in patterns for path in glob.glob(pattern)]
    own = glob.glob(os.path.join(sys.base_prefix, "lib", "lib*.so*"))
    return [*found, *own, *(p for p in ("/etc/ld.so.cache",) if os.path.exists(p))]
