"""The socket in the file system, and what says that a daemon runs: a lock beside it, and a name without a file.

Both are held as long as their holder lives, however that ends. Who has them may take away a socket that is left there:
no process listens on it any more. The lock keeps daemons of two network namespaces from sharing one directory; the name
(`fwdaemon.control.listener`) stays when files are deleted.

The group that may connect is named in an access control list, as the file's owner may write one; to give the file away
would take CAP_CHOWN, and with it the power over every file there is.
"""

import ctypes
import errno
import fcntl
import os
import secrets
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from fwdaemon.errors import PortfwdError, shortage

# Who is at the other end of a socket, as the kernel says: unix(7), SO_PEERCRED and SO_PEERGROUPS.
_CREDENTIALS: Final = struct.Struct("=iII")
_SO_PEERGROUPS: Final = 59  # asm-generic/socket.h; Python has no name for it
_MOST_GROUPS: Final = 65536  # NGROUPS_MAX of linux/limits.h
_NO_LOGIN: Final = str((1 << 32) - 1)  # of linux/audit.h: without a login


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

    def __str__(self) -> str:
        """Say who it is: its user, who logged in where that is another, its number, and its name while it runs."""
        login, name = (_of_process(self.pid, what) for what in ("loginuid", "comm"))
        who = f" (logged in as {login})" if login not in ("", _NO_LOGIN, str(self.uid)) else ""
        return f"uid {self.uid}{who}, pid {self.pid}{f', {name}' if name else ''}"

    def may_read(self, group: int | None) -> bool:
        """Whether it may ask how things are: root, and the members of `group`."""
        return self.is_root or (group is not None and group in self.groups)


def _of_process(pid: int, what: str) -> str:
    try:
        return Path(f"/proc/{pid}/{what}").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


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


# Being the only daemon of a network namespace, which is how far its rules reach.
#
# Files can be deleted while a daemon runs, and others then know nothing of it. So it also binds a name that no file
# stands for (the abstract names of unix(7)): the kernel keeps it as long as the daemon lives. Any user can bind that
# name first. So only a holder that runs as root counts, and where the name is taken the daemon binds a longer one that
# cannot be guessed. The kernel lists all of them.
_BACKLOG: Final = 128
_NAMES: Final = Path("/proc/net/unix")


class Sole:
    """A name in this network namespace, to be held by one process that runs as root."""

    def __init__(self, name: str) -> None:
        self._name = f"\0{name}".encode()
        self._socket: socket.socket | None = None

    def claim(self) -> bool:
        """Take the name until `release`, and return whether no other daemon has it.

        Raises:
            OSError: no descriptor is available.

        """
        taken = _listening(self._name)
        if taken is None:
            if _is_held_by_root(self._name):
                return False
            taken = _listening(self._name + f".{secrets.token_hex(8)}".encode())
        self._socket = taken
        try:
            is_sole = not any(map(_is_held_by_root, self._longer()))
        except OSError:
            self.release()
            raise
        if not is_sole:
            self.release()
        return is_sole

    def is_held(self) -> bool:
        """Whether a daemon has the name now. Raises OSError when no descriptor is available."""
        return _is_held_by_root(self._name) or any(map(_is_held_by_root, self._longer()))

    def forget(self) -> None:
        """Let go of those who asked, so that others can go on asking; without a free descriptor, at a later call."""
        with suppress(OSError):
            while self._socket is not None:
                self._socket.accept()[0].close()

    def release(self) -> None:
        """Give the name back."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _longer(self) -> set[bytes]:
        """Give the longer names that others have bound."""
        begins = b"@" + self._name[1:] + b"."
        words = (line.split(maxsplit=7)[-1:] for line in _listed().splitlines())
        names = {b"\0" + word[1:] for found in words for word in found if word.startswith(begins)}
        return names - ({self._socket.getsockname()} if self._socket is not None else set())


def _listed() -> bytes:
    try:
        return _NAMES.read_bytes()
    except OSError as error:
        if shortage(error) is not None:
            raise
        return b""


def _listening(name: bytes) -> socket.socket | None:
    claiming = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        claiming.bind(name)
        claiming.listen(_BACKLOG)
    except OSError:
        claiming.close()
        return None
    return claiming


def _is_held_by_root(name: bytes) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as asking:
        try:
            asking.connect(name)
            return Peer.of(asking).is_root
        except BlockingIOError:  # any user can fill the queue of those who connect, and any user can hold the name
            return _belongs_to_root(name)
        except OSError:  # its holder does not listen, so it is no daemon
            return False


# The kernel's listing of sockets, sock_diag(7), which gives the owner of each without a connection.
_SOCK_DIAG, _BY_FAMILY = 4, 20  # NETLINK_SOCK_DIAG of linux/netlink.h, SOCK_DIAG_BY_FAMILY of linux/sock_diag.h
# linux/unix_diag.h: a request for those that listen, with their names and owners; attributes follow 16 bytes.
_WANTED: Final = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 1 << 10, 0, 0x01 | 0x40, 0, 0)
_DIAG_BYTES, _DIAG_NAME, _DIAG_UID = 16, 0, 7


def _belongs_to_root(name: bytes) -> bool:
    """Whether a listening socket of root's has the name; False where the kernel gives no owners (before 5.3)."""
    from fwdaemon.kernel.netlink import NetlinkSocket, attributes  # noqa: PLC0415 - a full queue is rare

    try:
        with NetlinkSocket(_SOCK_DIAG) as kernel:
            listed = kernel.listing(_BY_FAMILY, _WANTED, holding=name).messages
    except OSError as error:
        if shortage(error) is not None:
            raise
        return False
    found = (attributes(message.body[_DIAG_BYTES:]) for message in listed)
    return any(each.get(_DIAG_NAME) == name and each.get(_DIAG_UID) == bytes(4) for each in found)


