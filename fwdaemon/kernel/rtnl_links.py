"""Links, their addresses, neighbours and proxy entries, by rtnetlink."""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final

from fwdaemon.core.types import Address, Family, Subnet
from fwdaemon.kernel.netlink import attribute, attributes, number
from fwdaemon.kernel.rtnetlink import FAMILIES, PROTOCOL, Rtnetlink

# Addresses of the host's interfaces (rtnetlink(7)).
_NEW, _DELETE, _GET = 20, 21, 22  # RTM_NEWADDR, …
_CREATE, _EXCLUSIVE, _REPLACE = 0x400, 0x200, 0x100
_FIXED = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_ADDRESS, _LOCAL, _LIFETIMES = 1, 2, 6  # IFA_ADDRESS, IFA_LOCAL, IFA_CACHEINFO
_NO_DUPLICATE_DETECTION = 0x02  # IFA_F_NODAD
# ifa_cacheinfo: preferred and valid seconds, and two that only the kernel fills in.
_CACHEINFO = struct.Struct("=IIII")
_FOREVER: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class KernelAddress:
    """An address on the interface with this number."""

    address: Address
    index: int


@dataclass(frozen=True, slots=True)
class HeldAddress:
    """An address as the kernel has it; `is_plain` says that it has nothing which we do not give to ours."""

    entry: KernelAddress
    is_plain: bool


def addresses(kernel: Rtnetlink, family: Family, index: int = 0) -> list[KernelAddress]:
    """Give the addresses of one interface, or of all."""
    listed = kernel.entries(_GET, _FIXED.pack(FAMILIES[family], 0, 0, 0, index))
    return [entry for entry in map(_read, listed) if Family.of(entry.address) is family]


def held_addresses(kernel: Rtnetlink, family: Family) -> list[HeldAddress]:
    """Give all addresses of a family, each with whether it is as `add_address` makes it."""
    listed = kernel.entries(_GET, _FIXED.pack(FAMILIES[family], 0, 0, 0, 0))
    return [HeldAddress(_read(body), _is_plain(body, family)) for body in listed]


def subnets(kernel: Rtnetlink) -> list[tuple[KernelAddress, Subnet]]:
    """Give all addresses of the host, each with the subnet it is configured with."""
    listed = [body for family in Family for body in kernel.entries(_GET, _FIXED.pack(FAMILIES[family], 0, 0, 0, 0))]
    return [(_read(body), _subnet(body)) for body in listed]


def add_address(kernel: Rtnetlink, entry: KernelAddress) -> None:
    """Give an interface one more address, without its subnet.

    One of IPv6 can be used at once, and is deprecated, so that the host picks it for no connection of its own
    (RFC 6724, section 5, rule 3). One of IPv4 is not picked either, since it is not the first.
    """
    kernel.change(_NEW, _CREATE | _EXCLUSIVE, _entry(entry, _NO_DUPLICATE_DETECTION, _lifetimes(entry)))


def renew_address(kernel: Rtnetlink, entry: KernelAddress) -> None:
    """Give an address that is there the lifetimes that `add_address` gives it."""
    kernel.change(_NEW, _REPLACE, _entry(entry, _NO_DUPLICATE_DETECTION, _lifetimes(entry, explicit=True)))


def delete_address(kernel: Rtnetlink, entry: KernelAddress) -> None:
    """Take an address away from an interface."""
    kernel.remove(_DELETE, _entry(entry))


def _lifetimes(entry: KernelAddress, *, explicit: bool = False) -> bytes:
    family = Family.of(entry.address)
    if family is Family.IPV4 and not explicit:
        return b""
    return attribute(_LIFETIMES, _CACHEINFO.pack(_preferred(family), _FOREVER, 0, 0))


def _preferred(family: Family) -> int:
    return _FOREVER if family is Family.IPV4 else 0


def _is_plain(body: bytes, family: Family) -> bool:
    _family, length, *_rest = _FIXED.unpack_from(body)
    preferred, valid, *_times = _CACHEINFO.unpack_from(attributes(body[_FIXED.size :])[_LIFETIMES])
    is_lasting = (preferred, valid) == (_preferred(family), _FOREVER)
    return is_lasting and length == _read(body).address.max_prefixlen


def _entry(entry: KernelAddress, flags: int = 0, more: bytes = b"") -> bytes:
    address = entry.address
    fixed = _FIXED.pack(FAMILIES[Family.of(address)], address.max_prefixlen, flags, 0, entry.index)
    return fixed + attribute(_LOCAL, address.packed) + attribute(_ADDRESS, address.packed) + more


