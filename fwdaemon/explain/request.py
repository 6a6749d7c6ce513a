"""What the user asks about: `198.51.100.7:443/tcp`, `[2001:db8::1]:80`, `:80`, and from where. Pure."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from fwdaemon.errors import PortfwdError
from fwdaemon.model import Address, PortRange, Protocol, show_endpoint

_FORM = re.compile(
    r"(?:(?:\[(?P<six>[^]]*)\]|(?P<four>[^]:/[]*)):)?(?P<port>[0-9]{1,5})(?:/(?P<protocol>[a-z]+))?", re.ASCII
)
_LAST_PORT = 65535


class UsageError(PortfwdError):
    """The words on the command line cannot be understood."""


@dataclass(frozen=True, slots=True)
class Request:
    """A connection; without `address` to any of the host's, without `source` from somewhere outside."""

    protocol: Protocol
    port: int
    address: Address | None = None
    source: Address | None = None

    def __str__(self) -> str:
        return f"{self.protocol} {show_endpoint(self.address, PortRange(self.port, self.port))}"


def parse_request(text: str, source: str | None = None) -> Request:
    """Read the words of the command line; raise `UsageError`."""
    form = _FORM.fullmatch(text)
    if form is None:
        raise UsageError(f"{text!r} is not ADDRESS:PORT[/tcp|udp|sctp]; an IPv6 address stands in brackets")
    port = int(form["port"])
    if not 1 <= port <= _LAST_PORT:
        raise UsageError(f"{port} is not a port; write one from 1 to {_LAST_PORT}")
    address = _address(form["four"], IPv4Address) or _address(form["six"], IPv6Address)
    client = None if source is None else _source(source)
    if address is not None and client is not None and address.version != client.version:
        raise UsageError(f"{client} and {address} are not of one family, so none can connect to the other")
    return Request(_protocol(form["protocol"]), port, address, client)


def _address(text: str | None, kind: type[IPv4Address | IPv6Address]) -> Address | None:
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"{text!r} is not an IP address; a name would have to be looked up first") from None


def _protocol(text: str | None) -> Protocol:
    try:
        return Protocol(text or Protocol.TCP)
    except ValueError:
        raise UsageError(f"{text!r} is not one of tcp, udp and sctp") from None


def _source(text: str) -> Address:
    """Read an address; of a network, take the first one that a client could have."""
    if "%" in text:
        raise UsageError(f'--from {text!r} names an interface after "%"; --from takes an address that all links know')
    try:
        if "/" not in text:
            return ip_address(text)
        network = ip_network(text, strict=False)
    except ValueError:
        raise UsageError(f"--from {text!r} is neither an address nor a network") from None
    return network[0] if network.num_addresses == 1 else network[1]
