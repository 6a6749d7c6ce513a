"""Which open connections a change of the openings invalidates. Pure; `fwdaemon.conntrack` reads and ends them.

NAT decides on a connection's first packet, and the kernel remembers. A connection of an opening that went, or leads
elsewhere now, would go on with the old answer, so it is ended. So is a flow without an end of its own (UDP, pings) that
was open to the host itself before an opening took its port: its client would never reach the guest.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from fwdaemon.desired import Forward, Nat, Opening, Route
from fwdaemon.model import Address, Family, Protocol


@dataclass(frozen=True, slots=True)
class Flow:
    """A tracked connection: who sent its first packet where, and who answers to whom.

    Without NAT, the `server` is the destination and the `client` the source. `protocol` is `None`, and ports are 0,
    where a protocol has no ports that a forward could name.
    """

    protocol: Protocol | None
    source: Address
    destination: Address
    destination_port: int
    server: Address
    server_port: int
    client: Address
    client_port: int

    @property
    def family(self) -> Family:
        """The family, which NAT does not change."""
        return Family.of(self.server)

    @property
    def translated(self) -> bool:
        """Whether somebody's DNAT leads it elsewhere than its client thinks."""
        return (self.destination, self.destination_port) != (self.server, self.server_port)


def reaching(live: Iterable[Opening], flows: Iterable[Flow]) -> Iterator[Opening]:
    """Give the openings that could carry any of these flows; of many, that is less work than to index all."""
    ends = {end for flow in flows for end in (flow.server, flow.source)}
    if ends:
        yield from (opening for opening in live if isinstance(opening, Route) or opening.target in ends)


class Carriers:
    """Finds the live opening that carries a flow, in a time that does not grow with the number of openings."""

    def __init__(self, live: Iterable[Opening]) -> None:
        self._exact: defaultdict[tuple[Protocol, Address, int], list[Forward]] = defaultdict(list)
        self._ranges: defaultdict[tuple[Protocol, Address], list[Forward]] = defaultdict(list)
        self._nats: dict[tuple[Address, Address], Nat] = {}
        self._prefixes: defaultdict[tuple[Family, int], dict[int, Route]] = defaultdict(dict)
        for opening in live:
            self._add(opening)

    def _add(self, opening: Opening) -> None:
        match opening:
            case Nat():
                self._nats[opening.target, opening.public] = opening
            case Route(subnet=subnet):
                shift = subnet.max_prefixlen - subnet.prefixlen
                self._prefixes[opening.family, shift][int(subnet.network_address) >> shift] = opening
            case Forward() if opening.ports.width == 1:
                self._exact[opening.protocol, opening.target, opening.target_ports.first].append(opening)
            case Forward():
                self._ranges[opening.protocol, opening.target].append(opening)

    def carrier(self, flow: Flow) -> Opening | None:
        """Give the live opening that sends the flow's packets where they go, or lets its guest send them."""
        if not flow.translated:
            return self._leads_out(flow) or self._routed(flow.destination)
        if nat := self._is_to_public(flow):
            return nat
        if flow.protocol is None:
            return None
        exact = self._exact.get((flow.protocol, flow.server, flow.server_port), [])
        ranges = self._ranges.get((flow.protocol, flow.server), [])
        return next((forward for forward in [*exact, *ranges] if _carries(forward, flow)), None)

    def _is_to_public(self, flow: Flow) -> Nat | None:
        return self._nats.get((flow.server, flow.destination)) if flow.destination_port == flow.server_port else None

    def _leads_out(self, flow: Flow) -> Opening | None:
        """A guest opened it, under its public address or from a routed one."""
        return self._nats.get((flow.source, flow.client)) or self._routed(flow.source)

    def _routed(self, address: Address) -> Route | None:
        found = (
            networks.get(int(address) >> shift)
            for (family, shift), networks in self._prefixes.items()
            if family is Family.of(address)
        )
        return next((route for route in found if route is not None), None)


def is_outdated(flow: Flow, carriers: Carriers, local: Collection[Address]) -> bool:
    """Whether a flow with our mark belongs to an opening that is not live any more; `local` are the host's addresses.

    Without DNAT, we mark only what passes through the host, so a flow of the host itself is not ours.
    """
    of_host = not flow.translated and (flow.source in local or flow.destination in local)
    return not of_host and carriers.carrier(flow) is None


def is_claimed(flow: Flow, added: Iterable[Forward | Nat], local: Collection[Address]) -> bool:
    """Whether a flow ends at the host itself, where an added opening takes it; `local` are the host's addresses."""
    return not flow.translated and any(
        opening.public == flow.destination if isinstance(opening, Nat) else _claims(opening, flow, local)
        for opening in added
    )


def _claims(forward: Forward, flow: Flow, local: Collection[Address]) -> bool:
    return (
        forward.protocol is flow.protocol
        and _admits(forward, flow)
        and flow.destination_port in forward.ports
        and (flow.destination in local if forward.listen is None else flow.destination == forward.listen)
    )


def _carries(forward: Forward, flow: Flow) -> bool:
    shift = forward.target_ports.first - forward.ports.first
    return (
        forward.listen in {None, flow.destination}
        and flow.destination_port in forward.ports
        and flow.server_port == flow.destination_port + shift
        and _admits(forward, flow)
    )


def _admits(forward: Forward, flow: Flow) -> bool:
    return not forward.sources or any(flow.source in subnet for subnet in forward.sources)
