"""What the C allocator keeps, in a process of its own: the setting stays with a process."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rlmodules.models

SOURCE = Path(rlmodules.models.__file__).with_name("pages.py")
PROGRAM = """
import resource, runpy, sys
keep_pages = runpy.run_path(sys.argv[1])["keep_pages"]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        bytearray(64 * 2**20)  # of zeros that are written: every page is touched
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
first, kept = faults(), keep_pages()
faults()
print(first, kept, faults())
"""


def pages(**environment):
    command = [sys.executable, "-c", PROGRAM, str(SOURCE)]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC", "GLIBC"))}
    done = subprocess.run(
        command, env=clean | environment, capture_output=True, text=True, check=True
    )
    before, kept, after = done.stdout.split()
    return int(before), kept == "True", int(after)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no glibc")
def test_what_was_freed_is_used_again():
    before, kept, after = pages()
    assert kept and before > 1000 and after < 100, (before, after)


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_TOP_PAD_"])
def test_what_the_user_set_stays(name):
    value = {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=9", "MALLOC_TOP_PAD_": "9"}[name]
    before, kept, after = pages(**{name: value})
    assert not kept and after > 1000, (before, after)
