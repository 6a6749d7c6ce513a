"""Varlink's messages, to and from bytes, and the other end of the control socket, for the commands.

The form is in https://varlink.org/Method-Call and /Service.
"""

import json
import re
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias

from fwdaemon import __version__
from fwdaemon.control.listener import RESTART, SOCKET, Peer, Sole
from fwdaemon.errors import PortfwdError

END: Final = b"\0"
SERVICE: Final = "org.varlink.service"
MANAGER: Final = "kvm.portfwd.Manager"

INTERFACE_NOT_FOUND: Final = f"{SERVICE}.InterfaceNotFound"
METHOD_NOT_FOUND: Final = f"{SERVICE}.MethodNotFound"
INVALID_PARAMETER: Final = f"{SERVICE}.InvalidParameter"
PERMISSION_DENIED: Final = f"{SERVICE}.PermissionDenied"
EXPECTED_MORE: Final = f"{SERVICE}.ExpectedMore"
CONFIGURATION_REFUSED: Final = f"{MANAGER}.ConfigurationRefused"
REFUSED: Final = f"{MANAGER}.Refused"
METRICS_UNAVAILABLE: Final = f"{MANAGER}.MetricsUnavailable"

_NOTHING: Final[Mapping[str, Any]] = {}


class MalformedError(PortfwdError):
    """What came is no message of Varlink's."""


class CallError(PortfwdError):
    """A call that is answered with an error; `name` is its full name."""

    def __init__(self, name: str, parameters: Mapping[str, Any] = _NOTHING) -> None:
        self.name = name
        self.parameters = parameters
        super().__init__(f"{name} {json.dumps(parameters) if parameters else ''}".rstrip())