def _read(body: bytes) -> KernelAddress:
    *_rest, index = _FIXED.unpack_from(body)
    found = attributes(body[_FIXED.size :])
    # On a point-to-point link IFA_ADDRESS is the other end.
    return KernelAddress(ip_address(found.get(_LOCAL) or found[_ADDRESS]), index)


def _subnet(body: bytes) -> Subnet:
    _family, prefix_length, *_rest = _FIXED.unpack_from(body)
    return ip_network((attributes(body[_FIXED.size :])[_ADDRESS], prefix_length), strict=False)


# The neighbour table: which link-layer address answered for which address (rtnetlink(7), linux/neighbour.h).
_NEIGHBOUR_NEW, _NEIGHBOUR_GET = 28, 30  # RTM_NEWNEIGH, …
_NEIGHBOUR_REPLACE, _NEIGHBOUR_CREATE = 0x100, 0x400
_NEIGHBOUR_FIXED = struct.Struct("=BxxxiHBB")  # ndmsg: family, index, state, flags, type
_DST, _LLADDR = 1, 2
_PROBE = 0x10
_USE = 0x01  # NTF_USE
_HELD_BY_HAND = 0x80 | 0x40  # NUD_PERMANENT, NUD_NOARP
_ETHERNET_BYTES = 6

# REACHABLE, STALE, DELAY, PROBE, PERMANENT. In the others nobody answered, or was asked.
USABLE_STATES: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
CONFIRMED_STATES: Final = 0x02 | 0x80  # REACHABLE, PERMANENT
HEARD_STATES: Final = USABLE_STATES & ~0x80  # those that somebody answered for, at some time


@dataclass(frozen=True, slots=True)
class KernelNeighbour:
    """`mac`, in lower case with colons, answered for `address` on the interface with this number."""

    address: Address
    mac: str
    index: int


def neighbours(kernel: Rtnetlink, states: int = USABLE_STATES) -> Iterator[KernelNeighbour]:
    """Give the entries of Ethernet neighbours that answered, or those in these states."""
    for family in Family:
        for body in kernel.entries(_NEIGHBOUR_GET, _NEIGHBOUR_FIXED.pack(FAMILIES[family], 0, 0, 0, 0)):
            _family, index, state, *_rest = _NEIGHBOUR_FIXED.unpack_from(body)
            found = attributes(body[_NEIGHBOUR_FIXED.size :])
            mac = found.get(_LLADDR, b"")
            if state & states and _DST in found and len(mac) == _ETHERNET_BYTES:
                yield KernelNeighbour(ip_address(found[_DST]), mac.hex(":"), index)


def probe(kernel: Rtnetlink, entry: KernelNeighbour) -> None:
    """Hold that an entry is so, and ask the neighbour.

    Raises:
        RefusedError: the entry, or its interface, is not there.

    """
    kernel.change(_NEIGHBOUR_NEW, _NEIGHBOUR_REPLACE, _probed(entry))


def introduce(kernel: Rtnetlink, entry: KernelNeighbour) -> None:
    """Make an entry of a neighbour that answered, and ask it; one that is there already stays as it is.

    Raises:
        RefusedError: the interface is not there.

    """
    kernel.change(_NEIGHBOUR_NEW, _NEIGHBOUR_CREATE, _probed(entry))


def resolve(kernel: Rtnetlink, address: Address, index: int) -> None:
    """Have the kernel ask for an address on an interface, as it does with a packet for it.

    Nothing is asked for what somebody entered by hand, since the entry would change (Linux 5.16 and later).

    Raises:
        RefusedError: the interface is not there.

    """
    family = FAMILIES[Family.of(address)]
    target = attribute(_DST, address.packed)
    held = kernel.entry(_NEIGHBOUR_GET, _NEIGHBOUR_FIXED.pack(family, index, 0, 0, 0) + target)
    if held is None or not _NEIGHBOUR_FIXED.unpack_from(held)[2] & _HELD_BY_HAND:
        kernel.change(_NEIGHBOUR_NEW, _NEIGHBOUR_CREATE, _NEIGHBOUR_FIXED.pack(family, index, 0, _USE, 0) + target)


def _probed(entry: KernelNeighbour) -> bytes:
    fixed = _NEIGHBOUR_FIXED.pack(FAMILIES[Family.of(entry.address)], entry.index, _PROBE, 0, 0)
    mac = bytes.fromhex(entry.mac.replace(":", ""))
    return fixed + attribute(_DST, entry.address.packed) + attribute(_LLADDR, mac)


