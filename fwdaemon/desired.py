"""The desired state as plain data: which forwards are to be live now, and why the others wait.

How it follows from configuration and inventory is in `fwdaemon.placing`; how a forward becomes rules is the backends'
business.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from fwdaemon.config.model import Gate, Origin
from fwdaemon.model import Address, Family, PortRange, Protocol, Subnet, show_endpoint


@dataclass(frozen=True, slots=True)
class Forward:
    """One live forward of one family: packets to `listen` and `ports` go to `target` and `target_ports`.

    `listen` is `None` for every local address. Empty `sources` let anyone in; otherwise all are of this forward's
    family. `domain` is the name libvirt knows, any text. `bridge_port` is the host's side of the guest's interface;
    another one, as after a reboot, does not make it another forward.
    """

    domain: str
    protocol: Protocol
    listen: Address | None
    ports: PortRange
    target: Address
    target_ports: PortRange
    interface: str | None = None
    sources: tuple[Subnet, ...] = ()
    bridge_port: str | None = field(default=None, compare=False)
    origin: Origin | None = field(default=None, compare=False)

    @property
    def family(self) -> Family:
        """The family of both sides."""
        return Family.of(self.target)

    def listens_at(self) -> str:
        """Where it listens, for people and the audit: `tcp 198.51.100.7:8443`."""
        return f"{self.protocol} {show_endpoint(self.listen, self.ports)}"

    def leads_to(self) -> str:
        """Where it leads, for people and the audit: `192.168.122.50:443`."""
        return show_endpoint(self.target, self.target_ports)


@dataclass(frozen=True, slots=True)
class Waiting:
    """An entry, or one family of it, that has no live forward, with the reason as a short sentence.

    `stopped` says that the reason is the domain not running.
    """

    domain: str
    reason: str
    origin: Origin = field(compare=False)
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Desired:
    """Everything the kernel is to do for us.

    `guest_subnets` are where hairpin connections may come from and go to; `gates` are the foreign chains, besides
    those we know, that are to let marked connections through. `kept` are families that had forwards before: their
    tables stay, to go on refusing what is left of connections that were ended.
    """

    forwards: frozenset[Forward] = frozenset()
    waiting: tuple[Waiting, ...] = ()
    guest_subnets: frozenset[Subnet] = frozenset()
    mark: int = 0x02000000
    gates: tuple[Gate, ...] = ()
    kept: frozenset[Family] = frozenset()

    def of_family(self, family: Family) -> Iterator[Forward]:
        """The forwards of one family, in no particular order."""
        return (forward for forward in self.forwards if forward.family is family)

    @property
    def families(self) -> frozenset[Family]:
        """The families that need anything in the kernel."""
        return self.kept.union(forward.family for forward in self.forwards)
