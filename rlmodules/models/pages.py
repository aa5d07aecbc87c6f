"""Memory that the C allocator keeps between the steps of a run on a CPU."""

import ctypes
import os
from functools import cache

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Of ``mallopt``: at how many free bytes at its end the heap shrinks; how many blocks lie outside
of it."""
OWN_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_")
"""How environment variables begin by which a user has said how the allocator is to be."""


@cache
def keep_pages() -> bool:
    """Have glibc keep what is freed for what comes next; returns whether it does.

    Each step of training frees activations and gradients, and asks for as much again. By itself the
    allocator gives large blocks back to the system at once, whose pages the next step then waits
    for: a tenth of a small step. The most that is held does not grow by it.
    """
    if any(name.startswith(OWN_SETTINGS) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    return bool(mallopt(TRIM_THRESHOLD, 2**31 - 1) and mallopt(MMAP_MAX, 0))
