"""Holds the public addresses of 1:1 guests on the interfaces that are to have them.

An address that the host has without us is left alone, wherever it is. The kernel does not tell whose an address is, so
ours are recorded. Each that is added is announced, since neighbours may still know it elsewhere.
"""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import TypeAlias

from fwdaemon.announce import announce
from fwdaemon.desired import Nat
from fwdaemon.errors import KernelError
from fwdaemon.ledger import Ledger
from fwdaemon.model import Address, Family
from fwdaemon.naming import shown
from fwdaemon.outcome import Outcome
from fwdaemon.rtnetlink.address import KernelAddress, add_address, addresses, delete_address
from fwdaemon.rtnetlink.client import RefusedError, Rtnetlink, interface_index

# An interface, and an address on it; recorded as `address eth0 198.51.100.8`.
_Place: TypeAlias = tuple[str, Address]


class PublicAddresses:
    """Adds addresses that are wanted and nowhere on the host, and removes those it added when nobody wants them."""

    def __init__(self, ledger: Ledger | None = None) -> None:
        self._ledger = ledger or Ledger("addresses")
        self._ours = set(_read(self._ledger.lines))
        self._held: frozenset[Nat] = frozenset()
        self._is_first = True

    def keep(self, nats: frozenset[Nat]) -> Outcome:
        """Hold `public` on `assign` for those that have it; `mended` are those whose address was missing. Blocks.

        Raises:
            KernelError: the kernel does not tell the host's addresses.

        """
        wanted = {(nat.assign, nat.public): nat for nat in nats if nat.assign is not None}
        first, self._is_first = self._is_first, False
        if not wanted and not self._ours:
            return Outcome()
        superfluous = self._ours - wanted.keys()
        with Rtnetlink() as kernel:
            for place in superfluous:
                self._remove(kernel, place)
            added, refused = self._added(kernel, _missing(kernel, wanted))
        damaged, self._held = added & self._held, frozenset(nat for place, nat in wanted.items() if place in self._ours)
        return Outcome(
            mended=added,
            damaged=damaged,
            stale=frozenset(f"{address} on {shown(interface)}" for interface, address in superfluous if first),
            faults=tuple(refused.values()),
            changed=bool(added or superfluous),
            refused=tuple(refused.items()),
        )

    def preview(self, nats: frozenset[Nat]) -> Outcome:
        """Tell what `keep` would find and do now, touching nothing.

        Raises:
            KernelError: the kernel does not tell the host's addresses.

        """
        wanted = {(nat.assign, nat.public): nat for nat in nats if nat.assign is not None}
        superfluous = self._ours - wanted.keys()
        with Rtnetlink() as kernel:
            missing = frozenset(_missing(kernel, wanted).values())
        stale = frozenset(f"{address} on {shown(interface)}" for interface, address in superfluous)
        return Outcome(mended=missing, stale=stale, changed=bool(missing or superfluous))

    def _added(self, kernel: Rtnetlink, missing: Mapping[_Place, Nat]) -> tuple[frozenset[Nat], dict[Nat, str]]:
        """Add addresses, and tell which were, and what is wrong with the others."""
        added, refused = set(), {}
        for place, nat in sorted(missing.items(), key=str):
            try:
                self._add(kernel, place)
                added.add(nat)
            except KernelError as error:
                refused[nat] = f"{nat.public} is not assigned to {shown(place[0])}: {error}"
        return frozenset(added), refused

    def _add(self, kernel: Rtnetlink, place: _Place) -> None:
        """Add one address and announce it.

        Raises:
            KernelError: it cannot be, and why.

        """
        interface, address = place
        index = interface_index(interface)
        if index is None:
            raise KernelError("there is no such interface")
        self._record(self._ours | {place})  # first, or nobody would remove it if we ended here
        try:
            add_address(kernel, KernelAddress(address, index))
        except RefusedError:
            self._record(self._ours - {place})
            raise
        announce(interface, address)

    def _remove(self, kernel: Rtnetlink, place: _Place) -> None:
        interface, address = place
        index = interface_index(interface)
        if index is not None:
            delete_address(kernel, KernelAddress(address, index))
        self._record(self._ours - {place})

    def _record(self, ours: set[_Place]) -> None:
        self._ours = ours
        self._ledger.write(f"address {interface} {address}" for interface, address in ours)


def _missing(kernel: Rtnetlink, wanted: Mapping[_Place, Nat]) -> dict[_Place, Nat]:
    """Give those whose address is on no interface at all."""
    families = {Family.of(address) for _, address in wanted}
    known = {entry.address for family in families for entry in addresses(kernel, family)}
    return {place: nat for place, nat in wanted.items() if place[1] not in known}


def _read(lines: Iterable[str]) -> Iterator[_Place]:
    """Read what is recorded; what cannot be read was not written by us."""
    for line in lines:
        match line.split(" "):
            case ["address", interface, address]:
                try:
                    yield interface, ip_address(address)
                except ValueError:
                    continue
