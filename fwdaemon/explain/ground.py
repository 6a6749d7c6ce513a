"""What every part of the walk through the kernel stands on. Pure, but for the `World` it asks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from fwdaemon.explain.arrival import Arrival, surroundings
from fwdaemon.explain.chain_steps import Judge
from fwdaemon.explain.facts import World
from fwdaemon.explain.owners import OURS, owner_of
from fwdaemon.explain.packet import Packet, Surroundings
from fwdaemon.explain.rules import BaseChain
from fwdaemon.model import Address, PortRange, Subnet, show_endpoint


@dataclass(frozen=True, slots=True)
class Target:
    """Where a connection is to go: a guest's address and port, and what leads there.

    `translated` says that a rule of ours has to send it there; a route needs none. `bridge` and `port` are where the
    guest is plugged in, `subnet` that of its network, where they are known.
    """

    address: Address
    number: int
    translated: bool = True
    bridge: str | None = None
    port: str | None = None
    subnet: Subnet | None = None

    def __str__(self) -> str:
        return show_endpoint(self.address, PortRange(self.number, self.number))


@dataclass(frozen=True, slots=True)
class Ground:
    """The host and the connection: every chain there is, and what rules ask of the host besides the packet."""

    arrival: Arrival
    world: World
    judge: Judge
    chains: Sequence[BaseChain]
    around: Surroundings

    @classmethod
    def of(cls, arrival: Arrival, world: World, judge: Judge) -> Self:
        """Look at the host."""
        return cls(arrival, world, judge, world.chains(), surroundings(arrival, world.addresses(), world))


def is_ours(packet: Packet) -> bool:
    """Whether a rule of ours sent a packet where it goes."""
    return packet.translated_by is not None and owner_of(packet.translated_by) == OURS


def leads_to(packet: Packet, target: Target) -> bool:
    """Whether a packet goes where it shall, by whom it shall."""
    if not target.translated:
        return packet.translated_by is None
    return is_ours(packet) and (packet.destination, packet.port) == (target.address, target.number)
