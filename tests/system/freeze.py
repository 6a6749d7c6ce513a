"""Stops every thread of a process but the main one and the log's, as if each hung in the kernel; ends with the process.

Needs root.

ptrace(2) is the only thing that stops one thread and leaves the others alone.
"""

import ctypes
import os
import sys
import time
from pathlib import Path

_CONTINUE, _SEIZE, _INTERRUPT = 7, 0x4206, 0x4207  # linux/ptrace.h
_ALL_THREADS = 0x40000000  # __WALL of linux/wait.h
_LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Do it, say so, and take note of the threads' ends, without which the process could not end."""
    pid = int(sys.argv[1])
    for task in Path(f"/proc/{pid}/task").iterdir():
        if int(task.name) != pid and (task / "comm").read_text() != "log\n":
            _freeze(task)
    print("frozen", flush=True)  # noqa: T201  the test waits for it
    while Path(f"/proc/{pid}").exists():
        os.waitpid(-1, _ALL_THREADS)


def _freeze(task: Path) -> None:
    """Stop a thread in the kernel: one that computes holds the interpreter's lock, and would stop the main one too."""
    thread = int(task.name)
    _ptrace(_SEIZE, thread)
    while True:
        _ptrace(_INTERRUPT, thread)
        os.waitpid(thread, _ALL_THREADS)
        if not (task / "syscall").read_text().startswith("-1 "):  # proc_pid_syscall(5)
            return
        _ptrace(_CONTINUE, thread)
        time.sleep(0.01)


def _ptrace(request: int, thread: int) -> None:
    if _LIBC.ptrace(request, thread, 0, 0):
        raise OSError(ctypes.get_errno(), f"cannot do {request:#x} with thread {thread}")


if __name__ == "__main__":
    main()
