"""The socket in the file system, and the lock beside it that says that a daemon runs.

The lock is held as long as its holder lives, however that ends. Who has it may take away a socket that is left there:
nobody listens on it any more.

The group that may connect is named in an access control list, as the file's owner may write one; to give the file away
would take CAP_CHOWN, and with it the power over every file there is.
"""

import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Final

from fwdaemon.errors import PortfwdError

SOCKET: Final = Path("/run/kvm-portfwd/control.sock")

_BACKLOG: Final = 16
_FOR_OWNER: Final = 0o600

# linux/posix_acl_xattr.h and linux/posix_acl.h: a version, then entries of tag, permissions and number, in this order.
_ACCESS_LIST: Final = "system.posix_acl_access"
_VERSION: Final = struct.pack("<I", 2)
_ENTRY: Final = struct.Struct("<HHI")
_OWNER, _OWNING_GROUP, _GROUP, _MASK, _OTHERS = 0x01, 0x04, 0x08, 0x10, 0x20
_NOTHING, _READ_AND_WRITE = 0, 6
_NOBODY: Final = 0xFFFFFFFF


class AlreadyRunningError(PortfwdError):
    """Another daemon runs on this host."""


class Listener:
    """The socket file at `path`, and its lock. Its methods block for no longer than a file system takes."""

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = path
        self._lock = -1
        self._made = False

    def lock(self) -> None:
        """Be the only daemon.

        Raises:
            AlreadyRunningError: there is one already.
            OSError: the lock file cannot be made.

        """
        self._path.parent.mkdir(mode=0o755, exist_ok=True)
        lock = self._path.with_suffix(".lock")
        self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _FOR_OWNER)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunningError(
                f"another kvm-portfwd runs already on this host, and holds {lock};"
                " stop it first, or ask it with kvm-portfwd status"
            ) from None

    def listen(self) -> socket.socket:
        """Make the socket, for root alone until `admit`. Raises OSError when that cannot be done."""
        self._path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # The file takes its mode from the socket, so there is no moment in which others could connect.
            os.fchmod(listening.fileno(), _FOR_OWNER)
            listening.bind(str(self._path))
            self._made = True
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
        return listening

    def admit(self, group: int | None) -> None:
        """Let the members of a group connect, or root alone. Raises OSError when that cannot be done."""
        if group is None:
            self._path.chmod(_FOR_OWNER)  # closes the list's mask too: acl(5)
        else:
            os.setxattr(self._path, _ACCESS_LIST, _access_list(group))

    def close(self) -> None:
        """Take the socket away and give the lock back."""
        if self._made:
            self._path.unlink(missing_ok=True)
            self._made = False
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _access_list(group: int) -> bytes:
    """Give the list that lets the owner and the members of a group connect, and nobody else."""
    entries = (
        (_OWNER, _READ_AND_WRITE, _NOBODY),
        (_OWNING_GROUP, _NOTHING, _NOBODY),
        (_GROUP, _READ_AND_WRITE, group),
        (_MASK, _READ_AND_WRITE, _NOBODY),
        (_OTHERS, _NOTHING, _NOBODY),
    )
    return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries)
