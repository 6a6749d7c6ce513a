"""Public addresses: held on an interface, and announced outside and to guests."""

import logging
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final, TypeAlias

from fwdaemon.core.exposures import Nat
from fwdaemon.core.inventory import Inventory
from fwdaemon.core.report import ApplyResult, Fault, FaultKind
from fwdaemon.core.state import Desired
from fwdaemon.core.text import shown
from fwdaemon.core.types import Address, Family
from fwdaemon.errors import KernelError
from fwdaemon.hostnet.owned_state import DIRECTORY, OwnedStateFile, Record
from fwdaemon.kernel import packets, sysctl
from fwdaemon.kernel.packets import ALL_NODES, ETHERNET, Advertisement, multicast_mac
from fwdaemon.kernel.rtnetlink import RefusedError, Rtnetlink, interface_index
from fwdaemon.kernel.rtnl_links import (
    HeldAddress,
    KernelAddress,
    add_address,
    addresses,
    delete_address,
    held_addresses,
    renew_address,
)

# Announces to the neighbours on a link that an address is here now, in case they know it elsewhere.
_log = logging.getLogger(__name__)

_ETH_P_ARP, _ETH_P_IPV6 = 0x0806, 0x86DD
_EVERYBODY = b"\xff" * 6


class Announcer:
    """Sends on one socket, which is kept: to close one, the kernel waits for all processors, about 10 ms."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def announce(self, interface: str, address: Address) -> None:
        """Send a gratuitous ARP, or an unsolicited neighbour advertisement, for an address of an interface.

        Where there is no link, or one without MAC addresses, there is nothing to announce to.
        """
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            _announce(self._socket, interface, address)
        except (OSError, KernelError) as error:
            _log.debug("%s is not announced on %s: %s", address, shown(interface), error)

    def close(self) -> None:
        """Close it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _announce(link: socket.socket, interface: str, address: Address) -> None:
    link.bind((interface, 0))
    *_rest, hardware, mac = link.getsockname()
    if hardware == ETHERNET:
        for protocol, destination, packet in _packets(interface, address, mac):
            link.sendto(packet, (interface, protocol, 0, 0, destination))


