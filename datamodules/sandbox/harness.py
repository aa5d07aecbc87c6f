"""Inside the sandbox: an answer in one process, its tests in another.

The tester runs the test statements, which the answer's process never sees: it is asked for single
calls, sends values back as plain data, and can say nothing about whether a test has passed. The
two are parted before the first test is read, so there is no secret to find in the answer's memory,
and no pipe of the verdicts among its files.

Like ``confine.py`` this runs in an interpreter of its own, with the standard library only.
"""

import importlib
import json
import os
import sys

from datamodules.sandbox import confine
from datamodules.sandbox.answering import Answer
from datamodules.sandbox.line import Line
from datamodules.sandbox.testing import test
from datamodules.sandbox.wire import send


class Installed:
    """Finds one package, in a folder whose neighbours cannot be seen."""

    def __init__(self, name, folder):
        self.name, self.folder = name, folder

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        from importlib.util import (
            spec_from_file_location,  # takes its time, and is needed here alone
        )

        return spec_from_file_location(
            name, f"{self.folder}/__init__.py", submodule_search_locations=[self.folder]
        )


def load_package(name, folder):
    """Import it once, for both processes."""
    sys.meta_path.append(Installed(name, folder))
    importlib.import_module(name)


def main(options):
    """Standard input: the job. Standard output: ``started``, then a line a test."""
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    confine.limit(options["memory_bytes"], options["cpu_s"])
    if options["readable"] is not None:
        confine.hide_files(options["readable"])
    for name, folder in options["packages"].items():
        load_package(name, folder)
    listener = confine.watch_threads() if options["filter"] else None
    if listener is not None:
        if os.fork() == 0:
            confine.end_with_parent()
            os.closerange(0, 2)
            confine.count_threads(listener)
        os.close(listener)
    to_answer, to_tester, nothing = os.pipe(), os.pipe(), os.pipe()
    os.close(nothing[1])
    if os.fork() == 0:
        os.dup2(nothing[0], 0)
        os.dup2(2, 1)
        for fd in (to_answer[1], to_tester[0], nothing[0]):
            os.close(fd)
        confine.end_with_parent()
        if options["filter"]:
            confine.filter_system_calls(threads=listener is not None)
        Answer(os.fdopen(to_answer[0], "rb"), os.fdopen(to_tester[1], "wb")).serve()
        os._exit(0)
    for fd in (to_answer[0], to_tester[1], nothing[0]):
        os.close(fd)
    if options["filter"]:
        confine.filter_system_calls(threads=listener is not None)
    verdicts = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a test prints is no verdict
    send(verdicts, ["started", ""])
    job = json.loads(sys.stdin.buffer.read())
    requests, replies = os.fdopen(to_answer[1], "wb"), os.fdopen(to_tester[0], "rb")
    test(job, Line(requests, replies), lambda *verdict: send(verdicts, verdict))
    os._exit(0)
