"""Which domain has an address, for rules that name the address only."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from fwdaemon.inventory import AddressSource, Inventory
from fwdaemon.model import Address

Owners: TypeAlias = Mapping[Address, tuple[str, ...]]
"""The names of the running domains with the best evidence for an address; it is known where there is one only."""


def owners_of(inventory: Inventory) -> Owners:
    """Index the domains of an inventory by all their addresses."""
    claims: defaultdict[Address, dict[AddressSource, set[str]]] = defaultdict(dict)
    for address, source, name in _claims(inventory):
        claims[address].setdefault(source, set()).add(name)
    return {address: tuple(sorted(sources[min(sources)])) for address, sources in claims.items()}


def _claims(inventory: Inventory) -> Iterator[tuple[Address, AddressSource, str]]:
    for domain in inventory.domains:
        for interface in domain.interfaces:
            for claim in interface.learned:
                yield claim.address, claim.source, domain.name
