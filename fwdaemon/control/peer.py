"""Who is at the other end of a socket, as the kernel says: unix(7), SO_PEERCRED and SO_PEERGROUPS."""

import ctypes
import errno
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

_CREDENTIALS: Final = struct.Struct("=iII")
_SO_PEERGROUPS: Final = 59  # asm-generic/socket.h; Python has no name for it
_MOST_GROUPS: Final = 65536  # NGROUPS_MAX of linux/limits.h


@dataclass(frozen=True, slots=True)
class Peer:
    """A process as it was when it connected; `groups` are all of its groups."""

    pid: int
    uid: int
    groups: frozenset[int]

    @classmethod
    def of(cls, connection: socket.socket) -> "Peer":
        """Ask the kernel. Raises OSError when it does not tell."""
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, gid = _CREDENTIALS.unpack(credentials)
        return cls(pid, uid, _supplementary(connection) | {gid})

    @property
    def is_root(self) -> bool:
        """Whether it may do everything."""
        return self.uid == 0

    def may_read(self, group: int | None) -> bool:
        """Whether it may ask how things are: root, and the members of `group`."""
        return self.is_root or (group is not None and group in self.groups)


def _supplementary(connection: socket.socket) -> frozenset[int]:
    """Read the supplementary groups; Python's own call takes 256 of them at most."""
    buffer = (ctypes.c_uint * _MOST_GROUPS)()
    length = ctypes.c_uint(ctypes.sizeof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    asked = (connection.fileno(), socket.SOL_SOCKET, _SO_PEERGROUPS, buffer, ctypes.byref(length))
    if libc.getsockopt(*asked):
        number = ctypes.get_errno()
        if number == errno.ENOPROTOOPT:  # a kernel before 4.13
            return frozenset()
        raise OSError(number, os.strerror(number))
    return frozenset(buffer[: length.value // ctypes.sizeof(ctypes.c_uint)])
