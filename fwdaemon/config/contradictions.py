"""What the keys of one entry must not say together."""

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from fwdaemon.config.model import ForwardEntry, NatEntry
from fwdaemon.config.node import Node
from fwdaemon.config.ports import PortSpec
from fwdaemon.config.text import quote
from fwdaemon.model import Address, Family, Subnet

_EITHER = frozenset(Family)
_NAMES = {Family.IPV4: "IPv4", Family.IPV6: "IPv6"}
# ARP is answered address by address, for 1,024 at most; neighbour discovery is answered by subnet.
_WIDEST_PROXY: Final = 22


def families_of(items: Iterable[Address | Subnet]) -> frozenset[Family]:
    """Return the families to which addresses or networks restrict an entry; none at all restrict nothing."""
    return frozenset(map(Family.of, items)) or _EITHER


def families_of_entry(entry: ForwardEntry) -> frozenset[Family]:
    """Return the families in which an entry can forward anything, its `listen` left aside."""
    return families_of(_guest(entry)) & families_of(entry.sources)


def refuse_contradictions(entry: ForwardEntry, fields: Mapping[str, Node]) -> None:
    """Record what an entry's keys say against each other."""
    _refuse_two_interfaces(fields)
    listen, guest, sources = families_of(entry.listen), families_of(_guest(entry)), families_of(entry.sources)
    if not guest & listen:
        _refuse_families(fields["address"], guest, f"listen is {_show(listen)}")
    if not sources & listen:
        _refuse_families(fields["sources"], sources, f"listen is {_show(listen)}")
    if not sources & guest:
        _refuse_families(fields["sources"], sources, f"the guest's address is {_show(guest)}")


def refuse_nat_contradictions(entry: NatEntry, fields: Mapping[str, Node]) -> None:
    """Record what the keys of a `[[nat]]` say against each other."""
    _refuse_two_interfaces(fields)
    public, guest = families_of([entry.public]), families_of(_guest(entry))
    if not guest & public:
        _refuse_families(fields["address"], guest, f"public is {_show(public)}")
    if entry.address == entry.public:
        fields["address"].refuse("is public itself, so nothing is left to translate; write a [[route]] instead")


def refuse_wide_proxies(subnets: Iterable[tuple[Node, Subnet]]) -> None:
    """Record each subnet of a `[[route]]` that is too wide to be answered for, address by address."""
    for item, subnet in subnets:
        if Family.of(subnet) is Family.IPV4 and subnet.prefixlen < _WIDEST_PROXY:
            item.refuse(
                f"{quote(str(subnet))} is wider than /{_WIDEST_PROXY}, and with proxy the host answers ARP for each"
                " address singly; leave proxy out and have the subnet routed to this host, or write the part in use"
            )


def refuse_port_contradictions(entry: ForwardEntry, specs: Collection[tuple[Node, PortSpec]]) -> None:
    """Record each port string whose own listening address is at odds with the entry's other keys."""
    for item, spec in specs:
        if spec.listen is None:
            continue
        here = families_of([spec.listen])
        if entry.listen:
            item.refuse("names an address although the entry has listen; write the address in one place only")
        elif not here & families_of(_guest(entry)):
            _refuse_families(item, here, f"the guest's address is {_show(families_of(_guest(entry)))}")
        elif not here & families_of(entry.sources):
            _refuse_families(item, here, f"sources are {_show(families_of(entry.sources))}")


def _refuse_two_interfaces(fields: Mapping[str, Node]) -> None:
    if "network" in fields and "mac" in fields:
        fields["mac"].refuse("picks the guest's interface, as network already does; remove one of the two")


def _refuse_families(node: Node, families: frozenset[Family], other: str) -> None:
    node.refuse(f"is {_show(families)} only, but {other} only, so nothing could match; write both in one family")


def _guest(entry: ForwardEntry | NatEntry) -> tuple[Address, ...]:
    return () if entry.address is None else (entry.address,)


def _show(families: frozenset[Family]) -> str:
    return " and ".join(_NAMES[family] for family in sorted(families))
