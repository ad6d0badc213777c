"""The far side of the sandbox: a small server that forks one confined child per program.

Started by model/benchmarks/sandbox.py as `python -s -S -P -B sandbox_guest.py`; never imported by it, and standard library
only. It reads requests (4-byte length + JSON) from stdin and writes replies to stdout.

What confines a child, in this order: own session and file descriptors, resource limits, no user id and no capability
worth having, no new privileges, Landlock with an empty rule set (no path may be opened, made or listed), and a
seccomp list of the few system calls that computing and printing need. Opening files, sockets, processes, threads,
signals and tracing are not on that list, so what a program may import is loaded before the fork.
"""

import ctypes
import json
import os
import platform
import random
import resource
import select
import signal
import struct
import sys
import time
import traceback
from pathlib import Path

PRELOADED = [
    "_strptime", "abc", "array", "base64", "bisect", "calendar", "cmath", "collections", "collections.abc",
    "contextlib", "copy", "dataclasses", "datetime", "decimal", "encodings.ascii", "encodings.latin_1",
    "encodings.utf_16", "enum", "fractions", "functools", "hashlib", "heapq", "itertools", "json", "math", "numbers",
    "operator", "pprint", "queue", "re", "statistics", "string", "textwrap", "types", "typing", "unicodedata",
]  # fmt: skip

# System call numbers of what a confined program may do: compute, read and write what is already open, look at the clock.
ALLOWED = {
    "x86_64": {
        "read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12,
        "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "readv": 19, "writev": 20, "sched_yield": 24,
        "mremap": 25, "madvise": 28, "nanosleep": 35, "getpid": 39, "exit": 60, "getcwd": 79, "gettimeofday": 96,
        "getrusage": 98, "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110,
        "sigaltstack": 131, "gettid": 186, "time": 201, "futex": 202, "restart_syscall": 219, "clock_gettime": 228,
        "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "getrandom": 318,
    },
    "aarch64": {
        "getcwd": 17, "close": 57, "lseek": 62, "read": 63, "write": 64, "readv": 65, "writev": 66, "fstat": 80,
        "exit": 93, "exit_group": 94, "futex": 98, "nanosleep": 101, "clock_gettime": 113, "clock_getres": 114,
        "clock_nanosleep": 115, "sched_yield": 124, "restart_syscall": 128, "sigaltstack": 132, "rt_sigaction": 134,
        "rt_sigprocmask": 135, "rt_sigreturn": 139, "times": 153, "getrusage": 165, "gettimeofday": 169, "getpid": 172,
        "getppid": 173, "getuid": 174, "geteuid": 175, "getgid": 176, "getegid": 177, "gettid": 178, "brk": 214,
        "munmap": 215, "mremap": 216, "mmap": 222, "mprotect": 226, "madvise": 233, "getrandom": 278,
    },
}  # fmt: skip
AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NOBODY = 65534
LIBC = ctypes.CDLL(None, use_errno=True)


def prctl(*arguments: int) -> None:
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:5]]
    if LIBC.prctl(*padded):
        raise OSError(ctypes.get_errno(), f"prctl{arguments}")


def limit_resources(seconds: float, memory_bytes: int) -> None:
    """Hard limits; memory counts from what the interpreter already maps, files may be neither grown nor opened."""
    mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    cpu_seconds = int(seconds) + 1
    limits = {"AS": mapped + memory_bytes, "CPU": cpu_seconds, "FSIZE": 0, "CORE": 0, "NPROC": 0, "MEMLOCK": 0}
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))