def _packets(interface: str, address: Address, mac: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Give each packet with its protocol and its destination."""
    match address:
        case IPv4Address():
            for packet in gratuitous_arps(address, mac):
                yield _ETH_P_ARP, _EVERYBODY, packet
        case IPv6Address():
            is_router = sysctl.read(sysctl.of_interface(Family.IPV6, interface, "forwarding")) == "1"
            yield _ETH_P_IPV6, multicast_mac(ALL_NODES), unsolicited_advertisement(address, mac, is_router=is_router)


def gratuitous_arps(address: IPv4Address, mac: bytes) -> tuple[bytes, bytes]:
    """Give a request and a reply (RFC 5944, section 4.6): some neighbours heed only the one, some only the other."""
    return packets.packed(packets.REQUEST, address, mac, address), packets.packed(
        packets.REPLY, address, mac, address, mac
    )


def unsolicited_advertisement(address: IPv6Address, mac: bytes, *, is_router: bool) -> bytes:
    """Give what makes neighbours change an entry they have (RFC 4861, section 7.2.6)."""
    advertisement = Advertisement(
        source=address,
        destination=ALL_NODES,
        target=address,
        mac=mac,
        router=is_router,
        solicited=False,
        override=True,
    )
    return advertisement.packed()


# Announces to guests that have just come where their gateway is: at this host, whose bridge has a MAC address of its
# own.
#
# A guest that was migrated here still sends to the bridge of the host it left, until what it knows of its gateway has
# run out. A guest that only sends, such as a server to a client that says nothing, would send for nothing until then.

# A family, and a bridge or a port of one.
_Place: TypeAlias = tuple[Family, str]


class Gateways:
    """Announces the host's own addresses on a bridge to the guests there, when one of them is new."""

    def __init__(self, announcer: Announcer | None = None) -> None:
        self._announcer = announcer or Announcer()
        self._greeted: frozenset[_Place] = frozenset()

    def apply(self, desired: Desired) -> ApplyResult:
        """Announce where a bridge port is in use that was not the last time; changes nothing on the host. Blocks.

        Raises:
            KernelError: the kernel does not list the host's addresses.

        """
        new, self._greeted = desired.bridge_ports - self._greeted, desired.bridge_ports
        for family, bridge in _bridges(desired, new) if new else ():
            self._announce_own(family, bridge)
        return ApplyResult()

    def _announce_own(self, family: Family, bridge: str) -> None:
        index = interface_index(bridge)
        if index is None:
            return
        for entry in addresses(family, index):
            if entry.index == index:
                self._announcer.announce(bridge, entry.address)


def _bridges(desired: Desired, ports: frozenset[_Place]) -> set[_Place]:
    names = {name for _, name in ports}
    # Of thousands of exposures, few are at these ports, so what takes longer is asked last.
    return {
        (item.family, item.bridge)
        for item in desired.exposures
        if item.bridge_port in names and item.bridge is not None and (item.family, item.bridge_port) in ports
    }


# Holds the public addresses of 1:1 guests on the interfaces that are to have them.
#
# An address that the host has without us is left alone, wherever it is. The kernel does not say whose an address is,
# so ours are recorded. Each that is added is announced, since neighbours may still know it elsewhere.

#
# What etcd has given to this host for a while is given to the interface for no longer: the kernel takes it away then,
# whatever has become of this program. It shows how long it has left in whole seconds.
Seconds: TypeAlias = Callable[[Nat], int | None]
"""For how many seconds from now on an address may be held; `None` is for ever, 0 is not at all."""
_ROUNDED_S: Final = 1


def for_ever(_nat: Nat) -> None:
    """Hold an address for as long as it is wanted."""


# An interface, and an address on it.
_PublicAddressesPlace: TypeAlias = tuple[str, Address]


def with_lent(inventory: Inventory, directory: Path = DIRECTORY) -> Inventory:
    """Add which of the host's addresses we assigned, where metadata asks for any: only those may be granted.

    Each is recorded before it is assigned: the record, read after the host's addresses, has all of them that are ours.
    """
    if not any(domain.metadata is not None for domain in inventory.domains):
        return inventory
    return replace(inventory, lent=frozenset(_read(OwnedStateFile("addresses", directory).records)))


class PublicAddresses:
    """Adds addresses that are wanted and nowhere on the host, and removes those it added when no longer wanted."""

    def __init__(
        self,
        state_file: OwnedStateFile | None = None,
        seconds: Seconds = for_ever,
        announcer: Announcer | None = None,
    ) -> None:
        self._state_file, self._seconds = state_file or OwnedStateFile("addresses"), seconds
        self._announcer = announcer or Announcer()
        self._ours = set(_read(self._state_file.records))
        self._held: frozenset[Nat] = frozenset()
        self._is_first = True

    def apply(self, nats: frozenset[Nat]) -> ApplyResult:
        """Hold `public` on `assign` for those that have it; `mended` are those whose address was missing. Blocks.

        Raises:
            KernelError: the kernel does not list the host's addresses.

        """
        wanted = self._wanted(nats)
        first, self._is_first = self._is_first, False
        if not wanted and not self._ours:
            return ApplyResult()
        superfluous = self._ours - wanted.keys()
        with Rtnetlink() as kernel:
            for place in superfluous:
                self._remove(kernel, place)
            missing, bent = self._lacking(wanted)
            added, refused = self._added(kernel, missing)
            renewed, unchanged = self._renewed(kernel, bent)
        self._record(self._ours)  # again, where it could not be written before
        added |= renewed
        damaged, self._held = added & self._held, frozenset(nat for place, nat in wanted.items() if place in self._ours)
        return ApplyResult(
            mended=added,
            damaged=damaged,
            stale=frozenset(f"{address} on {shown(interface)}" for interface, address in superfluous if first),
            faults=(*refused.values(), *unchanged),
            changed=bool(added or superfluous),
            refused=tuple(refused.items()),
        )

    def adopt(self, former: Path) -> None:
        """Take over what 0.1.0 recorded in a file of lines such as `address eth0 198.51.100.8`, and remove that."""
        try:
            text = former.read_text(errors="surrogateescape")
        except OSError:
            return
        found = re.findall(r"^address (\S+) (\S+)$", text, re.MULTILINE)
        self._record(self._ours.union(_read({"interface": name, "address": address} for name, address in found)))
        with suppress(OSError):  # or again at the next start
            former.unlink()

    def preview(self, nats: frozenset[Nat]) -> ApplyResult:
        """Say what `apply` would find and do now, touching nothing.

        Raises:
            KernelError: the kernel does not list the host's addresses.

        """
        wanted = self._wanted(nats)
        superfluous = self._ours - wanted.keys()
        lacking = self._lacking(wanted)
        # What is held for a while is there for another time whenever that has just been renewed.
        lasting = {place: nat for place, nat in lacking[1].items() if self._seconds(nat) is None}
        missing = frozenset(nat for places in (lacking[0], lasting) for nat in places.values())
        stale = frozenset(f"{address} on {shown(interface)}" for interface, address in superfluous)
        return ApplyResult(mended=missing, stale=stale, changed=bool(missing or superfluous))

    def _wanted(self, nats: frozenset[Nat]) -> dict[_PublicAddressesPlace, Nat]:
        assigned = {(nat.assign, nat.public): nat for nat in nats if nat.assign is not None}
        return {place: nat for place, nat in assigned.items() if self._seconds(nat) != 0}

    def _lacking(
        self, wanted: Mapping[_PublicAddressesPlace, Nat]
    ) -> tuple[dict[_PublicAddressesPlace, Nat], dict[_PublicAddressesPlace, Nat]]:
        """Give those whose address is on no interface at all, and those of ours that have other lifetimes."""
        families = {Family.of(address) for _, address in wanted}
        held = [item for family in families for item in held_addresses(family)]
        known = {item.entry.address for item in held}
        by_entry: dict[KernelAddress | None, HeldAddress] = {item.entry: item for item in held}
        missing = {place: nat for place, nat in wanted.items() if place[1] not in known}
        ours = ((place, nat, by_entry.get(_entry(place))) for place, nat in wanted.items() if place in self._ours)
        changed = {place: nat for place, nat, item in ours if item is not None and _is_bent(item, self._seconds(nat))}
        return missing, changed

    def _added(
        self, kernel: Rtnetlink, missing: Mapping[_PublicAddressesPlace, Nat]
    ) -> tuple[frozenset[Nat], dict[Nat, Fault]]:
        """Add addresses, and return which were, and what is wrong with the others."""
        added, refused = set(), {}
        for place, nat in sorted(missing.items(), key=str):
            try:
                self._add(kernel, place, self._seconds(nat))
                added.add(nat)
            except KernelError as error:
                refused[nat] = Fault(FaultKind.PUBLIC_ADDRESS, (str(nat.public), place[0]), str(error))
        return frozenset(added), refused

    def _add(self, kernel: Rtnetlink, place: _PublicAddressesPlace, seconds: int | None) -> None:
        """Add one address and announce it.

        Raises:
            KernelError: it cannot be, and why.

        """
        interface, address = place
        index = interface_index(interface)
        if index is None:
            raise KernelError("there is no such interface")
        self._record_first(place)
        try:
            add_address(kernel, KernelAddress(address, index), seconds)
        except RefusedError:
            self._record(self._ours - {place})
            raise
        self._announcer.announce(interface, address)

    def _remove(self, kernel: Rtnetlink, place: _PublicAddressesPlace) -> None:
        interface, address = place
        index = interface_index(interface)
        if index is not None:
            delete_address(kernel, KernelAddress(address, index))
        self._record(self._ours - {place})

    def _renewed(
        self, kernel: Rtnetlink, bent: Mapping[_PublicAddressesPlace, Nat]
    ) -> tuple[frozenset[Nat], list[Fault]]:
        """Give addresses the lifetimes they are to have; return whose others changed, and what is wrong."""
        renewed, faults = set(), []
        for place, nat in bent.items():
            try:
                if (entry := _entry(place)) is not None:
                    seconds = self._seconds(nat)
                    renew_address(kernel, entry, seconds)
                    renewed |= {nat} if seconds is None else set()
            except KernelError as error:
                faults.append(Fault(FaultKind.PUBLIC_ADDRESS_CHANGED, (str(nat.public), place[0]), str(error)))
        return frozenset(renewed), faults

    def _record_first(self, place: _PublicAddressesPlace) -> None:
        """Record an address before adding it, so that the next run can remove it after a crash."""
        ours = self._ours | {place}
        if place not in self._ours:
            self._state_file.write_first(_records(ours))
        self._record(ours)

    def _record(self, ours: set[_PublicAddressesPlace]) -> None:
        self._ours = ours
        self._state_file.write(_records(ours))


def _records(ours: Iterable[_PublicAddressesPlace]) -> list[Record]:
    return [{"interface": interface, "address": str(address)} for interface, address in ours]


def _is_bent(item: HeldAddress, seconds: int | None) -> bool:
    """Whether an address is there for another time than it is to be."""
    if seconds is None:
        return not item.is_plain
    return item.seconds is None or not seconds - _ROUNDED_S <= item.seconds <= seconds


def _entry(place: _PublicAddressesPlace) -> KernelAddress | None:
    interface, address = place
    index = interface_index(interface)
    return None if index is None else KernelAddress(address, index)


def _read(records: Iterable[Record]) -> Iterator[_PublicAddressesPlace]:
    """Read what is recorded; what cannot be read was not written by us."""
    for record in records:
        match record:
            case {"interface": str(interface), "address": str(address)}:
                try:
                    yield interface, ip_address(address)
                except ValueError:
                    continue
