"""The seccomp filter by itself, and what the harness decodes."""

import errno
import os

import pytest

from datamodules.sandbox import confine, line, wire


def verdict(machine, number, *arguments, audit=None, threads=True):
    """What the seccomp program says to a system call."""
    words = {0: number, 4: audit or confine.ARCHITECTURES[machine][1]}
    words |= {16 + 8 * i: value for i, value in enumerate(arguments)}
    accumulator, position, program = 0, 0, confine.filter_program(machine, threads)
    while True:
        code, if_true, if_false, operand = program[position]
        position += 1
        if code == confine.RETURN:
            return operand
        if code == confine.LOAD:
            accumulator = words.get(operand, 0)
        else:
            equal = accumulator == operand if code == confine.EQUAL else accumulator & operand
            position += if_true if equal else if_false


@pytest.mark.parametrize(
    ("machine", "read", "openat", "clone", "socket", "kill"),
    [("x86_64", 0, 257, 56, 41, 62), ("aarch64", 63, 56, 220, 198, 129)],
)
def test_the_filter_on_both_machines(machine, read, openat, clone, socket, kill):
    refused, allowed = confine.REFUSE | errno.EPERM, confine.ALLOW
    assert verdict(machine, read) == allowed
    assert verdict(machine, socket) == verdict(machine, kill) == refused
    assert verdict(machine, openat, 0, 0, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY) == allowed
    for flag in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_TMPFILE):
        assert verdict(machine, openat, 0, 0, flag) == refused
    assert verdict(machine, clone, confine.CLONE_THREAD | 0x100) == allowed
    assert verdict(machine, clone, 17) == refused
    none = confine.REFUSE | errno.EAGAIN
    assert verdict(machine, clone, confine.CLONE_THREAD | 0x100, threads=False) == none
    assert verdict(machine, confine.CLONE3) == confine.REFUSE | errno.ENOSYS
    assert verdict(machine, read, audit=1) == confine.KILL


def test_every_system_call_is_named_once():
    for column in (0, 1):
        numbers = [n[column] for n in confine.ALLOWED.values()]
        numbers += [entry[1][column] for entry in confine.CHECKED]
        known = [n for n in numbers if n != confine.NONE]
        assert len(known) == len(set(known)) > 50


def test_no_step_of_the_filter_jumps_past_its_end():
    for machine in confine.ARCHITECTURES:
        program = confine.filter_program(machine)
        for position, (_, if_true, if_false, _) in enumerate(program):
            assert position + 1 + max(if_true, if_false) <= len(program)
            assert max(if_true, if_false) < 256


@pytest.mark.parametrize(
    "data",
    [
        *(["nothing", 1], ["bytes", "zz"], ["builtins.complex", 1, 2, 3], ["dict", 1]),
        *(["class", "os", "system"], ["class", "builtins", "exec"], ["callback", 0]),
        *(["reference", "os", "system"], ["name", "f"], ["kept", 0], ["constant", "Any"]),
        *(["namedtuple", "x", ["a b"], 1], ["os.system", "true"], ["builtins.exec", "1"]),
        *(["numpy", "x", None, ["list", 1]], ["pull", 0]),
    ],
)
def test_what_encode_never_writes_is_not_decoded(data):
    tests = line.Line(None, None)
    with pytest.raises(line.UNREAD):
        wire.decode(data, tests.take)
