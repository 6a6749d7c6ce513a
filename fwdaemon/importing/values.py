"""Values as the old tools wrote them, held to what our configuration takes.

Addresses went to iptables unread, so they may have a prefix length or a netmask, or host bits beyond it. Each reader
raises `GrammarError` where our configuration cannot say the same.
"""

from ipaddress import ip_network

from fwdaemon.config.addresses import parse_listen, parse_source
from fwdaemon.config.names import parse_name
from fwdaemon.config.ports import LAST_PORT
from fwdaemon.config.text import GrammarError, quote
from fwdaemon.model import Address, PortRange, Subnet

_LONGEST_PORT = len(str(LAST_PORT))


def printable(text: str) -> str:
    """Give the text for one line of a terminal or a comment, of any length; what cannot be printed is escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def read_name(text: str) -> str:
    """Read the name of a domain or a network."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise GrammarError(f"{quote(text)} is no valid text; write the name that virsh shows") from None
    return parse_name(text)


def read_listen(text: str) -> Address | None:
    """Read what iptables' `-d` took; `None` is every address."""
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return parse_listen(text)
    if network.prefixlen == 0:
        return None
    if network.prefixlen < network.max_prefixlen:
        raise GrammarError(f"{quote(text)} is a network; write a forward with the addresses of it that are in use")
    return parse_listen(str(network.network_address))


def read_sources(text: str) -> tuple[Subnet, ...]:
    """Read what iptables' `-s` took: one or more networks, separated by commas."""
    return tuple(_read_source(part.strip()) for part in text.split(","))


def _read_source(text: str) -> Subnet:
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return parse_source(text)
    return parse_source(str(network))


def read_port(text: str) -> int:
    """Read a port, 1 to 65535, in decimal digits."""
    if text.isascii() and text.isdigit() and len(text) <= _LONGEST_PORT and 1 <= int(text) <= LAST_PORT:
        return int(text)
    raise GrammarError(f"{quote(text)} is no port; write a number from 1 to {LAST_PORT}")


def port_range(first: int, last: int) -> PortRange:
    """Give the ports from `first` to `last`, where that is a range."""
    if 1 <= first <= last <= LAST_PORT:
        return PortRange(first, last)
    raise GrammarError(f"{first} to {last} is no range of ports; write numbers from 1 to {LAST_PORT}")
