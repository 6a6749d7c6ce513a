"""Which open connections a change of the forwards invalidates. Pure; `fwdaemon.conntrack` reads and ends them.

NAT decides on a connection's first packet, and the kernel remembers. A connection of a forward that went, or leads
elsewhere now, would go on with the old answer, so it is ended. So is a UDP flow that was open to the host itself before
a forward took its port: unlike TCP it has no end of its own, and its client would never reach the guest.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from fwdaemon.desired import Forward
from fwdaemon.model import Address, Family, Protocol


@dataclass(frozen=True, slots=True)
class Flow:
    """A tracked connection: who sent its first packet where, and who answers to whom.

    Without NAT, the `server` is the destination and the `client` the source.
    """

    protocol: Protocol
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


class Carriers:
    """Finds the live forward that carries a flow, in a time that does not grow with their number."""

    def __init__(self, live: Iterable[Forward]) -> None:
        self._exact: defaultdict[tuple[Protocol, Address, int], list[Forward]] = defaultdict(list)
        self._ranges: defaultdict[tuple[Protocol, Address], list[Forward]] = defaultdict(list)
        for forward in live:
            if forward.ports.width == 1:
                self._exact[forward.protocol, forward.target, forward.target_ports.first].append(forward)
            else:
                self._ranges[forward.protocol, forward.target].append(forward)

    def carry(self, flow: Flow) -> bool:
        """Whether some live forward sends the flow's client where the flow goes."""
        exact = self._exact.get((flow.protocol, flow.server, flow.server_port), [])
        ranges = self._ranges.get((flow.protocol, flow.server), [])
        return any(_carries(forward, flow) for forward in [*exact, *ranges])


def is_outdated(flow: Flow, carriers: Carriers) -> bool:
    """Whether a flow with our mark was led elsewhere by a forward that is not live any more."""
    return flow.translated and not carriers.carry(flow)


def is_claimed(flow: Flow, added: Iterable[Forward], local: Collection[Address]) -> bool:
    """Whether a UDP flow ends at the host itself, on a port that an added forward takes; `local` are its addresses."""
    return not flow.translated and any(
        _admits(forward, flow)
        and flow.destination_port in forward.ports
        and (flow.destination in local if forward.listen is None else flow.destination == forward.listen)
        for forward in added
        if forward.protocol is flow.protocol
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
