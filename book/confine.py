"""Run a program that reads what Python needs, writes in one folder, and reaches nothing else.

    python book/confine.py --write FOLDER [--read PATH ...] -- PROGRAM ARGUMENT ...

It takes Linux's Landlock, which needs no privilege: files that are not named cannot be opened,
no TCP connection can be made, no process outside can be signalled or looked into. What a kernel
older than 6.12 does not know of this is left out; without any Landlock nothing is run.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import resource
import stat
import sys

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on all machines
NO_NEW_PRIVS = 38
EXECUTE, WRITE, READ, LIST = 1, 1 << 1, 1 << 2, 1 << 3
REFER, TRUNCATE, IOCTL = 1 << 13, 1 << 14, 1 << 15
DEVICE_FILES = 1 << 6 | 1 << 11  # to make some
ON_FILES = EXECUTE | WRITE | READ | TRUNCATE | IOCTL
RIGHTS = {1: REFER - 1, 2: (REFER << 1) - 1, 3: (TRUNCATE << 1) - 1, 5: (IOCTL << 1) - 1}
BIND_AND_CONNECT, OTHERS_SOCKETS_AND_SIGNALS = 3, 3
PROCESS = ("self", "cpuinfo", "meminfo", "stat", "loadavg", "version", "filesystems", "sys")
ETC = [
    *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "timezone", "nsswitch.conf"),
    *("passwd", "group", "hosts", "host.conf", "mime.types", "magic", "fonts", "alternatives"),
    *("locale.alias", "locale.conf", "default/locale", "os-release", "matplotlibrc", "python3"),
]
SYSTEM = [
    *("/usr", "/lib", "/lib64", "/bin", "/sys/devices", "/sys/fs/cgroup"),
    *(f"/etc/{name}" for name in ETC),  # nothing that only root should see
    *(f"/proc/{name}" for name in PROCESS),  # nothing of other processes
]
MORE_PROCESSES = 1000
DEVICES = ["/dev/null", "/dev/zero", "/dev/full"]

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def version() -> int:
    """Landlock's version in this kernel, 0 where there is none."""
    if _libc is None:
        return 0
    return max(_libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1)), 0)


def confine(read: list[str], write: list[str]) -> None:
    """Let this process, and all that it starts, read and write no more than these paths.

    Raises: `OSError` where the kernel cannot do it.
    """
    known = version()
    if not known or _libc is None:
        raise OSError("this system has no Landlock to confine a program with")
    every = RIGHTS[max(v for v in RIGHTS if v <= known)]
    wanted = _Ruleset(
        every,
        BIND_AND_CONNECT if known >= 4 else 0,
        OTHERS_SOCKETS_AND_SIGNALS if known >= 6 else 0,
    )
    size = 8 if known < 4 else 16 if known < 6 else 24
    rules = _call(CREATE_RULESET, ctypes.byref(wanted), ctypes.c_size_t(size), ctypes.c_uint32(0))
    for paths, rights in (
        (read, EXECUTE | READ | LIST),
        (write, every & ~IOCTL & ~DEVICE_FILES),
        (DEVICES, READ | WRITE | LIST),
    ):
        for path in paths:
            if os.path.exists(path):
                _allow(rules, path, rights)
    for path in ("/dev/urandom", "/dev/random"):
        if os.path.exists(path):
            _allow(rules, path, READ)
    if _libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot give up privileges")
    _call(RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0))
    os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        rights &= ON_FILES
    rule = _Beneath(rights, place)
    _call(ADD_RULE, ctypes.c_int(rules), ctypes.c_int(1), ctypes.byref(rule), ctypes.c_uint32(0))
    os.close(place)


def _call(number: int, *arguments: object) -> int:
    assert _libc is not None
    done = _libc.syscall(number, *arguments)
    if done < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return done


def limit_processes(more: int) -> None:
    """Let this program add so many processes and threads to those that its user has; not root."""
    running = 0
    for path in os.listdir("/proc") if sys.platform == "linux" else ():
        with contextlib.suppress(OSError):
            if path.isdigit() and os.stat(f"/proc/{path}").st_uid == os.getuid():
                running += len(os.listdir(f"/proc/{path}/task"))
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    most = running + more
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a program that reaches nothing else.")
    parser.add_argument("--write", action="append", default=[], help="a folder to write in")
    parser.add_argument("--read", action="append", default=[], help="what may be read as well")
    parser.add_argument("--memory", type=float, default=6, help="gigabytes at most")
    parser.add_argument("--seconds", type=int, default=600, help="of processor time at most")
    parser.add_argument("--pid", help="a file that gets the number of the process")
    parser.add_argument("--unconfined", action="store_true", help="limits, but no walls")
    parser.add_argument("program", nargs="+")
    args = parser.parse_args()
    if args.pid:
        with open(args.pid, "w", encoding="ascii") as file:  # for who has to end it
            file.write(str(os.getpid()))
    most = int(args.memory * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (args.seconds, args.seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**28, 2**28))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit_processes(MORE_PROCESSES)
    os.chdir(args.write[0])
    if not args.unconfined:
        confine([*SYSTEM, *args.read], args.write)
    os.execvp(args.program[0], args.program)


if __name__ == "__main__":
    main()
