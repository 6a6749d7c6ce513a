"""Addresses and networks as the configuration writes them.

An address that can lead nobody to a guest is refused here, with the reason, rather than waiting for ever.
"""

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from fwdaemon.config.text import GrammarError, quote
from fwdaemon.model import Address, Family, Subnet

_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_BROADCAST: Final = IPv4Address("255.255.255.255")
_UNUSABLE: Final[tuple[tuple[str, Callable[[Address], bool]], ...]] = (
    ("a multicast address, which belongs to no one host", lambda address: address.is_multicast),
    ("the broadcast address, which belongs to no one host", lambda address: address == _BROADCAST),
    ("a link-local address, which is known on one link only", lambda address: address.is_link_local),
)
# RFC 6890, with the IPv6 ranges of RFC 4291: what no router may pass on, or what no host may have.
_UNROUTABLE: Final[tuple[tuple[str, Subnet], ...]] = (
    ('the addresses of "this network"', IPv4Network("0.0.0.0/8")),
    ("the loopback addresses", IPv4Network("127.0.0.0/8")),
    ("the link-local addresses", IPv4Network("169.254.0.0/16")),
    ("the multicast addresses", IPv4Network("224.0.0.0/4")),
    ("the broadcast address", IPv4Network(_BROADCAST)),
    ("the unspecified address", IPv6Network("::/128")),
    ("the loopback address", IPv6Network("::1/128")),
    ("IPv4 mapped into IPv6", _MAPPED),
    ("the link-local addresses", IPv6Network("fe80::/10")),
    ("the multicast addresses", IPv6Network("ff00::/8")),
)
# The widest that registries have given to one network.
_WIDEST_ROUTED: Final = {Family.IPV4: 8, Family.IPV6: 16}


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
    return _parse_host(text, 'write the guest\'s own address such as "192.168.122.50", or leave it out to ask libvirt')


def parse_served(text: str) -> Address:
    """Read an address of the host on which this program may listen, loopback or every one; else `GrammarError`."""
    remedy = 'write an address of this host such as "127.0.0.1", or "0.0.0.0" for every one of IPv4'
    address = _parse_address(text, remedy)
    _refuse_unusable(text, address, remedy)
    return address


def parse_public(text: str) -> Address:
    """Read the address that is to be a guest's to the outside; raise `GrammarError` if it cannot be."""
    return _parse_host(text, 'write the one address that is to lead to the guest, such as "198.51.100.8"')


def parse_source(text: str) -> Subnet:
    """Read a network, or one address, from which connections may come; raise `GrammarError` if it is neither."""
    network = _parse_network(text, 'write a network such as "203.0.113.0/24" or "2001:db8:9::/48"')
    if network.network_address.is_unspecified and network.prefixlen == network.max_prefixlen:
        raise GrammarError(f'{quote(text)} is no one\'s address; write "{network.network_address}/0" for everyone')
    if network.is_multicast:
        raise GrammarError(f"{quote(text)} is multicast, from which no connection comes; write the clients' network")
    return network


def parse_routed(text: str) -> Subnet:
    """Read a subnet, or one address, that a route may lead to a libvirt network; raise `GrammarError` if none may."""
    remedy = 'write what is routed to this host, such as "203.0.113.64/29" or "2001:db8:1::/64"'
    network = _parse_network(text, remedy)
    widest = _WIDEST_ROUTED[Family.of(network)]
    if network.prefixlen < widest:
        reason = f"is wider than /{widest}, as nobody's network is, and would lead others' addresses to the guests"
        raise GrammarError(f"{quote(text)} {reason}; {remedy}")
    for what, special in _UNROUTABLE:
        if network.overlaps(special):
            within = show_relation(network, special)
            raise GrammarError(f"{quote(text)} {within} {special}, {what}, which cannot be routed; {remedy}")
    return network


def show_relation(one: Subnet, other: Subnet) -> str:
    """Say how one subnet relates to another that it overlaps: `is`, `is in` or `contains`."""
    if one.prefixlen == other.prefixlen:
        return "is"
    return "is in" if one.prefixlen > other.prefixlen else "contains"


def _parse_host(text: str, remedy: str) -> Address:
    """Read an address that a single host can have and others can reach."""
    address = _parse_address(text, remedy)
    if address.is_unspecified:
        raise GrammarError(f"{quote(text)} is no host's address; {remedy}")
    if address.is_loopback:
        raise GrammarError(f"{quote(text)} is a loopback address, which leads to the host itself; {remedy}")
    _refuse_unusable(text, address, remedy)
    return address


def _parse_network(text: str, remedy: str) -> Subnet:
    """Read a network, or one address as a network of its own."""
    base, slash, prefix = text.partition("/")
    address = _parse_address(base, remedy)
    length = _parse_prefix(text, address, prefix) if slash else address.max_prefixlen
    network = ip_network(f"{address}/{length}", strict=False)
    if network.network_address != address:
        whole, single = f'"{network}" for the network', f'"{address}/{address.max_prefixlen}" for the one address'
        raise GrammarError(f"{quote(text)} has bits set after the prefix; write {whole} or {single}")
    return network


def _parse_prefix(text: str, address: Address, prefix: str) -> int:
    longest = address.max_prefixlen
    if not re.fullmatch(r"0|[1-9][0-9]{0,2}", prefix) or int(prefix) > longest:
        raise GrammarError(f'{quote(text)} has no valid prefix length; write a number from 0 to {longest} after "/"')
    return int(prefix)


def _parse_address(text: str, remedy: str) -> Address:
    """Read any address but one that is tied to an interface or is IPv4 in the clothes of IPv6."""
    if "%" in text:
        raise GrammarError(f'{quote(text)} names an interface after "%", which no address here can have; {remedy}')
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
            raise GrammarError(f"{quote(text)} is {what}; {remedy}")


def _loopback_listen(text: str) -> GrammarError:
    return GrammarError(
        f"{quote(text)}: localhost is not supported as a listening address;"
        ' write an address of this host such as "198.51.100.7", or leave it out to listen everywhere'
    )
