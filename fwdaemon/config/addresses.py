"""Addresses and networks as the configuration writes them.

An address that can lead no client to a guest is refused here, with the reason, rather than waiting for ever.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
    summarize_address_range,
)
from typing import Final

from fwdaemon.core.text import GrammarError, quote, refuse_negation
from fwdaemon.core.types import Address, Family, Subnet

_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_BROADCAST: Final = IPv4Address("255.255.255.255")
_UNUSABLE: Final[tuple[tuple[str, Callable[[Address], bool]], ...]] = (
    ("a multicast address, which belongs to no single host", lambda address: address.is_multicast),
    ("the broadcast address, which belongs to no single host", lambda address: address == _BROADCAST),
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
# `[2001:db8::1]`, with a port, or with a prefix length; `198.51.100.7:80`.
_CLOTHES: Final = re.compile(r"(?:\[(?P<v6>[^][]*)\]|(?P<v4>[0-9.]+)(?=:))(?P<rest>(?::[0-9:/a-z-]+|/[0-9]+)?)")
_ANYONE: Final = frozenset({"*", "all", "any", "anyone", "anywhere", "everyone"})
# `203.0.113.*`, `203.0.113.`, `10/8`: the first numbers of an IPv4 address, alone or with their prefix length.
_SHORT: Final = re.compile(r"(?P<head>[0-9]{1,3}(?:\.[0-9]{1,3}){0,2})(?P<rest>(?:\.\*){1,3}|\.|/[0-9]{1,2})")
# `203.0.113.4-203.0.113.7`, `203.0.113.4-7`.
_RANGE: Final = re.compile(r"(?P<first>[0-9A-Fa-f.:]+)\s*(?:-|\u2013|\.\.)\s*(?P<last>[0-9A-Fa-f.:]+)")
_HAS_MASK: Final = "has a mask where a prefix length belongs"
# `10.0.0.0 255.0.0.0`, `10.0.0.0 netmask 255.0.0.0`, and with the bits of the host.
_SPACED_MASK: Final = re.compile(r"(?P<base>[0-9.]+)\s+(?:(?:net)?mask\s+)?(?P<mask>(?:255|0)\.[0-9.]+)", re.IGNORECASE)
_MOST_IN_RANGE: Final = 8
# The widest that registries have given to one network.
_WIDEST_ROUTED: Final = {Family.IPV4: 8, Family.IPV6: 16}


class EveryAddressError(GrammarError):
    """An address stands for every one of its family; what to write instead depends on the rest of the entry."""

    def __init__(self, text: str, family: Family) -> None:
        self.family = family
        sources, closed = ("0.0.0.0/0", "IPv6") if family is Family.IPV4 else ("::/0", "IPv4")
        remedy = f"leave it out, and write sources = [{quote(sources)}] unless the entry has sources"
        super().__init__(f"{quote(text)} stands for every address", f"{remedy}, so that {closed} stays closed")


class LoopbackError(GrammarError):
    """A listening address is one that only the host itself reaches, which takes a setting."""

    def __init__(self, text: str) -> None:
        source = quote("::1" if ":" in text else "127.0.0.1")
        apart = f"leave it out in an entry of its own with sources = [{source}]"
        super().__init__(f"{quote(text)} is for this host alone", f"{apart}, and write localhost = true in [daemon]")


def parse_listen(text: str) -> Address:
    """Read an address of the host on which a forward may listen; raise `GrammarError` if it is none."""
    refuse_negation(text, "write the addresses of this host on which it may listen")
    if text.lower() in _ANYONE:
        raise GrammarError(f"{quote(text)} stands for every address of both families", "leave listen out")
    _refuse_several(text, is_address)
    if text == "[::]":
        raise EveryAddressError(text, Family.IPV6)
    if text == "localhost":
        raise LoopbackError(text)
    remedy = 'write an address of this host such as "198.51.100.7"'
    address = _parse_address(text, remedy)
    if address.is_unspecified:
        raise EveryAddressError(text, Family.of(address))
    if address.is_loopback:
        raise LoopbackError(text)
    _refuse_unusable(text, address, remedy)
    return address


def parse_guest(text: str) -> Address:
    """Read the address of a guest; raise `GrammarError` if no guest can have it."""
    if text.lower() in {"any", "auto", "dhcp"}:
        raise GrammarError(f"{quote(text)} is not an IP address", "leave it out to ask libvirt")
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
    refuse_negation(text, "list the networks that may connect")
    if text.lower() in _ANYONE:
        raise GrammarError(f"{quote(text)} is no network", "leave sources out for clients from anywhere")
    if text == "localhost":
        raise GrammarError('"localhost" is no network', right="127.0.0.1")
    network = _parse_network(text, 'write a network such as "203.0.113.0/24" or "2001:db8:9::/48"')
    if network.network_address.is_unspecified and network.prefixlen == network.max_prefixlen:
        raise GrammarError(
            f"{quote(text)} is no client's address", 'write the clients\' network such as "203.0.113.0/24"'
        )
    if network.is_multicast:
        raise GrammarError(f"{quote(text)} is multicast, from which no connection comes", "write the clients' network")
    return network


def parse_routed(text: str) -> Subnet:
    """Read a subnet, or one address, that a route may lead to a libvirt network; raise `GrammarError` if none may."""
    remedy = 'write what is routed to this host, such as "203.0.113.64/29" or "2001:db8:1::/64"'
    network = _parse_network(text, remedy)
    widest = _WIDEST_ROUTED[Family.of(network)]
    if network.prefixlen < widest:
        reason = (
            f"is wider than /{widest}, wider than any network that is routed to one host, and would lead other people's"
            " addresses to the guests"
        )
        raise GrammarError(f"{quote(text)} {reason}", remedy)
    for what, special in _UNROUTABLE:
        if network.overlaps(special):
            within = show_relation(network, special)
            raise GrammarError(f"{quote(text)} {within} {special}, {what}, which cannot be routed", remedy)
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
        raise GrammarError(f"{quote(text)} is no host's address", remedy)
    if address.is_loopback:
        raise GrammarError(f"{quote(text)} is a loopback address, which leads to the host itself", remedy)
    _refuse_unusable(text, address, remedy)
    return address


def _parse_network(text: str, remedy: str) -> Subnet:
    """Read a network, or one address as a network of its own."""
    try:
        address, length = _parse_parts(text, remedy)
    except GrammarError:
        _refuse_spaced_mask(text)
        _refuse_several(text, _is_network)
        _refuse_other_networks(text)
        raise
    kind = IPv4Network if isinstance(address, IPv4Address) else IPv6Network
    network: Subnet = kind((int(address), length), strict=False)
    if network.network_address != address:
        single = f"{address}/{address.max_prefixlen}"
        raise GrammarError(f"{quote(text)} is one address with a network's prefix", right=single)
    return network


def _parse_parts(text: str, remedy: str) -> tuple[Address, int]:
    _refuse_clothes(text)
    base, slash, prefix = text.partition("/")
    address = _parse_address(base, remedy)
    return address, _parse_prefix(text, address, prefix) if slash else address.max_prefixlen


def _without_prefix(text: str) -> str | None:
    """Give the one address that a text with a prefix length names, if it does."""
    base, _, prefix = text.partition("/")
    with suppress(ValueError):
        if ip_network(text, strict=False).network_address != ip_address(base) or prefix == "32":
            return base
    return None


def _refuse_spaced_mask(text: str) -> None:
    """Refuse `10.0.0.0 255.0.0.0`, which would pass for two addresses. A mask of zeros may be none."""
    match = _SPACED_MASK.fullmatch(text)
    if match and _is_network(meant := f"{match['base']}/{match['mask']}") and ip_network(meant, strict=False).prefixlen:
        raise GrammarError(f"{quote(text)} {_HAS_MASK}", right=_least_meant(meant))


def _least_meant(network: str) -> str:
    """Give a network with its prefix length, or the address alone where it is one of many in there."""
    whole, base = ip_network(network, strict=False), ip_address(network.partition("/")[0])
    return str(whole) if whole.network_address == base else f"{base}/{base.max_prefixlen}"


def _refuse_other_networks(text: str) -> None:
    """Refuse networks in the forms of other programs, where it is clear which they are."""
    bare = re.sub(r"\s+", "", text)
    mask = bare.partition("/")[2]
    if bare != text == text.strip() and "/" in bare and _is_network(bare):
        raise GrammarError(f"{quote(text)} has blanks in it", right=_least_meant(bare))
    if "." in mask and _is_network(bare):
        raise GrammarError(f"{quote(text)} {_HAS_MASK}", right=_least_meant(bare))
    if match := _SHORT.fullmatch(bare):
        numbers = match["head"].split(".")
        right = f"{'.'.join([*numbers, '0', '0', '0'][:4])}{_prefix_of_short(match['rest'], len(numbers))}"
        if _is_network(right) and right == _least_meant(right) and match["rest"].count("*") in {0, 4 - len(numbers)}:
            raise GrammarError(f"{quote(text)} is a network in short", right=right)
    if (match := _RANGE.fullmatch(text)) and (within := _networks_of_range(match["first"], match["last"])):
        raise GrammarError(f"{quote(text)} is a range", " in an array" if len(within) > 1 else "", right=within)


def _prefix_of_short(rest: str, numbers: int) -> str:
    return rest if rest.startswith("/") else f"/{8 * numbers}"


def _networks_of_range(first: str, last: str) -> list[str]:
    """Give the networks that make up a range exactly; none where they are many, or it is no range."""
    end = f"{first.rpartition('.')[0]}.{last}" if last.isdecimal() and "." in first else last
    with suppress(ValueError, TypeError):
        found: list[Subnet] = list(summarize_address_range(ip_address(first), ip_address(end)))
        single = [str(net.network_address) if net.prefixlen == net.max_prefixlen else str(net) for net in found]
        return single if len(single) <= _MOST_IN_RANGE else []
    return []


def _parse_prefix(text: str, address: Address, prefix: str) -> int:
    longest = address.max_prefixlen
    if not re.fullmatch(r"0|[1-9][0-9]{0,2}", prefix) or int(prefix) > longest:
        raise GrammarError(f"{quote(text)} has no valid prefix length", f'write a number from 0 to {longest} after "/"')
    return int(prefix)


def _parse_address(text: str, remedy: str) -> Address:
    """Read any address but one that is tied to an interface or is IPv4 in the clothes of IPv6."""
    _refuse_clothes(text)
    if "%" in text:
        raise GrammarError(f'{quote(text)} names an interface after "%", which no address here can have', remedy)
    if "/" in text and _is_network(text):
        single = _without_prefix(text)
        raise GrammarError(f"{quote(text)} is a network", "" if single else remedy, right=single)
    try:
        address = ip_address(text)
    except ValueError:
        raise GrammarError(f"{quote(text)} is not an IP address", remedy) from None
    if isinstance(address, IPv6Address) and address in _MAPPED:
        raise GrammarError(f"{quote(text)} is IPv4 mapped into IPv6", right=str(address.ipv4_mapped))
    return address


def _refuse_clothes(text: str) -> None:
    """Refuse an address in brackets, in blanks, or with a port, which one of the forms that people know has."""
    if text.strip() != text:
        raise GrammarError(f"{quote(text)} has blanks at its ends", right=text.strip())
    match = _CLOTHES.fullmatch(text)
    bare, rest = (match["v6"] or match["v4"], match["rest"]) if match else ("", "")
    if not bare or not is_address(bare):
        return
    if rest.startswith(":"):
        raise GrammarError(f"{quote(text)} names a port, which no address has", ", and the port in ports", right=bare)
    if rest or match is None or match["v6"]:
        raise GrammarError(f"{quote(text)} has brackets, which stand beside a port only", right=bare + rest)


def _refuse_several(text: str, is_one: Callable[[str], bool]) -> None:
    """Refuse a text that is a list in itself."""
    parts = [part for part in re.split(r"[\s,;]+", text) if part]
    if len(parts) > 1 and all(map(is_one, parts)):
        right = [_least_meant(part) if "/" in part else part for part in parts]
        raise GrammarError(f"{quote(text)} is several in one string", " in an array", right=right)


def is_address(text: str) -> bool:
    """Whether a text is one address, of any kind."""
    return "/" not in text and _is_network(text)


def _is_network(text: str) -> bool:
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _refuse_unusable(text: str, address: Address, remedy: str) -> None:
    for what, applies in _UNUSABLE:
        if applies(address):
            raise GrammarError(f"{quote(text)} is {what}", remedy)
