"""What can be called on the socket: the methods, and the service's description of itself."""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final, TypeAlias

from fwdaemon import __version__
from fwdaemon.control.protocol import (
    INTERFACE_NOT_FOUND,
    INVALID_PARAMETER,
    METHOD_NOT_FOUND,
    SERVICE,
    CallError,
)

Parameters: TypeAlias = Mapping[str, Any]
# Each gives the parameters of the reply as a JSON object, or hands one on whenever there is one.
Answer: TypeAlias = Callable[[Parameters], Awaitable[bytes]]
Send: TypeAlias = Callable[[bytes], Awaitable[None]]
Stream: TypeAlias = Callable[[Send], Awaitable[None]]

_NAME: Final = "kvm-portfwd"


@dataclass(frozen=True, slots=True)
class Method:
    """One method: it has an `answer`, or a `stream` of them. `takes` names its parameters, all of them strings."""

    answer: Answer | None = None
    stream: Stream | None = None
    takes: tuple[str, ...] = ()
    for_root: bool = False

    def check(self, parameters: Parameters) -> None:
        """See that the parameters are those it takes. Raises CallError."""
        for name in parameters.keys() ^ set(self.takes):
            raise CallError(INVALID_PARAMETER, {"parameter": name})
        for name, value in parameters.items():
            if not isinstance(value, str):
                raise CallError(INVALID_PARAMETER, {"parameter": name})


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
