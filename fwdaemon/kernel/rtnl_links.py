"""Routes, addresses, neighbours and proxy entries, by rtnetlink."""

import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, Final, NamedTuple

from fwdaemon.core.types import Address, Family, Subnet
from fwdaemon.kernel.netlink import attributes
from fwdaemon.kernel.rtnetlink import (
    CREATE,
    EXCLUSIVE,
    FAMILIES,
    PROTOCOL,
    REPLACE,
    Entry,
    Kind,
    Rtnetlink,
    first_listed,
)

# Routes of our own protocol number in the main table, and those of others for the same (rtnetlink(7)).

_ROUTE_GET = 26  # RTM_GETROUTE
# rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type, flags.
ROUTE = struct.Struct("=BBBBBBBBI")
_MAIN: Final = 254  # RT_TABLE_MAIN
_UNICAST, _LOCAL = 1, 2  # RTN_UNICAST, RTN_LOCAL
_SCOPE_LINK, _ANY_SCOPE = 253, 255  # RT_SCOPE_LINK, RT_SCOPE_NOWHERE
_FIB_MATCH = 0x2000  # RTM_F_FIB_MATCH: the entry of the table, and not what follows from it for one address
_PARTS = 4
# What a route of ours has and no more: no gateway, source address, metrics, encapsulation, second way.
_PLAIN: Final = frozenset({"RTA_DST", "RTA_OIF", "RTA_PRIORITY", "RTA_CACHEINFO", "RTA_TABLE", "RTA_PREF"})
_PRIORITIES: Final = (None, 1024)  # IP6_RT_PRIO_USER: the kernel's own choice for IPv6


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """A route the kernel holds; `index` is the interface's, `None` where there is none or more than one.

    `is_local` says that it leads to the host itself, `is_plain` that it has nothing which we do not give to ours.
    """

    subnet: Subnet
    index: int | None
    protocol: int
    is_local: bool
    tos: int = 0
    priority: int | None = None
    is_plain: bool = True

    def leads_to(self, index: int) -> bool:
        """Whether it leads to what is plugged into the interface with this number."""
        return self.index == index and not self.is_local


def our_routes(kernel: Rtnetlink, family: Family) -> list[KernelRoute]:
    """Give the routes with our protocol number; the kernel picks them, as there may be a million others.

    Most hosts have none: by hand, that is known without loading pyroute2.
    """
    if not first_listed(_ROUTE_GET, ROUTE.pack(FAMILIES[family], 0, 0, 0, _MAIN, PROTOCOL, 0, 0, 0), 1):
        return []
    listed = kernel.entries(Kind.ROUTE, {"family": FAMILIES[family], "table": _MAIN, "proto": PROTOCOL})
    return [route for route in map(_route, listed) if Family.of(route.subnet) is family]


