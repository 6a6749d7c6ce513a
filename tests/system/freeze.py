"""Stops every thread of a process but the main one and the log's, as if each hung in the kernel; ends with the process.

Needs root.

ptrace(2) is the only thing that stops one thread and leaves the others alone.
"""

import ctypes
import os
import sys
from pathlib import Path

_SEIZE, _INTERRUPT = 0x4206, 0x4207  # linux/ptrace.h
_ALL_THREADS = 0x40000000  # __WALL of linux/wait.h


def main() -> None:
    """Do it, say so, and take note of the threads' ends, without which the process could not end."""
    pid = int(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    for task in Path(f"/proc/{pid}/task").iterdir():
        thread, goes_on = int(task.name), (task / "comm").read_text() == "log\n"
        if (
            thread != pid
            and not goes_on
            and (libc.ptrace(_SEIZE, thread, 0, 0) or libc.ptrace(_INTERRUPT, thread, 0, 0))
        ):
            raise OSError(ctypes.get_errno(), f"cannot stop thread {thread}")
    print("frozen", flush=True)  # noqa: T201  whoever waits for it reads this
    while Path(f"/proc/{pid}").exists():
        os.waitpid(-1, _ALL_THREADS)


if __name__ == "__main__":
    main()
