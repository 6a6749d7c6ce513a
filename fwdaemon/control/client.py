"""The other end of the control socket, for the commands. It blocks, and imports no more than it needs."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from fwdaemon.control.listener import RESTART, SOCKET, Sole
from fwdaemon.control.protocol import END, MANAGER, PERMISSION_DENIED, Call, CallError, Reply, read_reply
from fwdaemon.errors import PortfwdError

_RECEIVED: Final = 1 << 20
_CONNECT_S: Final = 5.0


class NotRunningError(PortfwdError):
    """Nobody listens on the control socket."""

    def __init__(self, text: str = "the daemon is not running; start it with: systemctl start kvm-portfwd") -> None:
        super().__init__(text)


class NoSocketError(NotRunningError):
    """The daemon runs, and the control socket has gone."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"the daemon runs, but {path} was removed; it makes that again within seconds,"
            f" or else this does, and forwards go on meanwhile: {RESTART}"
        )


class RefusedError(PortfwdError):
    """The daemon does not answer this user."""


def call(
    method: str, patience: float, path: Path = SOCKET, parameters: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    """Call a method of the daemon, and give the reply's parameters; each part of it must come within `patience` s.

    Raises:
        NotRunningError: there is no daemon.
        RefusedError: it does not answer this user.
        CallError: the answer is another error.
        PortfwdError: it did not answer.

    """
    return next(_replies(Call(f"{MANAGER}.{method}", parameters or {}), patience, path)).parameters


def watch(path: Path = SOCKET) -> Iterator[None]:
    """Give something now, and whenever a status would say something else. It raises what `call` does."""
    for _ in _replies(Call(f"{MANAGER}.Watch", more=True), None, path):
        yield None


def _replies(question: Call, patience: float | None, path: Path) -> Iterator[Reply]:
    with closing(_connected(path)) as connection:
        connection.settimeout(patience)
        try:
            connection.sendall(question.encode())
            yield from map(read_reply, _messages(connection))
        except TimeoutError as error:
            raise PortfwdError(f"the daemon has not answered for {patience:.0f} s") from error
        except CallError as error:
            if error.name == PERMISSION_DENIED:
                raise RefusedError("the daemon does this for root only") from error
            raise
        except OSError as error:
            raise PortfwdError(f"the connection to the daemon broke: {error.strerror}") from error
    raise PortfwdError("the daemon closed the connection")


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_CONNECT_S)
    try:
        connection.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        connection.close()
        raise (NoSocketError(path) if _runs(path) else NotRunningError()) from error
    except PermissionError as error:
        connection.close()
        raise RefusedError(
            f"{path} is not for this user; be root, or a member of the group that [control] group names"
        ) from error
    except OSError as error:
        connection.close()
        raise PortfwdError(f"cannot connect to {path}: {error.strerror or error}") from error
    return connection


def _runs(path: Path) -> bool:
    try:
        return Sole(str(path)).is_held()
    except OSError:
        return False


def _messages(connection: socket.socket) -> Iterator[bytes]:
    """Give what comes, cut at its ends, until the other side closes."""
    parts: list[bytes] = []
    while received := connection.recv(_RECEIVED):
        *ended, rest = received.split(END)
        for message in ended:
            yield b"".join([*parts, message])
            parts = []
        parts.append(rest)