def route_of(kernel: Rtnetlink, subnet: Subnet) -> KernelRoute | None:
    """Give the route for exactly this subnet that counts, ours or not.

    The kernel says by which entry an address is routed. Some addresses of a subnet may have entries of their own, as
    those of the host have, and the first of IPv6 (RFC 4291, section 2.6.1); so several are tried.
    """
    last = subnet.num_addresses - 1
    for part in range(_PARTS + 1):
        route = _matching_route(kernel, subnet[last * part // _PARTS])
        if route is not None and route.subnet == subnet:
            return route
    return None


def on_link_routes(kernel: Rtnetlink, index: int) -> list[Subnet]:
    """Give the subnets that the main table routes straight to what is plugged into an interface, without a gateway."""
    asked = [{"family": FAMILIES[family], "table": _MAIN} for family in Family]
    listed = [entry for fields in asked for entry in kernel.entries(Kind.ROUTE, fields, {"RTA_OIF": index})]
    found = [_route(entry).subnet for entry in listed if _is_on_link(entry, index)]
    return [subnet for subnet in found if subnet.prefixlen and not subnet.is_link_local and not subnet.is_multicast]


def add_route(kernel: Rtnetlink, subnet: Subnet, index: int) -> None:
    """Route a subnet to what is plugged into an interface; never replaces a route of others.

    Raises:
        RefusedError: among others with EEXIST, if there is a route for it.

    """
    fields = {**_route_fields(subnet), "scope": _SCOPE_LINK, "type": _UNICAST}
    kernel.add(Kind.ROUTE, EXCLUSIVE, fields, {"RTA_DST": str(subnet.network_address), "RTA_OIF": index})


def delete_route(kernel: Rtnetlink, route: KernelRoute) -> None:
    """Remove a route of ours."""
    given = {"RTA_DST": str(route.subnet.network_address), "RTA_OIF": route.index, "RTA_PRIORITY": route.priority}
    fields = {**_route_fields(route.subnet), "tos": route.tos, "scope": _ANY_SCOPE}
    kernel.remove(Kind.ROUTE, fields, {name: value for name, value in given.items() if value is not None})


def _matching_route(kernel: Rtnetlink, address: Address) -> KernelRoute | None:
    """Give the entry by which an address is routed."""
    fields = {"family": FAMILIES[Family.of(address)], "dst_len": address.max_prefixlen, "flags": _FIB_MATCH}
    found = kernel.entry(Kind.ROUTE, fields, {"RTA_DST": str(address)})
    return None if found is None else _route(found)


def _is_on_link(entry: Entry, index: int) -> bool:
    """Whether a route has no gateway, and leads to this interface alone."""
    found = entry.attributes
    is_direct = entry.fields["type"] == _UNICAST and not {"RTA_GATEWAY", "RTA_VIA"} & found.keys()
    return is_direct and found.get("RTA_OIF") == index


def _route_fields(subnet: Subnet) -> dict[str, int]:
    family = FAMILIES[Family.of(subnet)]
    return {"family": family, "dst_len": subnet.prefixlen, "table": _MAIN, "proto": PROTOCOL}


def _route(entry: Entry) -> KernelRoute:
    fields, found = entry
    is_ipv4 = fields["family"] == socket.AF_INET
    address = found.get("RTA_DST") or ("0.0.0.0" if is_ipv4 else "::")  # noqa: S104 - a default route
    usual = (fields["type"], fields["scope"], fields["tos"]) == (_UNICAST, _SCOPE_LINK if is_ipv4 else 0, 0)
    return KernelRoute(
        subnet=ip_network((address, fields["dst_len"])),
        index=found.get("RTA_OIF"),
        protocol=fields["proto"],
        is_local=fields["type"] == _LOCAL,
        tos=fields["tos"],
        priority=found.get("RTA_PRIORITY"),
        is_plain=usual and _is_plain_route(found),
    )


def _is_plain_route(found: Mapping[str, Any]) -> bool:
    """Whether a route has no attributes but those that the kernel gives to ours."""
    expires = found["RTA_CACHEINFO"]["rta_expires"] if "RTA_CACHEINFO" in found else 0
    is_preferred = bool(found.get("RTA_PREF"))
    return found.keys() <= _PLAIN and found.get("RTA_PRIORITY") in _PRIORITIES and not (expires or is_preferred)


# Addresses of the host's interfaces, listed by hand, as each inventory lists them (linux/if_addr.h).
_ADDRESS_GET = 22  # RTM_GETADDR
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_LIFETIMES = struct.Struct("=II8x")  # ifa_cacheinfo: preferred, valid, and when it was made and changed
_FAR, _LOCAL_END, _CACHE_INFO = 1, 2, 6  # IFA_ADDRESS, IFA_LOCAL, IFA_CACHEINFO
_NO_DUPLICATE_DETECTION = 0x02  # IFA_F_NODAD
_FOREVER: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class KernelAddress:
    """An address on the interface with this number."""

    address: Address
    index: int


@dataclass(frozen=True, slots=True)
class HeldAddress:
    """An address as the kernel has it; `is_plain` says that it has nothing which we do not give to ours.

    It is there for so many `seconds` more, or for ever.
    """

    entry: KernelAddress
    is_plain: bool
    seconds: int | None = None


def addresses(family: Family, index: int = 0) -> list[KernelAddress]:
    """Give the addresses of one interface, or of all.

    Raises:
        KernelError: the kernel does not answer; those below raise it too.

    """
    return [item.entry for item in _listed(family, index)]


def held_addresses(family: Family) -> list[HeldAddress]:
    """Give all addresses of a family, each with whether it is as `add_address` makes it."""
    return [HeldAddress(item.entry, _is_plain(item, family), _seconds(item)) for item in _listed(family)]


def subnets() -> list[tuple[KernelAddress, Subnet]]:
    """Give all addresses of the host, each with the subnet it is configured with."""
    return [(item.entry, item.subnet) for family in Family for item in _listed(family)]


def add_address(kernel: Rtnetlink, entry: KernelAddress, seconds: int | None = None) -> None:
    """Give an interface one more address, without its subnet; after so many `seconds` the kernel takes it away.

    One of IPv6 can be used at once, and is deprecated, so that the host picks it for no connection of its own
    (RFC 6724, section 5, rule 3). One of IPv4 is not picked either, since it is not the first.
    """
    _put(kernel, EXCLUSIVE, entry, seconds)


def renew_address(kernel: Rtnetlink, entry: KernelAddress, seconds: int | None = None) -> None:
    """Give an address that is there the lifetimes that `add_address` gives it."""
    _put(kernel, REPLACE, entry, seconds)


def delete_address(kernel: Rtnetlink, entry: KernelAddress) -> None:
    """Take an address away from an interface."""
    kernel.remove(Kind.ADDRESS, *_written(entry))


class _Listed(NamedTuple):
    entry: KernelAddress
    subnet: Subnet
    lifetimes: tuple[int, int]


def _listed(family: Family, index: int = 0) -> Iterator[_Listed]:
    for body in first_listed(_ADDRESS_GET, _ADDRESS.pack(FAMILIES[family], 0, 0, 0, index)):
        _family, length, _flags, _scope, holder = _ADDRESS.unpack_from(body)
        found = attributes(body[_ADDRESS.size :])
        # On a point-to-point link IFA_ADDRESS is the other end.
        entry = KernelAddress(ip_address(found.get(_LOCAL_END) or found[_FAR]), holder)
        subnet = ip_network((found[_FAR], length), strict=False)
        yield _Listed(entry, subnet, _LIFETIMES.unpack(found[_CACHE_INFO]))


def _put(kernel: Rtnetlink, how: int, entry: KernelAddress, seconds: int | None) -> None:
    fields, given = _written(entry)
    valid = _FOREVER if seconds is None else seconds
    lifetimes = {"ifa_preferred": _preferred(Family.of(entry.address), valid), "ifa_valid": valid}
    fields["flags"] = _NO_DUPLICATE_DETECTION
    kernel.add(Kind.ADDRESS, how, fields, {**given, "IFA_CACHEINFO": lifetimes})


def _written(entry: KernelAddress) -> tuple[dict[str, int], dict[str, str]]:
    address = entry.address
    fields = {"family": FAMILIES[Family.of(address)], "prefixlen": address.max_prefixlen, "index": entry.index}
    return fields, {"IFA_LOCAL": str(address), "IFA_ADDRESS": str(address)}


def _preferred(family: Family, valid: int) -> int:
    return valid if family is Family.IPV4 else 0


def _seconds(item: _Listed) -> int | None:
    _preferred, valid = item.lifetimes
    return None if valid == _FOREVER else valid


def _is_plain(item: _Listed, family: Family) -> bool:
    is_lasting = item.lifetimes == (_preferred(family, _FOREVER), _FOREVER)
    return is_lasting and item.subnet.prefixlen == item.subnet.max_prefixlen


# The neighbour table: which link-layer address answered for which address (linux/neighbour.h).
_NEIGHBOUR_GET = 30  # RTM_GETNEIGH
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # ndmsg: family, index, state, flags, type
_DST, _LLADDR = 1, 2
_PROBE = 0x10
_USE = 0x01  # NTF_USE
_HELD_BY_HAND = 0x80 | 0x40  # NUD_PERMANENT, NUD_NOARP
_ETHERNET_BYTES = 6

# REACHABLE, STALE, DELAY, PROBE, PERMANENT. In the others no machine answered, or was asked.
USABLE_STATES: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
CONFIRMED_STATES: Final = 0x02 | 0x80  # REACHABLE, PERMANENT
KNOWN_STATES: Final = USABLE_STATES & ~0x80  # those that a machine answered for, at some time


@dataclass(frozen=True, slots=True)
class KernelNeighbour:
    """`mac`, in lower case with colons, answered for `address` on the interface with this number."""

    address: Address
    mac: str
    index: int


def neighbours(states: int = USABLE_STATES) -> Iterator[KernelNeighbour]:
    """Give the entries of Ethernet neighbours that answered, or those in these states.

    By hand, since guests can fill this table.

    Raises:
        KernelError: the kernel does not answer.

    """
    for family in Family:
        for body in first_listed(_NEIGHBOUR_GET, _NEIGHBOUR.pack(FAMILIES[family], 0, 0, 0, 0)):
            yield from neighbours_of(body, states)


def neighbours_of(body: bytes, states: int = USABLE_STATES) -> Iterator[KernelNeighbour]:
    """Read an entry."""
    _family, index, state, *_rest = _NEIGHBOUR.unpack_from(body)
    found = attributes(body[_NEIGHBOUR.size :])
    mac = found.get(_LLADDR, b"")
    if state & states and _DST in found and len(mac) == _ETHERNET_BYTES:
        yield KernelNeighbour(ip_address(found[_DST]), mac.hex(":"), index)


def probe(kernel: Rtnetlink, entry: KernelNeighbour) -> None:
    """Hold that an entry is so, and ask the neighbour.

    Raises:
        RefusedError: the entry, or its interface, is not there.

    """
    kernel.add(Kind.NEIGHBOUR, REPLACE, *_probed(entry))


def introduce(kernel: Rtnetlink, entry: KernelNeighbour) -> None:
    """Make an entry of a neighbour that answered, and ask it; one that is there already stays as it is.

    Raises:
        RefusedError: the interface is not there.

    """
    kernel.add(Kind.NEIGHBOUR, CREATE, *_probed(entry))


def resolve(kernel: Rtnetlink, address: Address, index: int) -> None:
    """Have the kernel ask for an address on an interface, as it does with a packet for it.

    Nothing is asked for what was entered by hand, since the entry would change (Linux 5.16 and later).

    Raises:
        RefusedError: the interface is not there.

    """
    fields, given = {"family": FAMILIES[Family.of(address)], "ifindex": index}, {"NDA_DST": str(address)}
    held = kernel.entry(Kind.NEIGHBOUR, fields, given)
    if held is None or not held.fields["state"] & _HELD_BY_HAND:
        kernel.add(Kind.NEIGHBOUR, CREATE, {**fields, "flags": _USE}, given)


def _probed(entry: KernelNeighbour) -> tuple[dict[str, int], dict[str, str]]:
    fields = {"family": FAMILIES[Family.of(entry.address)], "ifindex": entry.index, "state": _PROBE}
    return fields, {"NDA_DST": str(entry.address), "NDA_LLADDR": entry.mac}


# Proxy entries: addresses for which the kernel answers ARP and neighbour discovery (`ip neighbour show proxy`).
_PROXY, _PERMANENT = 0x08, 0x80  # NTF_PROXY, NUD_PERMANENT


@dataclass(frozen=True, slots=True)
class ProxyEntry:
    """The kernel answers for `address` on the interface with this number."""

    address: Address
    index: int


@dataclass(frozen=True, slots=True)
class Held:
    """How the kernel holds an entry: with our protocol number, and with nothing that we do not give to ours."""

    is_ours: bool
    is_plain: bool


def proxy_entries(kernel: Rtnetlink, family: Family) -> dict[ProxyEntry, Held]:
    """Give all proxy entries, each with how it is held; that there are none is known as in `our_routes`."""
    if not first_listed(_NEIGHBOUR_GET, _NEIGHBOUR.pack(FAMILIES[family], 0, 0, _PROXY, 0), 1):
        return {}
    return dict(map(_proxy_read, kernel.entries(Kind.NEIGHBOUR, {"family": FAMILIES[family], "flags": _PROXY})))


def add_proxy_entry(kernel: Rtnetlink, entry: ProxyEntry) -> None:
    """Make an entry of ours, or make one as we make them. One that others made would become ours: look first."""
    fields, given = _proxy(entry)
    kernel.add(Kind.NEIGHBOUR, EXCLUSIVE, {**fields, "state": _PERMANENT}, {**given, "NDA_PROTOCOL": PROTOCOL})


def delete_proxy_entry(kernel: Rtnetlink, entry: ProxyEntry) -> None:
    """Remove an entry."""
    kernel.remove(Kind.NEIGHBOUR, *_proxy(entry))


def _proxy(entry: ProxyEntry) -> tuple[dict[str, int], dict[str, str]]:
    fields = {"family": FAMILIES[Family.of(entry.address)], "ifindex": entry.index, "flags": _PROXY}
    return fields, {"NDA_DST": str(entry.address)}


def _proxy_read(entry: Entry) -> tuple[ProxyEntry, Held]:
    fields, found = entry
    is_ours = found.get("NDA_PROTOCOL") == PROTOCOL
    return ProxyEntry(ip_address(found["NDA_DST"]), fields["ifindex"]), Held(is_ours, fields["flags"] == _PROXY)