# Proxy entries: addresses for which the kernel answers ARP and neighbour discovery (`ip neighbour show proxy`).
_PROXY_NEW, _PROXY_DELETE, _PROXY_GET = 28, 29, 30  # RTM_NEWNEIGH, …
_PROXY_CREATE, _PROXY_EXCLUSIVE = 0x400, 0x200
_PROXY_FIXED = struct.Struct("=BxxxiHBB")  # ndmsg: family, index, state, flags, type
_PROXY, _PERMANENT = 0x08, 0x80  # NTF_PROXY, NUD_PERMANENT
_PROXY_DST, _PROTOCOL = 1, 12  # linux/neighbour.h: NDA_DST, NDA_PROTOCOL


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
    """Give all proxy entries, each with how it is held."""
    listed = kernel.entries(_PROXY_GET, _PROXY_FIXED.pack(FAMILIES[family], 0, 0, _PROXY, 0))
    return dict(map(_proxy_read, listed))


def add_proxy_entry(kernel: Rtnetlink, entry: ProxyEntry) -> None:
    """Make an entry of ours, or make one as we make them. One that somebody else made would become ours: look first."""
    kernel.change(
        _PROXY_NEW, _PROXY_CREATE | _PROXY_EXCLUSIVE, _body(entry, _PERMANENT) + attribute(_PROTOCOL, bytes([PROTOCOL]))
    )


def delete_proxy_entry(kernel: Rtnetlink, entry: ProxyEntry) -> None:
    """Remove an entry."""
    kernel.remove(_PROXY_DELETE, _body(entry, 0))


def _body(entry: ProxyEntry, state: int) -> bytes:
    fixed = _PROXY_FIXED.pack(FAMILIES[Family.of(entry.address)], entry.index, state, _PROXY, 0)
    return fixed + attribute(_PROXY_DST, entry.address.packed)


def _proxy_read(body: bytes) -> tuple[ProxyEntry, Held]:
    _family, index, _state, flags, _type = _PROXY_FIXED.unpack_from(body)
    found = attributes(body[_PROXY_FIXED.size :])
    is_ours = found.get(_PROTOCOL) == bytes([PROTOCOL])
    return ProxyEntry(ip_address(found[_PROXY_DST]), index), Held(is_ours, flags == _PROXY)


# Interfaces as ports of a bridge (rtnetlink(7), linux/if_link.h).
_LINK_GET, _SET = 18, 19  # RTM_GETLINK, RTM_SETLINK
_LINK_FIXED = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, which flags change
_BRIDGE = 7  # AF_BRIDGE
_NAME = 3  # IFLA_IFNAME
_MASTER, _PORT_SETTINGS, _NESTED = 10, 12, 0x8000  # IFLA_MASTER, IFLA_PROTINFO, the mark of a nested attribute
_HAIRPIN_MODE = 4  # IFLA_BRPORT_MODE


@dataclass(frozen=True, slots=True)
class BridgePort:
    """The number of an interface that is the port of a bridge, and whether it is in hairpin mode."""

    index: int
    hairpin: bool


def master(kernel: Rtnetlink, index: int) -> int | None:
    """Give the number of the bridge, or what else, an interface is a port of."""
    body = kernel.entry(_LINK_GET, _LINK_FIXED.pack(0, 0, index, 0, 0))
    return None if body is None else number(attributes(body[_LINK_FIXED.size :]).get(_MASTER))


def bridge_ports(kernel: Rtnetlink) -> dict[str, BridgePort]:
    """Give the ports of all bridges, by name."""
    ports = {}
    for body in kernel.entries(_LINK_GET, _LINK_FIXED.pack(_BRIDGE, 0, 0, 0, 0)):
        _family, _kind, index, *_rest = _LINK_FIXED.unpack_from(body)
        found = attributes(body[_LINK_FIXED.size :])
        if _PORT_SETTINGS in found:
            mode = attributes(found[_PORT_SETTINGS]).get(_HAIRPIN_MODE, b"\0")
            ports[os.fsdecode(found[_NAME].rstrip(b"\0"))] = BridgePort(index, mode != b"\0")
    return ports


def set_hairpin_mode(kernel: Rtnetlink, index: int, *, hairpin: bool) -> None:
    """Switch a bridge port.

    Raises:
        RefusedError: the interface is no port of a bridge.

    """
    setting = attribute(_PORT_SETTINGS | _NESTED, attribute(_HAIRPIN_MODE, bytes([hairpin])))
    kernel.change(_SET, 0, _LINK_FIXED.pack(_BRIDGE, 0, index, 0, 0) + setting)
