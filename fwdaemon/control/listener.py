"""The socket in the file system, and the lock beside it that says that a daemon runs.

The lock is held as long as its holder lives, however that ends. Who has it may take away a socket that is left there:
nobody listens on it any more.
"""

import fcntl
import os
import socket
from pathlib import Path
from typing import Final

from fwdaemon.errors import PortfwdError

SOCKET: Final = Path("/run/kvm-portfwd/control.sock")

_BACKLOG: Final = 16
_FOR_OWNER: Final = 0o600
_FOR_GROUP: Final = 0o660


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
        # Nobody of one group while it becomes the other's.
        self._path.chmod(_FOR_OWNER)
        os.chown(self._path, 0, group or 0)
        self._path.chmod(_FOR_OWNER if group is None else _FOR_GROUP)

    def close(self) -> None:
        """Take the socket away and give the lock back."""
        if self._made:
            self._path.unlink(missing_ok=True)
            self._made = False
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
