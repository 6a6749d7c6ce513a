"""Addresses and networks as the configuration writes them.

An address that no packet of a forward can have is refused here, with the reason, rather than waiting for ever.
"""

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from fwdaemon.config.text import GrammarError, quote
from fwdaemon.model import Address, Subnet

_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_BROADCAST: Final = IPv4Address("255.255.255.255")
_UNUSABLE: Final[tuple[tuple[str, Callable[[Address], bool]], ...]] = (
    ("a multicast address", lambda address: address.is_multicast),
    ("the broadcast address", lambda address: address == _BROADCAST),
    ("a link-local address", lambda address: address.is_link_local),
)


def parse_listen(text: str) -> Address:
    """Read an address of the host on which a forward may listen; raise `GrammarError` if it is none."""
    if text == "localhost":
        raise _loopback_listen(text)
    remedy = 'write an address of this host such as "198.51.100.7"'
    address = _parse_address(text, remedy)
    if address.is_unspecified:
        raise GrammarError(f"{quote(text)} stands for every address; leave it out to listen everywhere")
    if address.is_loopback:
        raise _loopback_listen(text)
    _refuse_unusable(text, address, remedy)
    return address


def parse_guest(text: str) -> Address:
    """Read the address of a guest; raise `GrammarError` if no guest can have it."""
    remedy = 'write the guest\'s own address such as "192.168.122.50", or leave it out to ask libvirt'
    address = _parse_address(text, remedy)
    if address.is_unspecified:
        raise GrammarError(f"{quote(text)} is no guest's address; {remedy}")
    if address.is_loopback:
        raise GrammarError(f"{quote(text)} is a loopback address, which leads to the host itself; {remedy}")
    _refuse_unusable(text, address, remedy)
    return address


def parse_source(text: str) -> Subnet:
    """Read a network, or one address, from which connections may come; raise `GrammarError` if it is neither."""
    base, slash, prefix = text.partition("/")
    address = _parse_address(base, 'write a network such as "203.0.113.0/24" or "2001:db8:9::/48"')
    length = _parse_prefix(text, address, prefix) if slash else address.max_prefixlen
    if address.is_unspecified and length == address.max_prefixlen:
        raise GrammarError(f'{quote(text)} is no one\'s address; write "{address}/0" for everyone')
    network = ip_network(f"{address}/{length}", strict=False)
    if network.network_address != address:
        whole, single = f'"{network}" for the network', f'"{address}/{address.max_prefixlen}" for the one address'
        raise GrammarError(f"{quote(text)} has bits set after the prefix; write {whole} or {single}")
    if network.is_multicast:
        raise GrammarError(f"{quote(text)} is multicast, from which no connection comes; write the clients' network")
    return network


def _parse_prefix(text: str, address: Address, prefix: str) -> int:
    longest = address.max_prefixlen
    if not re.fullmatch(r"0|[1-9][0-9]{0,2}", prefix) or int(prefix) > longest:
        raise GrammarError(f'{quote(text)} has no valid prefix length; write a number from 0 to {longest} after "/"')
    return int(prefix)


def _parse_address(text: str, remedy: str) -> Address:
    """Read any address but one that is tied to an interface or is IPv4 in the clothes of IPv6."""
    if "%" in text:
        raise GrammarError(f'{quote(text)} names an interface after "%", which no forward can have; {remedy}')
    if "/" in text:
        raise GrammarError(f"{quote(text)} is a network; {remedy}")
    try:
        address = ip_address(text)
    except ValueError:
        raise GrammarError(f"{quote(text)} is not an IP address; {remedy}") from None
    if isinstance(address, IPv6Address) and address in _MAPPED:
        raise GrammarError(f'{quote(text)} is IPv4 mapped into IPv6; write "{address.ipv4_mapped}"')
    return address


def _refuse_unusable(text: str, address: Address, remedy: str) -> None:
    for what, applies in _UNUSABLE:
        if applies(address):
            raise GrammarError(f"{quote(text)} is {what}, which no forward can have; {remedy}")


def _loopback_listen(text: str) -> GrammarError:
    return GrammarError(
        f"{quote(text)}: localhost is not supported as a listening address;"
        ' write an address of this host such as "198.51.100.7", or leave it out to listen everywhere'
    )
