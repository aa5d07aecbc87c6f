"""What a process gives up before it runs code that nobody has read.

This file and ``harness.py`` run in an interpreter of their own, which sees neither the project nor
any installed package: the standard library only. (The kept libraries of this field, sandlock and
landlock, want a newer kernel or a package inside; libseccomp's bindings want a system library.)

- rlimits (setrlimit(2)): memory, CPU seconds, open files, no file written, no core dump.
- Landlock (landlock(7)), where no mount namespace hides the files: only ``readable`` can be opened.
- seccomp (seccomp(2)): the system calls of computing, and no others. That leaves no sockets, no
  signals to other processes, no new processes, nothing written, removed, renamed or made. What is
  not allowed fails with EPERM.
- seccomp's notifications (seccomp_unotify(2), Linux 5.5): a process outside counts threads, and
  refuses those above ``MOST_THREADS``. (RLIMIT_NPROC does not bind root, and counts all that a user
  runs.) Where there are no notifications, as below another supervisor, there are no threads.
"""

import ctypes
import errno
import fcntl
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
EXIT, CLONE = ALLOWED["exit"], CHECKED[2][1]
ALLOW, REFUSE, KILL, NOTIFY = 0x7FFF0000, 0x00050000, 0x80000000, 0x7FC00000
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
"""BPF (linux/filter.h): load a word, jump if equal, jump if a bit is set, return."""
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP = {"x86_64": 317, "aarch64": 277}
SET_MODE_FILTER, NEW_LISTENER, CONTINUE = 1, 1 << 3, 1
RECEIVE, REPLY = 0xC0502100, 0xC0182101
"""SECCOMP_IOCTL_NOTIF_RECV and _SEND, with the sizes of their structures."""
MOST_THREADS = 64
"""Of an answer and its tests together, at one time."""
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


def watch_threads() -> int | None:
    """Have the threads of this process and its children reported from now on.

    Returns:
        What ``count_threads`` listens to; None where the kernel has no such thing, or where a
        supervisor of its own watches already.
    """
    machine = _machine()
    column, audit = ARCHITECTURES[machine]
    steps = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, audit), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    steps += [(EQUAL, 1, 0, EXIT[column]), (EQUAL, 1, 4, CLONE[column]), (RETURN, 0, 0, NOTIFY)]
    steps += [(LOAD, 0, 0, 16), (ANY_BIT, 0, 1, CLONE_THREAD), (RETURN, 0, 0, NOTIFY)]
    steps += [(RETURN, 0, 0, ALLOW)]
    _no_new_privileges()
    header, _kept = _compiled(steps)
    listener = LIBC.syscall(SECCOMP[machine], SET_MODE_FILTER, NEW_LISTENER, header)
    return None if listener < 0 else listener


def count_threads(listener: int) -> None:
    """Let ``MOST_THREADS`` live at once, for as long as this process runs; it never returns."""
    column, _ = ARCHITECTURES[_machine()]
    threads = 0
    while True:
        notice = bytearray(80)  # struct seccomp_notif: id, pid, flags, then the call's number
        try:
            fcntl.ioctl(listener, RECEIVE, notice)
            (number,) = struct.unpack_from("i", notice, 16)
            threads += 1 if number == CLONE[column] else -1
            error = -errno.EAGAIN if threads > MOST_THREADS else 0
            threads -= error != 0
            reply = notice[:8] + struct.pack("qiI", 0, error, 0 if error else CONTINUE)
            fcntl.ioctl(listener, REPLY, reply)
        except OSError as gone:
            if gone.errno not in (errno.ENOENT, errno.EINTR):  # whoever asked was ended meanwhile
                raise


def filter_system_calls(threads: bool) -> None:
    """seccomp: from now on only what ``ALLOWED`` and ``CHECKED`` name.

    Args:
        threads: whether new ones may be started.
    """
    _no_new_privileges()
    header, _kept = _compiled(filter_program(_machine(), threads))
    _checked("seccomp", LIBC.prctl(PR_SET_SECCOMP, 2, header, 0, 0))


def _machine() -> str:
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system call table for {machine}: x86_64 or aarch64")
    return machine


def _compiled(steps: list[tuple[int, int, int, int]]) -> tuple[bytes, ctypes.Array]:
    """A struct sock_fprog of BPF steps, and the memory that it points to."""
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *s) for s in steps))
    return struct.pack("HP", len(steps), ctypes.addressof(program)), program


def filter_program(machine: str, threads: bool = True) -> list[tuple[int, int, int, int]]:
    """BPF steps (code, steps to skip if true, if false, operand) over struct seccomp_data."""
    column, audit = ARCHITECTURES[machine]
    refuse = (RETURN, 0, 0, REFUSE | errno.EPERM)
    steps = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, audit), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    for numbers in ALLOWED.values():
        if numbers[column] != NONE:
            steps += [(EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, ALLOW)]
    if not threads:
        steps += [(EQUAL, 0, 1, CLONE[column]), (RETURN, 0, 0, REFUSE | errno.EAGAIN)]
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
