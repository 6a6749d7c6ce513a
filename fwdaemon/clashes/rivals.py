"""Rules of other tools that translate what an opening takes, and whose come first. Pure."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_network

from fwdaemon.clashes.port_index import PortIndex
from fwdaemon.clashes.scope import Field, Scope, Value, both
from fwdaemon.clashes.taking import EVERY_PORT, Entry, Taking
from fwdaemon.clashes.translation import Translation
from fwdaemon.clashes.words import listed
from fwdaemon.explain.owners import ADMIN, owner_of
from fwdaemon.explain.packet import Place, System
from fwdaemon.model import Address, Family, PortRange
from fwdaemon.naming import shown


class Order(StrEnum):
    """Whose rule a packet comes to first; the value says what follows, before those who reach the domain or do not."""

    OURS = "but our rule comes first, so %s reach %s"
    THEIRS = "and that comes first, so %s may not reach %s"
    UNKNOWN = "and whichever of the two was made last comes first, so %s may not reach %s"


@dataclass(frozen=True, slots=True)
class Standing:
    """In which rule system our own translation is, and the priority of its chain."""

    system: System
    priority: int

    def order(self, other: Translation) -> Order:
        """Tell whose rule comes first.

        Chains of one priority are called in the reverse order of their making (nf_hook_entries_grow), which nobody
        tells; but in the table nat of iptables ours is the first rule of the chain.
        """
        if other.priority != self.priority:
            return Order.THEIRS if other.priority < self.priority else Order.OURS
        return Order.OURS if other.place.system is self.system is System.LEGACY else Order.UNKNOWN


@dataclass(slots=True)
class _Rivalry:
    """An opening, the rules of another tool that were found for it, and the ports that are in question.

    Ports come with the name of their protocol, or with nothing where the opening has but one.
    """

    taking: Taking
    places: set[Place] = field(default_factory=set)
    ports: set[tuple[PortRange, str]] = field(default_factory=set)


def sentences(
    takings: Iterable[Taking], others: Sequence[Translation], ours: Standing, local: Collection[Address]
) -> Iterator[str]:
    """Tell of each opening and each other tool that translates what it takes; `local` are the host's addresses."""
    index = PortIndex((ports, other) for other in others for ports in ports_of(other.scope))
    here = {family: tuple(_subnets(local, family)) for family in Family}
    found: dict[tuple[Entry, str, Order], _Rivalry] = {}
    for taking in takings:
        for other in index.meeting(taking.ports):
            order = ours.order(other)
            if not _concerns(other, taking, order):
                continue
            shared = both(_scope(taking, here[taking.family]), other.scope)
            if shared is not None:
                rivalry = found.setdefault((taking.entry, owner_of(other.place), order), _Rivalry(taking))
                rivalry.places.add(other.place)
                rivalry.ports.update(_ports_in_question(taking, shared))
    for (_, owner, order), rivalry in found.items():
        yield _sentence(rivalry, owner, order)


def _subnets(local: Iterable[Address], family: Family) -> Iterator[Value]:
    """Give the host's addresses of a family that can be reached from elsewhere."""
    yield from (ip_network(item) for item in local if Family.of(item) is family and not item.is_loopback)


def _concerns(other: Translation, taking: Taking, order: Order) -> bool:
    """Whether a rule may be about an opening.

    One for all addresses, which ours comes before, is not meant for an address that is there for one guest alone.
    """
    if other.place.family not in ("inet", "ip" if taking.family is Family.IPV4 else "ip6"):
        return False
    return taking.shared or order is not Order.OURS or Field.DESTINATION in other.scope


def _scope(taking: Taking, here: tuple[Value, ...]) -> Scope:
    scope: dict[Field, tuple[Value, ...]] = {
        Field.DESTINATION: here if taking.address is None else (ip_network(taking.address),)
    }
    if taking.protocol is not None:
        scope |= {Field.PROTOCOL: (taking.protocol,), Field.PORT: (taking.ports,)}
    if taking.interface is not None:
        scope[Field.INTERFACE] = (taking.interface,)
    if taking.sources:
        scope[Field.SOURCE] = taking.sources
    return scope


def ports_of(scope: Scope) -> Sequence[PortRange]:
    """Give the ports that a scope has, which are all where it names none."""
    found = scope.get(Field.PORT, (EVERY_PORT,))
    return [ports for ports in found if isinstance(ports, PortRange)]


def _ports_in_question(taking: Taking, shared: Scope) -> set[tuple[PortRange, str]]:
    several = shared.get(Field.PROTOCOL, ()) if taking.protocol is None else ()
    return {(ports, str(protocol)) for protocol in several or [""] for ports in ports_of(shared)}


# --- in words --------------------------------------------------------------------------------------------------------


def _sentence(rivalry: _Rivalry, owner: str, order: Order) -> str:
    taking, who = rivalry.taking, "somebody" if owner == ADMIN else owner
    follows = order % (taking.reaching("from outside"), taking.owner)
    return taking.tell(f"{who} forwards {_what(rivalry)} too (in {_where(rivalry)}), {follows}")


def _what(rivalry: _Rivalry) -> str:
    named = [f"{ports}/{name}" if name else str(ports) for ports, name in sorted(rivalry.ports) if ports != EVERY_PORT]
    return "it" if rivalry.taking.is_one_port or not named else listed(named)


def _where(rivalry: _Rivalry) -> str:
    """Name the first of the chains, so that the sentence is the same the next time."""
    place = min(rivalry.places, key=lambda place: (place.system, place.family, place.table, place.chain))
    table = f"{place.family} {place.table} {place.chain}"
    return shown(f"legacy {table}" if place.system is System.LEGACY else table)
