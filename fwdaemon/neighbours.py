"""What the kernel's neighbour table is worth: it forgets guests that are there, keeps old addresses, believes anyone.

Pure. An entry changes with any packet that claims an address (RFC 826), and a guest may claim what it likes. So entries
are remembered while their guest runs, and those that seem wrong are to be asked again, which is up to the kernel.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from fwdaemon.inventory import AddressSource, Inventory
from fwdaemon.model import Address, Family
from fwdaemon.naming import shown
from fwdaemon.observation import Neighbour

_GIVEN = (AddressSource.LEASE, AddressSource.RESERVATION)


@dataclass(frozen=True, slots=True)
class Usurped:
    """An address that a DHCP server gave to one guest, and that somebody else answers for.

    `rightful` is the entry as it was before; `story` tells a person, and is the same each time.
    """

    rightful: Neighbour
    story: str


def remembered(before: Iterable[Neighbour], now: Sequence[Neighbour], macs: AbstractSet[str]) -> tuple[Neighbour, ...]:
    """Add to the neighbour table what it knew before of guests that still run; what was known first comes first.

    The kernel drops entries of those it has not talked to for long, and no packet reaches a guest whose forward went
    with its entry, so it would never come back. An old entry counts no more once the guest has another address of that
    family, or somebody who is no guest has the address. Where another guest has it, both claim it: the table has room
    for one only, and who spoke last need not be right.
    """
    holders = {(neighbour.device, neighbour.address): neighbour.mac for neighbour in now}
    moved = {_spot(neighbour) for neighbour in now}

    def stays(old: Neighbour) -> bool:
        holder = holders.get((old.device, old.address))
        if holder == old.mac:
            return True
        return old.mac in macs and _spot(old) not in moved and (holder is None or holder in macs)

    return tuple(dict.fromkeys([*filter(stays, before), *now]))


def in_doubt(before: Iterable[Neighbour], now: Sequence[Neighbour], macs: AbstractSet[str]) -> tuple[Neighbour, ...]:
    """Give the entries of guests for whom there are several of one family, one of them new: the guest may have moved.

    The kernel would find out by itself, but only with packets on their way to the old address, and half a minute later.
    """
    count = Counter(_spot(neighbour) for neighbour in now)
    renewed = {_spot(neighbour) for neighbour in set(now).difference(before)}
    return tuple(item for item in now if item.mac in macs and count[_spot(item)] > 1 and _spot(item) in renewed)


def usurped(inventory: Inventory, before: Iterable[Neighbour], now: Iterable[Neighbour]) -> tuple[Usurped, ...]:
    """Give the addresses that were seen at the guest a DHCP server gave them to, and are now seen elsewhere."""
    owners, names = _owners(inventory), _names(inventory)
    known = set(before)
    found = []
    for neighbour in now:
        mac = owners.get((neighbour.device, neighbour.address), neighbour.mac)
        rightful = Neighbour(neighbour.device, mac, neighbour.address)
        if rightful != neighbour and rightful in known:
            taker = names.get(neighbour.mac, f"somebody on bridge {shown(neighbour.device)}")
            found.append(Usurped(rightful, _story(neighbour.address, names[mac], taker)))
    return tuple(found)


def _owners(inventory: Inventory) -> Mapping[tuple[str, Address], str]:
    """Give the MAC address that each address was given to; a reservation counts more than a lease not yet ended."""
    claims = [
        (claim.source, interface.bridge, claim.address, interface.mac)
        for domain in inventory.domains
        for interface in domain.interfaces
        for claim in interface.learned
        if claim.source in _GIVEN and interface.bridge is not None
    ]
    return {(bridge, address): mac for source, bridge, address, mac in sorted(claims, key=lambda claim: -claim[0])}


def _names(inventory: Inventory) -> Mapping[str, str]:
    return {
        interface.mac: f"domain {shown(domain.name)}" for domain in inventory.domains for interface in domain.interfaces
    }


def _story(address: Address, owner: str, taker: str) -> str:
    return (
        f"{taker} answered for {address}, which is the address of {owner}: it leads to {owner} again, "
        "and libvirt's network filter clean-traffic keeps guests from such"
    )


def _spot(neighbour: Neighbour) -> tuple[str, str, Family]:
    return neighbour.device, neighbour.mac, Family.of(neighbour.address)