@dataclass(frozen=True, slots=True)
class Call:
    """A method call: `more` takes several replies, `oneway` none."""

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    more: bool = False
    oneway: bool = False

    def encode(self) -> bytes:
        """Write it, with its end."""
        flags = {name: True for name in ("more", "oneway") if getattr(self, name)}
        return _encoded({"method": self.method, "parameters": self.parameters} | flags)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call is answered with; `continues` says that another one follows."""

    parameters: Mapping[str, Any]
    continues: bool = False


def read_call(message: bytes) -> Call:
    """Read a call, without its end.

    Raises:
        MalformedError: it is none.

    """
    content = _decoded(message)
    if not isinstance(content, dict) or not isinstance(content.get("method"), str):
        raise MalformedError("no method is called")
    parameters = _given(content, "parameters", {})
    flags = [_given(content, name, otherwise=False) for name in ("more", "oneway", "upgrade")]
    if not isinstance(parameters, dict) or not all(isinstance(flag, bool) for flag in flags):
        raise MalformedError("a call has parameters or a flag of the wrong type")
    more, oneway, upgrade = flags
    if upgrade:
        raise MalformedError("another protocol is asked for")
    return Call(content["method"], parameters, more, oneway)


def read_reply(message: bytes) -> Reply:
    """Read a reply, without its end.

    Raises:
        MalformedError: it is none.
        CallError: it is an error.

    """
    content = _decoded(message)
    if not isinstance(content, dict) or not isinstance(parameters := _given(content, "parameters", {}), dict):
        raise MalformedError("the answer is no reply of Varlink's")
    if isinstance(name := content.get("error"), str):
        raise CallError(name, parameters)
    return Reply(parameters, content.get("continues") is True)


def reply(parameters: bytes, *, continues: bool = False) -> bytes:
    """Write a reply, with its end; its parameters are a JSON object already."""
    return b'{"parameters": ' + parameters + (b', "continues": true}' if continues else b"}") + END


def error_reply(error: CallError) -> bytes:
    """Write a reply that is an error."""
    return _encoded({"error": error.name, "parameters": error.parameters})


def _encoded(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode("ascii") + END


def _decoded(message: bytes) -> Any:
    """Read JSON, and nothing that only Python takes for it."""
    try:
        return json.loads(message.decode(), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise MalformedError("a message is no JSON") from error


def _given(content: Mapping[str, Any], name: str, otherwise: object) -> Any:
    """Give a member; null says the same as leaving it out."""
    value = content.get(name)
    return otherwise if value is None else value


def _finite(number: str) -> float:
    """Read a number, but none too large for a float: as infinity it could not be written again (RFC 8259)."""
    value = float(number)
    return value if isfinite(value) else _refuse(number)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


# What can be called on the socket: the methods, and the service's description of itself.
Parameters: TypeAlias = Mapping[str, Any]
# Each gives the parameters of the reply as a JSON object, or hands one on whenever there is one.
Answer: TypeAlias = Callable[[Parameters], Awaitable[bytes]]
AnswerTo: TypeAlias = Callable[[Parameters, Peer], Awaitable[bytes]]
Send: TypeAlias = Callable[[bytes], Awaitable[None]]
Stream: TypeAlias = Callable[[Send], Awaitable[None]]

_NAME: Final = "kvm-portfwd"


@dataclass(frozen=True, slots=True)
class Method:
    """One method: it has an `answer`, which may be `to` the peer that asks, or a `stream` of them.

    `takes` names its parameters that are strings, `lists` those that are arrays of strings. Those of `numbers` are
    whole numbers in the range given, those of `texts` strings that the pattern fits; both may be null or left out.
    """

    answer: Answer | None = None
    stream: Stream | None = None
    takes: tuple[str, ...] = ()
    for_root: bool = False
    to: AnswerTo | None = None
    lists: tuple[str, ...] = ()
    numbers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    texts: Mapping[str, re.Pattern[str]] = field(default_factory=dict)

    def check(self, parameters: Parameters) -> None:
        """See that the parameters are those it takes. Raises CallError."""
        required = {*self.takes, *self.lists}
        known = required | self.numbers.keys() | self.texts.keys()
        wrong = (required - parameters.keys()) | (parameters.keys() - known)
        wrong |= {name for name, value in parameters.items() if name not in wrong and not self._fits(name, value)}
        for name in sorted(wrong):
            raise CallError(INVALID_PARAMETER, {"parameter": name})

    def _fits(self, name: str, value: object) -> bool:
        if name in self.takes:
            return isinstance(value, str)
        if name in self.lists:
            return isinstance(value, list) and all(isinstance(item, str) for item in value)
        if value is None:
            return True
        if name in self.texts:
            return isinstance(value, str) and self.texts[name].fullmatch(value) is not None
        least, most = self.numbers[name]
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def description_of(interface: str) -> str:
    """Give an interface's description in Varlink's own language."""
    return (files("fwdaemon.control") / f"{interface}.varlink").read_text(encoding="utf-8")


class Service:
    """All methods of the `interfaces`, by interface and name, and those with which a service describes itself."""

    def __init__(self, interfaces: Mapping[str, Mapping[str, Method]]) -> None:
        own = {
            "GetInfo": Method(self._info),
            "GetInterfaceDescription": Method(self._description, takes=("interface",)),
        }
        self._interfaces = {SERVICE: own, **interfaces}

    def method(self, full_name: str) -> Method:
        """Find a method. Raises CallError when there is none."""
        interface, _, name = full_name.rpartition(".")
        if interface not in self._interfaces:
            raise CallError(INTERFACE_NOT_FOUND, {"interface": interface})
        try:
            return self._interfaces[interface][name]
        except KeyError:
            raise CallError(METHOD_NOT_FOUND, {"method": full_name}) from None

    async def _info(self, _parameters: Parameters) -> bytes:
        return encoded(vendor=_NAME, product=_NAME, version=__version__, url="", interfaces=sorted(self._interfaces))

    async def _description(self, parameters: Parameters) -> bytes:
        interface = parameters["interface"]
        if interface not in self._interfaces:
            raise CallError(INTERFACE_NOT_FOUND, {"interface": interface})
        return encoded(description=description_of(interface))


def encoded(**parameters: Any) -> bytes:
    """Write the parameters of a reply."""
    return json.dumps(parameters).encode("ascii")


# The other end of the control socket. It blocks.
_RECEIVED: Final = 1 << 20
_CONNECT_S: Final = 5.0


class NotRunningError(PortfwdError):
    """No daemon listens on the control socket."""

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
