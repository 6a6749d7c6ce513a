"""Keeps one lab host: gives it control groups, starts its namespaces, and removes everything when its owner is gone.

Run as a program, by `tests.lab.host`. Standard input is a pipe whose other end only the owner (pytest, the
demonstration) holds: end of file means that the owner ended, however it ended. This program leaves the owner's session,
so a signal that kills the owner's whole process group does not keep it from tidying up. Should it be killed itself,
the host still ends with the owner, because PID 1 in there reads the same pipe; the empty control groups that are left
then are swept by the next keeper.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_PREFIX = "kvm-portfwd-lab-"


def hierarchies() -> Iterator[tuple[str, Path]]:
    """Controllers and this process's own group of every mounted hierarchy; those of cgroup v2 have no name."""
    if (_CGROUPS / "cgroup.controllers").exists():
        # A group with processes in it cannot hand controllers on in version 2, so the lab sits at the top.
        yield "", _CGROUPS
        return
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, names, group = line.split(":", 2)
        # Version 2 without controllers stands beside version 1 for systemd's own use, in a directory of this name.
        base = _CGROUPS / (names.removeprefix("name=") or "unified")
        if base.is_dir():
            yield names, base / group.lstrip("/")


def make_groups(name: str) -> list[Path]:
    """One group of that name in each hierarchy, fit to take processes."""
    groups = []
    for controllers, parent in hierarchies():
        group = parent / name
        group.mkdir()
        groups.append(group)
        if "cpuset" in controllers.split(","):
            for file in ("cpuset.cpus", "cpuset.mems"):
                (group / file).write_text((parent / file).read_text(encoding="ascii"), encoding="ascii")
    return groups


def remove_groups(groups: Iterable[Path]) -> None:
    """Remove the groups and all below them; what still dies gets a moment."""
    for group in groups:
        for directory, _, _ in os.walk(group, topdown=False):
            _remove_patiently(Path(directory))


def _remove_patiently(directory: Path) -> None:
    for _ in range(100):
        try:
            directory.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)
        else:
            return


def thaw(groups: Iterable[Path]) -> None:
    """Wake paused guests: cgroup v1 does not let a frozen process die."""
    for group in groups:
        for state in group.glob("**/freezer.state"):
            with contextlib.suppress(OSError):
                state.write_text("THAWED", encoding="ascii")


def sweep() -> None:
    """Remove groups whose keeper was killed, and that are empty."""
    for directory, children, _ in os.walk(_CGROUPS):
        for child in [name for name in children if name.startswith(_PREFIX)]:
            children.remove(child)
            if not Path("/proc", child.removeprefix(_PREFIX)).exists():
                group = Path(directory, child)
                thaw([group])
                _remove_if_empty(group)


def _remove_if_empty(group: Path) -> None:
    with contextlib.suppress(OSError):
        for directory, _, _ in os.walk(group, topdown=False):
            Path(directory).rmdir()


def start(boot: list[str], groups: list[Path]) -> "subprocess.Popen[bytes]":
    """Start PID 1 of the host. It joins the groups before its cgroup namespace begins, so they are its roots."""
    join = 'while [ "$1" != -- ]; do echo 0 >"$1/cgroup.procs"; shift; done; shift; exec unshare --cgroup -- "$@"'
    unshare = ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--"]
    words = [*unshare, "/bin/sh", "-c", join, "sh", *map(str, groups), "--", *boot]
    return subprocess.Popen(words)  # noqa: S603  the lab chose the words


def first_child(pid: int) -> int:
    """PID 1 of the host, by the machine's numbers; 0 if it never came to be."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    for _ in range(1000):
        with contextlib.suppress(OSError):
            if words := children.read_text(encoding="ascii").split():
                return int(words[0])
        time.sleep(0.001)
    return 0


def entrances(init: int) -> Iterator[int]:
    """Each nsenter that still waits for a program of this host, or of the machine within.

    They are outside of the host's process namespace. One whose program was stopped has stopped itself too; it would
    never take note of that program's end, and the namespace waits until that is done.
    """
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found = re.match(rb"nsenter\0--target=(\d+)\0", command.read_bytes())
            if found and _descends(int(found[1]), init):
                yield int(command.parent.name)


def _descends(pid: int, ancestor: int) -> bool:
    while pid not in (0, ancestor):
        pid = parent_of(pid)
    return pid == ancestor


def parent_of(pid: int) -> int:
    """The process that started it. proc(5): the name before, which may hold anything, stands in parentheses."""
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])


def signal_entrances(init: int, number: signal.Signals) -> None:
    """End them with SIGKILL, or wake them with SIGCONT so that they hear of their program's end."""
    for pid in entrances(init):
        with contextlib.suppress(OSError):
            os.kill(pid, number)


def main() -> int:
    """`keeper.py BOOT…`: keep the host that BOOT starts."""
    sweep()
    groups = make_groups(f"{_PREFIX}{os.getpid()}")
    try:
        host = start(sys.argv[1:], groups)
        init = first_child(host.pid)
        sys.stdin.buffer.read()
        thaw(groups)
        while host.poll() is None:
            signal_entrances(init, signal.SIGKILL)
            time.sleep(0.01)
        return host.returncode
    finally:
        remove_groups(groups)


if __name__ == "__main__":
    sys.exit(main())
