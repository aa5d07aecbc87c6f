"""What a process gives up before it runs code that nobody has read.

This file and ``harness.py`` run in an interpreter of their own, which sees neither the project nor
any installed package: the standard library only. (The kept libraries of this field, sandlock and
landlock, want a newer kernel or a package inside; libseccomp's bindings want a system library.)

- rlimits (setrlimit(2)): memory, CPU seconds, open files, no file written, no core dump.
- Landlock (landlock(7)), where no mount namespace hides the files: only ``readable`` can be opened.
- seccomp (seccomp(2)): the system calls of computing, and no others. That leaves no sockets, no
  signals to other processes, no new processes, nothing written, removed, renamed or made; threads
  remain. What is not allowed fails with EPERM.
"""

import ctypes
import errno
import os
import resource
import signal
import struct

LIBC = ctypes.CDLL(None, use_errno=True)
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> (its column below, AUDIT_ARCH_... of linux/audit.h)."""
NONE = -1
ALLOWED = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, NONE), "fstat": (5, 80),
    "lstat": (6, NONE), "poll": (7, NONE), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67),
    "readv": (19, 65), "writev": (20, 66), "access": (21, NONE), "pipe": (22, NONE),
    "select": (23, NONE), "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233),
    "dup": (32, 23), "dup2": (33, NONE), "nanosleep": (35, 101), "getitimer": (36, 102),
    "alarm": (37, NONE), "setitimer": (38, 103), "getpid": (39, 172), "exit": (60, 93),
    "uname": (63, 160), "getcwd": (79, 17), "readlink": (89, NONE), "gettimeofday": (96, 169),
    "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153),
    "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177),
    "getppid": (110, 173), "getgroups": (115, 158), "sigaltstack": (131, 132),
    "gettid": (186, 178), "time": (201, NONE), "futex": (202, 98),
    "sched_getaffinity": (204, 123), "getdents64": (217, 61), "restart_syscall": (219, 128),
    "fadvise64": (221, 223), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "newfstatat": (262, 79),
    "readlinkat": (267, 78), "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73),
    "set_robust_list": (273, 99), "dup3": (292, 24), "pipe2": (293, 59),
    "getrandom": (318, 278), "membarrier": (324, 283), "statx": (332, 291),
    "rseq": (334, 293), "faccessat2": (439, 439),
}  # fmt: skip
"""Name -> (number on x86_64, number on aarch64)."""
WRITING = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | (os.O_TMPFILE & ~os.O_DIRECTORY)
CLONE_THREAD = 0x10000
FCNTL = (0, 1, 2, 3, 1030)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC. F_SETOWN would signal other processes."""
IOCTL = (0x5401, 0x5413, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONCLEX, FIOCLEX."""
CHECKED = (
    ("open", (2, NONE), 1, "without", (WRITING,)),
    ("openat", (257, 56), 2, "without", (WRITING,)),
    ("clone", (56, 220), 0, "with", (CLONE_THREAD,)),
    ("fcntl", (72, 25), 1, "is", FCNTL),
    ("ioctl", (16, 29), 1, "is", IOCTL),
)
"""Allowed where an argument says so: (name, numbers, argument, how, bits or values)."""
CLONE3 = 435
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
"""BPF (linux/filter.h): load a word, jump if equal, jump if a bit is set, return."""
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ_FILE, READ_DIR, ALL_RIGHTS = 1 << 2, 1 << 3, (1 << 13) - 1


def limit(memory_bytes: int, cpu_s: int) -> None:
    """Bound this process and those it starts, each by itself; end with the parent."""
    for what, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    end_with_parent()


def end_with_parent() -> None:
    """Be killed when the parent is gone."""
    _checked("prctl", LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


def hide_files(readable: list[str]) -> None:
    """Landlock: open nothing from now on but what lies at or below ``readable``, to read."""
    _no_new_privileges()
    handled = struct.pack("Q", ALL_RIGHTS)
    ruleset = _checked("Landlock", LIBC.syscall(LANDLOCK_CREATE, handled, len(handled), 0))
    for path in readable:
        fd = os.open(path, os.O_PATH)
        rights = READ_FILE | READ_DIR if os.path.isdir(path) else READ_FILE
        rule = struct.pack("=Qi", rights, fd)
        _checked("Landlock", LIBC.syscall(LANDLOCK_ADD, ruleset, 1, rule, 0))
        os.close(fd)
    _checked("Landlock", LIBC.syscall(LANDLOCK_RESTRICT, ruleset, 0))
    os.close(ruleset)


def filter_system_calls() -> None:
    """seccomp: from now on only what ``ALLOWED`` and ``CHECKED`` name."""
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system call table for {machine}: x86_64 or aarch64")
    program = b"".join(struct.pack("HBBI", *step) for step in filter_program(machine))
    buffer = ctypes.create_string_buffer(program)
    header = struct.pack("HP", len(program) // 8, ctypes.addressof(buffer))
    _no_new_privileges()
    _checked("seccomp", LIBC.prctl(PR_SET_SECCOMP, 2, header, 0, 0))


def filter_program(machine: str) -> list[tuple[int, int, int, int]]:
    """BPF steps (code, steps to skip if true, if false, operand) over struct seccomp_data."""
    column, audit = ARCHITECTURES[machine]
    refuse = (RETURN, 0, 0, REFUSE | errno.EPERM)
    steps = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, audit), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    for numbers in ALLOWED.values():
        if numbers[column] != NONE:
            steps += [(EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, ALLOW)]
    # glibc falls back to clone, whose flags can be looked at, only on this error.
    steps += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, REFUSE | errno.ENOSYS)]
    for _, numbers, argument, how, values in CHECKED:
        if numbers[column] == NONE:
            continue
        body = [(LOAD, 0, 0, 16 + 8 * argument)]
        for value in values:
            jumps = (1, 0) if how == "without" else (0, 1)
            body += [(EQUAL if how == "is" else ANY_BIT, *jumps, value), (RETURN, 0, 0, ALLOW)]
        steps += [(EQUAL, 0, len(body) + 1, numbers[column]), *body, refuse]
    return [*steps, refuse]


def _no_new_privileges() -> None:
    _checked("prctl", LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _checked(what: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result
