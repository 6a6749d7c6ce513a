"""The short form of ports: `[ADDRESS:]HOST[-HOST][:GUEST[-GUEST]][/tcp|udp|sctp|tcp+udp]`.

It is Docker's, made strict: decimal ASCII digits only, nothing before a port but an address, ranges of equal width
mapped one to one, and IPv6 addresses in brackets, since their colons would be read as ours.
"""

import re
from dataclasses import dataclass

from fwdaemon.config.addresses import parse_listen
from fwdaemon.config.text import GrammarError, quote
from fwdaemon.model import Address, PortRange, Protocol, show_endpoint

LAST_PORT = 65535
_LONGEST_PORT = len(str(LAST_PORT))
_MOST_COLONS = 2
_PROTOCOLS = {
    "tcp": (Protocol.TCP,),
    "udp": (Protocol.UDP,),
    "sctp": (Protocol.SCTP,),
    "tcp+udp": (Protocol.TCP, Protocol.UDP),
}
_SUPPORTED = "write /tcp, /udp, /sctp or /tcp+udp"


@dataclass(frozen=True, slots=True)
class PortSpec:
    """One port string, understood: `host` and `guest` have equal width, `listen` is the address written in it."""

    listen: Address | None
    host: PortRange
    guest: PortRange
    protocols: tuple[Protocol, ...]

    def __str__(self) -> str:
        """Write it so that parsing gives the same again."""
        host = str(self.host) if self.listen is None else show_endpoint(self.listen, self.host)
        return f"{host}:{self.guest}/{'+'.join(self.protocols)}"


def parse_ports(text: str) -> PortSpec:
    """Read one port string; raise `GrammarError` with the remedy if it is not one."""
    _refuse_strange_characters(text)
    ports, slash, protocol = text.partition("/")
    protocols = _parse_protocols(text, protocol) if slash else (Protocol.TCP,)
    address, numbers = _split_address(text, ports)
    listen = None if address is None else parse_listen(address)
    host_text, colon, guest_text = numbers.partition(":")
    host = _parse_range(text, host_text)
    guest = _parse_range(text, guest_text) if colon else host
    _refuse_unequal_widths(text, host, guest)
    return PortSpec(listen, host, guest, protocols)


def _refuse_strange_characters(text: str) -> None:
    if not text:
        raise GrammarError('"" is empty; write a port such as "80", "2222:22" or "53:53/udp"')
    if re.search(r"\s", text):
        raise GrammarError(f"{quote(text)} has white space in it; write it without")
    if not text.isascii() or not text.isprintable():
        raise GrammarError(f"{quote(text)} has characters that no port string has; write plain digits, as in 2222:22")


def _parse_protocols(text: str, protocol: str) -> tuple[Protocol, ...]:
    if protocol in _PROTOCOLS:
        return _PROTOCOLS[protocol]
    if not protocol:
        raise GrammarError(f'{quote(text)} names no protocol after "/"; {_SUPPORTED}')
    words = re.split(r"[,+/&|]", protocol.lower())
    meant = "+".join(sorted(words))
    if meant in _PROTOCOLS:
        hint = "in lower case, " if protocol != protocol.lower() else ""
        raise GrammarError(f"{quote(text)} writes the protocol in another way; write {hint}/{meant}")
    raise GrammarError(f"{quote(text)} names the protocol {quote(protocol)}, which is not supported; {_SUPPORTED}")


def _split_address(text: str, ports: str) -> tuple[str | None, str]:
    """Split off the listening address; what is left is `HOST` or `HOST:GUEST`."""
    if "[" in ports or "]" in ports:
        return _split_bracketed(text, ports)
    if ports.count(":") > _MOST_COLONS:
        raise GrammarError(f'{quote(text)} has too many colons; write IPv6 addresses in brackets, "[2001:db8::1]:80"')
    first, _, rest = ports.partition(":")
    if ports.count(":") == _MOST_COLONS or "." in first or first == "localhost":
        if not first:
            raise GrammarError(f'{quote(text)} has nothing before ":"; leave the address out together with its colon')
        if not rest:
            raise GrammarError(f'{quote(text)} names no port; write it after the address, "198.51.100.7:80"')
        return first, rest
    return None, ports


def _split_bracketed(text: str, ports: str) -> tuple[str, str]:
    match = re.fullmatch(r"\[([^][]*)\](?::([^][]*))?", ports)
    if match is None:
        raise GrammarError(f'{quote(text)} has brackets in the wrong places; write "[2001:db8::1]:80"')
    address, numbers = match.groups()
    if ":" not in address:
        raise GrammarError(f'{quote(text)} has brackets without an IPv6 address in them; write "{address}:80" instead')
    if not numbers:
        raise GrammarError(f'{quote(text)} names no port; write it after the address, "[{address}]:80"')
    return address, numbers


def _parse_range(text: str, ports: str) -> PortRange:
    if not ports:
        raise GrammarError(f'{quote(text)} lacks a port beside ":"; write "80", or "2222:22" for host and guest')
    first_text, dash, last_text = ports.partition("-")
    first = _parse_port(text, first_text)
    last = _parse_port(text, last_text) if dash else first
    if last < first:
        raise GrammarError(f"{quote(text)} has a reversed range; write {last}-{first}")
    return PortRange(first, last)


def _parse_port(text: str, port: str) -> int:
    if not port:
        raise GrammarError(f'{quote(text)} lacks a port beside "-"; write both ends, as in 8000-8099')
    if not (port.isascii() and port.isdigit()):
        raise GrammarError(f"{quote(text)}: {quote(port)} is no port; write a number from 1 to {LAST_PORT}")
    if len(port) > 1 and port.startswith("0"):
        raise GrammarError(f"{quote(text)}: {quote(port)} starts with 0; write {port.lstrip('0')[:6] or '1'}")
    if len(port) > _LONGEST_PORT or not 1 <= int(port) <= LAST_PORT:
        raise GrammarError(f"{quote(text)}: {quote(port)} is out of range; write a number from 1 to {LAST_PORT}")
    return int(port)


def _refuse_unequal_widths(text: str, host: PortRange, guest: PortRange) -> None:
    if host.width == guest.width:
        return
    last = guest.first + host.width - 1
    if guest.width == 1 and last <= LAST_PORT:
        raise GrammarError(
            f"{quote(text)} leads {host.width} ports to the one port {guest}; write the guest's as {guest.first}-{last}"
        )
    raise GrammarError(
        f"{quote(text)} is {host.width} wide on the host ({host}) but {guest.width} wide in the guest ({guest});"
        " write ranges of equal width"
    )