SOCKET: Final = Path("/run/kvm-portfwd/control.sock")

RESTART: Final = "systemctl restart kvm-portfwd"
_RUNS: Final = "kvm-portfwd is already running on this host"
_LISTENER_BACKLOG: Final = 16
_FOR_OWNER: Final = 0o600

# linux/posix_acl_xattr.h and linux/posix_acl.h: a version, then entries of tag, permissions and number, in this order.
_ACCESS_LIST: Final = "system.posix_acl_access"
_VERSION: Final = struct.pack("<I", 2)
_ENTRY: Final = struct.Struct("<HHI")
_OWNER, _OWNING_GROUP, _GROUP, _MASK, _OTHERS = 0x01, 0x04, 0x08, 0x10, 0x20
_NOTHING, _READ_AND_WRITE = 0, 6
_NOBODY: Final = 0xFFFFFFFF


_File: TypeAlias = tuple[int, int]
"""Which file it is: its device, and its number there."""


class AlreadyRunningError(PortfwdError):
    """Another daemon runs on this host."""


class Listener:
    """The socket file at `path`, and its lock. Its methods block for no longer than a file system takes."""

    def __init__(self, path: Path = SOCKET) -> None:
        self._path = path
        self._sole = Sole(str(path))
        self._lock = -1
        self._made: _File | None = None

    def claim(self) -> None:
        """Be the only daemon of this network namespace, whatever becomes of files. Raises AlreadyRunningError."""
        if not self._sole.claim():
            raise AlreadyRunningError(f"another {_RUNS}; stop it first, or ask it with kvm-portfwd status")

    def lock(self) -> None:
        """Be the only daemon that uses these files.

        Raises:
            AlreadyRunningError: there is one already.
            OSError: the lock file cannot be made.

        """
        from fwdaemon.hostnet.owned_state import have_directory  # noqa: PLC0415 - no command needs it

        self._unlock()
        have_directory(self._path.parent)
        lock = self._lock_path
        self._lock = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _FOR_OWNER)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._unlock()
            raise AlreadyRunningError(
                f"another {_RUNS}, and holds {lock}; stop it first, or ask it with kvm-portfwd status"
            ) from None

    def is_whole(self) -> bool:
        """Whether the socket and the lock are still where they were made."""
        self._sole.forget()
        lock = _file(os.fstat(self._lock)) if self._lock >= 0 else None
        return None not in {self._made, lock} and (_at(self._path), _at(self._lock_path)) == (self._made, lock)

    def listen(self) -> socket.socket:
        """Make the socket, for root alone until `admit`. Raises OSError when that cannot be done."""
        self._path.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # The file takes its mode from the socket, so there is no moment in which others could connect.
            os.fchmod(listening.fileno(), _FOR_OWNER)
            listening.bind(str(self._path))
            self._made = _at(self._path)
            listening.listen(_LISTENER_BACKLOG)
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
        """Take the socket away, unless it is another one by now, and give the lock and the name back."""
        if self._made is not None and _at(self._path) == self._made:
            self._path.unlink(missing_ok=True)
        self._made = None
        self._unlock()
        self._sole.release()

    @property
    def _lock_path(self) -> Path:
        return self._path.with_suffix(".lock")

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _at(path: Path) -> _File | None:
    """Say which file is there, and `None` for none."""
    try:
        return _file(path.lstat())
    except OSError:
        return None


def _file(found: os.stat_result) -> _File:
    return found.st_dev, found.st_ino


def _access_list(group: int) -> bytes:
    """Give the list that lets the owner and the members of a group connect, and no one else."""
    entries = (
        (_OWNER, _READ_AND_WRITE, _NOBODY),
        (_OWNING_GROUP, _NOTHING, _NOBODY),
        (_GROUP, _READ_AND_WRITE, group),
        (_MASK, _READ_AND_WRITE, _NOBODY),
        (_OTHERS, _NOTHING, _NOBODY),
    )
    return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries)
