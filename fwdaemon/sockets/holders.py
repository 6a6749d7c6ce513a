"""Whose a socket is: the process that holds it, or else the unit it was opened in.

Root finds the process through /proc/PID/fd (proc_pid_fd(5)). The service may not look into other processes, as it has
none of root's powers but those over the network; but the kernel tells each socket's control group, and systemd names
those after its units.
"""

import os
from collections import deque
from collections.abc import Collection
from pathlib import Path
from typing import Final

from fwdaemon.sockets.model import Listener

_PROC: Final = Path("/proc")
_MOUNTS: Final = Path("/proc/self/mounts")
_UNITS: Final = (".service", ".socket", ".scope")
_INIT: Final = 1


class Holders:
    """Names holders as text that may hold anything; what was found out about a socket is not asked again."""

    def __init__(self) -> None:
        self._known: dict[int, str | None] = {}

    def name(self, sockets: Collection[Listener]) -> dict[int, str]:
        """Give the names of those that can be told, by inode; `sshd (pid 712)`, or `ssh.service`."""
        known = {socket.inode: self._known[socket.inode] for socket in sockets if socket.inode in self._known}
        unknown = [socket for socket in sockets if socket.inode not in known]
        if unknown:
            found = _processes_of({socket.inode for socket in unknown})
            units = _units_of({socket.cgroup for socket in unknown if socket.inode not in found} - {0})
            known |= {socket.inode: found.get(socket.inode) or units.get(socket.cgroup) for socket in unknown}
        self._known = known
        return {inode: name for inode, name in known.items() if name is not None}


def _processes_of(inodes: set[int]) -> dict[int, str]:
    """Name the process with the lowest number for each socket; init holds those of others for them, and comes last."""
    found: dict[int, str] = {}
    for pid in sorted(_pids(), key=lambda pid: (pid == _INIT, pid)):
        for inode in _sockets_of(pid) & (inodes - found.keys()):
            found[inode] = f"{_comm(pid)} (pid {pid})"
        if len(found) == len(inodes):
            break
    return found


def _pids() -> list[int]:
    return [int(name) for name in os.listdir(_PROC) if name.isdigit()]  # noqa: PTH208  a Path for each takes longer


def _sockets_of(pid: int) -> set[int]:
    try:
        with os.scandir(_PROC / str(pid) / "fd") as entries:
            links = [_link(entry.path) for entry in entries]
    except OSError:  # it ended, or is somebody else's
        return set()
    return {int(link[8:-1]) for link in links if link.startswith("socket:[")}


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115  the same
    except OSError:  # it was closed
        return ""


def _comm(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "comm").read_text(errors="backslashreplace").rstrip("\n")
    except OSError:
        return "a process that has gone"


# --- units -----------------------------------------------------------------------------------------------------------


def _units_of(groups: set[int]) -> dict[int, str]:
    """Name the units of control groups; a group's number is that of its directory."""
    found: dict[int, str] = {}
    directories = deque((root, "") for root in _hierarchies())
    while directories and len(found) < len(groups):
        path, unit = directories.popleft()
        for name, number in _subdirectories(path):
            inner = name if name.endswith(_UNITS) else unit
            directories.append((f"{path}/{name}", inner))
            if number in groups and inner:
                found[number] = inner
    return found


def _hierarchies() -> list[str]:
    try:
        return hierarchies(_MOUNTS.read_bytes())
    except OSError:
        return []


def hierarchies(mounts: bytes) -> list[str]:
    """Give where control groups of version 2 are, from /proc/self/mounts.

    Names in it are anybody's who may mount. The kernel writes blanks, tabs and line breaks in them as numbers, but none
    of the other characters at which Python parts lines and words.
    """
    parted = (line.split(" ") for line in os.fsdecode(mounts).split("\n"))
    return [words[1] for words in parted if words[2:3] == ["cgroup2"]]


def _subdirectories(path: str) -> list[tuple[str, int]]:
    try:
        with os.scandir(path) as entries:
            return [(entry.name, entry.inode()) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # it has gone
        return []