def drop_privileges() -> None:
    """Root becomes nobody where that user exists here; every capability goes in any case."""
    if os.geteuid() == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        except OSError:
            pass  # a user namespace that maps no other user: the capabilities below and seccomp are what counts
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    if LIBC.capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def deny_files() -> bool:
    """Landlock with no rule at all: True when the kernel has it (5.13 or newer). Second layer behind seccomp."""
    version = LIBC.syscall(444, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    file_rights = {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)
    ruleset = struct.pack("QQQ", (1 << file_rights) - 1, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    descriptor = LIBC.syscall(444, ctypes.c_char_p(ruleset), ctypes.c_size_t(size), 0)
    if descriptor < 0 or LIBC.syscall(446, descriptor, 0):
        raise OSError(ctypes.get_errno(), "landlock")
    os.close(descriptor)
    return True


def filter_system_calls(machine: str) -> None:
    """Only ALLOWED calls pass; others fail with EPERM; a call by another architecture's table kills the process."""
    numbers = sorted(ALLOWED[machine].values())
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    kill, permitted, refused = 0x80000000, 0x7FFF0000, 0x00050000 | 1
    program = [(load, 0, 0, 4), (equal, 1, 0, AUDIT_ARCHITECTURE[machine]), (answer, 0, 0, kill)]
    program += [(load, 0, 0, 0), (at_least, 0, 1, 0x40000000), (answer, 0, 0, kill)]
    program += [(equal, len(numbers) - index, 0, number) for index, number in enumerate(numbers)]
    program += [(answer, 0, 0, refused), (answer, 0, 0, permitted)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    if LIBC.prctl(22, 2, header, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "seccomp")


def confine(request: dict) -> list[str]:
    """Closes every door behind this process; returns the names of the layers, raises OSError when one is missing."""
    limit_resources(request["seconds"], request["memory_bytes"])
    drop_privileges()
    prctl(38, 1)  # PR_SET_NO_NEW_PRIVS
    prctl(4, 0)  # PR_SET_DUMPABLE: no core, no tracing from outside
    prctl(
        1, signal.SIGKILL
    )  # PR_SET_PDEATHSIG: does not outlive the server (cleared by changing user, so set after it)
    landlock = deny_files()
    filter_system_calls(platform.machine())
    return ["rlimits", "no_new_privileges", *(["landlock"] if landlock else []), "seccomp"]


def execute(code: str) -> int:
    """Runs a program as __main__ and returns its exit code."""
    names = {"__name__": "__main__", "__builtins__": __builtins__}
    status = 0
    try:
        exec(compile(code, "<program>", "exec", dont_inherit=True), names)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:
        # Our own frame is no news to the program's author, and its path is nobody's business.
        traceback.print_exception(error.with_traceback(error.__traceback__.tb_next), limit=-4)
        status = 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        status = status or 1
    return status & 255


def child(request: dict, stdout: int, stderr: int, ready: int) -> None:
    """Confines itself, says so through `ready`, runs the program, exits. Never returns."""
    status = 70
    try:
        os.setsid()
        stdin = os.memfd_create("stdin")
        os.write(stdin, request["stdin"].encode("utf-8", "surrogatepass"))
        os.lseek(stdin, 0, os.SEEK_SET)
        for target, source in enumerate((stdin, stdout, stderr, ready)):
            os.dup2(source, 64 + target)
        for target in range(4):
            os.dup2(64 + target, target)
        os.closerange(4, 256)
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, closefd=False, encoding="utf-8", errors="replace")  # noqa: SIM115 - they stay open: they are the program's
            for number, mode in ((0, "r"), (1, "w"), (2, "w"))
        )
        sys.argv = ["program"]
        random.seed(0)
        os.write(3, json.dumps(confine(request)).encode())
        os.close(3)
        status = execute(request["code"])
    except BaseException:
        traceback.print_exc()  # only confinement can get here; without the word on `ready` the caller refuses
    finally:
        os._exit(status)


def supervise(process: int, pipes: dict[int, str], seconds: float, output_bytes: int) -> dict:
    """What the child wrote and how it ended; kills it at the deadline or when it writes more than `output_bytes`."""
    deadline, written, reason = time.monotonic() + seconds, dict.fromkeys(pipes.values(), b""), ""
    while pipes:
        readable, _, _ = select.select(list(pipes), [], [], max(0.0, deadline - time.monotonic()))
        for pipe in readable:
            data = os.read(pipe, 65536)
            written[pipes[pipe]] += data
            if not data:
                os.close(pipe)
                del pipes[pipe]
        if any(len(data) > output_bytes for data in written.values()):
            reason = "output"
        elif pipes and time.monotonic() >= deadline:
            reason = "time"
        if reason:
            break
    for pipe in pipes:
        os.close(pipe)
    # A child can close its outputs and go on computing: it still has only until the deadline.
    while not reason and os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        reason = "time" if time.monotonic() >= deadline else ""
        time.sleep(0.0005)
    os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    texts = {name: data[:output_bytes].decode("utf-8", "replace") for name, data in written.items()}
    return {**texts, "exit_code": status, "stopped_by": reason}


def serve_one(request: dict) -> dict:
    ends = {name: os.pipe() for name in ("stdout", "stderr", "ready")}
    process = os.fork()
    if process == 0:
        child(request, *(write for _, write in ends.values()))
    for _, write in ends.values():
        os.close(write)
    pipes = {read: name for name, (read, _) in ends.items()}
    return supervise(process, pipes, request["seconds"], request["output_bytes"])


def main() -> None:
    for name in PRELOADED:
        __import__(name)
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    while header := requests.read(4):
        request = json.loads(requests.read(struct.unpack("<I", header)[0]))
        reply = json.dumps(serve_one(request)).encode()
        replies.write(struct.pack("<I", len(reply)) + reply)
        replies.flush()


if __name__ == "__main__":
    main()
