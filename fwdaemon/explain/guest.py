"""The steps that libvirt is asked about: the domain, its address and the source of that, where it is plugged in. Pure.

A guest may also be who connects; then these steps come first.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from uuid import UUID

from fwdaemon.audit.causes import why
from fwdaemon.config.model import Config, ForwardEntry, GuestEntry, RouteEntry
from fwdaemon.core.inventory import Domain, GuestInterface, Hindrance, HindranceKind, Inventory, Network
from fwdaemon.core.state import Desired, Waiting
from fwdaemon.core.text import shown
from fwdaemon.core.types import Address, Family, Origin, Protocol
from fwdaemon.explain import remedies
from fwdaemon.explain.arrival import Arrival, Request
from fwdaemon.explain.delivery import Delivery
from fwdaemon.explain.entrance import Entrance, HostContext, Judge, Target
from fwdaemon.explain.report import RELOAD, Cause, Report, Step, World, fine, unknown, wrong
from fwdaemon.resolve.addresses import SubnetIndex
from fwdaemon.resolve.guests import Absence, Guest, GuestFinder
from fwdaemon.resolve.neighbours import paths

# Where a guest that was named on the command line is asked for: its address comes from libvirt, and no entry says it.
_ASKED: Final = Origin(Path("--from"), 0)


@dataclass(frozen=True, slots=True)
class Libvirt:
    """What libvirt said: an inventory, or why there is none. `homes` gives the URI that knows a domain."""

    inventory: Inventory | None
    fault: str = ""
    homes: Mapping[UUID, str] = field(default_factory=dict)

    @property
    def bridges(self) -> frozenset[str]:
        """The bridges that guests are plugged into."""
        if self.inventory is None:
            return frozenset()
        networks = {network.bridge for network in self.inventory.every_network}
        plugged = {item.bridge for domain in self.inventory.domains for item in domain.interfaces}
        return frozenset(bridge for bridge in networks | plugged if bridge is not None)

    @property
    def ports(self) -> frozenset[str]:
        """The host's side of guests' interfaces."""
        domains = self.inventory.domains if self.inventory is not None else ()
        devices = (item.device for domain in domains for item in domain.interfaces)
        return frozenset(device for device in devices if device is not None)


class GuestWalk:
    """The steps of one entry in one family; `guest` is there once they found one."""

    def __init__(self, config: Config, libvirt: Libvirt, inventory: Inventory, family: Family, world: World) -> None:
        self._config = config
        self._homes = libvirt.homes
        self._inventory = inventory
        self._family = family
        self._world = world
        self._finder = GuestFinder(inventory, config.guest_entries)
        self._networks = {network.name: network for network in inventory.networks}
        self.guest: Guest | None = None

    def of_guest(self, entry: GuestEntry) -> Iterator[Step]:
        """Look for the entry's guest."""
        domain = self._finder.running(entry)
        if isinstance(domain, Absence):
            yield self._absent(entry, domain)
            return
        yield fine("domain", f"{shown(domain.name)} runs")
        found = self._finder.locate(entry, domain, self._family)
        if isinstance(found, Hindrance):
            yield self._refused(entry, domain, found)
            return
        self.guest = found
        yield fine("guest", f"{found.address} is its address, from {_how_learned(entry, found)}")
        yield from self._plugged(found.interface)

    def of_network(self, entry: RouteEntry) -> Iterator[Step]:
        """Look for the network of a route."""
        network = self._networks.get(entry.network)
        if network is None:
            names = ", ".join(shown(name) for name in sorted(self._networks)) or "none"
            remedy = f"Write a network that libvirt has ({names}) in {entry.origin}, and {RELOAD}."
            yield wrong("network", f"libvirt knows no network {shown(entry.network)}", Cause.NO_SUCH_NETWORK, remedy)
        elif not network.active:
            yield self._inactive(network, ())
        else:
            yield fine("network", f"{shown(network.name)} is active, on bridge {shown(network.bridge or 'none')}")

    def _absent(self, entry: GuestEntry, absence: Absence) -> Step:
        meant = self._finder.meant(entry.domain)
        text = f"{shown(absence.name)}: {why(absence.reason)}"
        if meant is None:
            names = (other.name for other in self._inventory.domains)
            return wrong("domain", text, Cause.NO_SUCH_DOMAIN, remedies.name_domain(entry, names))
        return wrong("domain", text, Cause.DOMAIN_NOT_RUNNING, remedies.start_domain(meant, self._home(meant)))

    def _refused(self, entry: GuestEntry, domain: Domain, hindrance: Hindrance) -> Step:
        """Say why no address is believed, and what would change that."""
        text = f"{shown(domain.name)}: {why(hindrance)}"
        match hindrance.kind:
            case HindranceKind.NETWORK_NOT_ACTIVE:
                network = self._networks[hindrance.names[0]]
                return self._inactive(network, _plugs(domain, network))
            case HindranceKind.USER_MODE | HindranceKind.MACVTAP:
                return self._unreachable(domain, hindrance, text)
        interface = self._meant(entry, domain)
        if entry.address is not None:
            return self._configured_wrong(entry, interface, entry.address, text)
        if interface is None:
            return wrong("guest", text, Cause.ADDRESS_REFUSED, f"Fix {entry.origin}, and {RELOAD}: {text}.")
        if any(Family.of(claim.address) is self._family for claim in interface.learned):
            remedy = f"Give the guest an address of its own network, or write address = … in {entry.origin}: {text}."
            return wrong("guest", text, Cause.ADDRESS_REFUSED, remedy)
        return self._silent(entry, interface, text)

    def _unreachable(self, domain: Domain, hindrance: Hindrance, text: str) -> Step:
        name = next((item.name for item in self._inventory.networks if item.active and item.subnets), None)
        remedy = remedies.give_interface(domain, self._home(domain), name)
        if hindrance.kind is HindranceKind.MACVTAP:
            remedy = f"Connect to the guest's own address, as it is a machine of that network itself; or {remedy}"
        return wrong("guest", text, Cause.NOT_REACHED, f"{remedy[0].upper()}{remedy[1:]}")

    def _configured_wrong(
        self, entry: GuestEntry, interface: GuestInterface | None, address: Address, text: str
    ) -> Step:
        remedy = f"Write the guest's own address instead of {address} in {entry.origin}, and {RELOAD}."
        if interface is not None and self._is_routable(interface, address):
            remedy = remedies.route_address(address, interface.bridge or "", entry.origin)
        return wrong("guest", text, Cause.ADDRESS_REFUSED, remedy)

    def _is_routable(self, interface: GuestInterface, address: Address) -> bool:
        """Whether a route is all that lacks: on a bridge where the host has single addresses only."""
        subnets = SubnetIndex(self._inventory).of(interface)
        single = all(subnet.num_addresses == 1 for subnet in subnets)
        taken = any(own.address == address for own in self._inventory.host_addresses)
        return bool(subnets) and single and interface.bridge is not None and not taken

    def _silent(self, entry: GuestEntry, interface: GuestInterface, text: str) -> Step:
        subnets = SubnetIndex(self._inventory).of(interface)
        if subnets and all(Family.of(subnet) is not self._family for subnet in subnets):
            where = shown(interface.network or interface.bridge or interface.mac)
            remedy = f"Give network {where} an IPv{self._family} subnet, and the guest an address in it."
            return wrong("guest", text, Cause.WRONG_FAMILY, remedy)
        remedy = f"Let the guest take an address by DHCP, or write its address = … in {entry.origin} and {RELOAD}."
        return wrong("guest", text, Cause.NO_ADDRESS, remedy)

    def _meant(self, entry: GuestEntry, domain: Domain) -> GuestInterface | None:
        """Give the interface an entry means, where that is clear whatever the networks are like."""
        named = [
            item
            for item in domain.interfaces
            if entry.network in (None, item.network) and entry.mac in (None, item.mac)
        ]
        return named[0] if len(named) == 1 else None

    def _inactive(self, network: Network, plugs: Sequence[tuple[str, str]]) -> Step:
        uri = self._config.daemon.libvirt[0]
        text = f"network {shown(network.name)} is not active"
        return wrong("network", text, Cause.NETWORK_NOT_ACTIVE, remedies.start_network(network.name, uri, plugs))

    def _plugged(self, interface: GuestInterface) -> Iterator[Step]:
        device, bridge = interface.device, interface.bridge
        if device is None or bridge is None:
            yield unknown("plugged in", "libvirt names no bridge that the guest is plugged into")
        elif not self._is_plugged(interface):
            text = f"{shown(device)}, the guest's interface, is not plugged into {shown(bridge)}"
            yield wrong("plugged in", text, Cause.UNPLUGGED, remedies.plug_in(device, bridge))
        else:
            yield fine("plugged in", f"{shown(device)} is a port of {shown(bridge)}")

    def _is_plugged(self, interface: GuestInterface) -> bool:
        """Whether the kernel has the guest's interface where libvirt put it."""
        if interface.device is None or interface.bridge is None:
            return False
        return self._world.bridge_of(interface.device) == interface.bridge

    def _home(self, domain: Domain) -> str:
        return self._homes.get(domain.uuid, self._config.daemon.libvirt[0])


def _plugs(domain: Domain, network: Network) -> list[tuple[str, str]]:
    """Give what of the domain was plugged into the network's bridge, with that bridge."""
    devices = (item.device for item in domain.interfaces if item.network == network.name)
    return [(device, network.bridge) for device in devices if device and network.bridge]


def _how_learned(entry: GuestEntry, guest: Guest) -> str:
    if entry.address is not None:
        return f"the configuration, {entry.origin}"
    source = next(claim.source for claim in guest.interface.learned if claim.address == guest.address)
    return f"the {source}"


# What a guest sends. Pure.


def sender(
    request: Request, config: Config, libvirt: Libvirt, world: World
) -> tuple[Sequence[Step], Guest | None, Request]:
    """Find the guest that a connection is to come from, if one is named, in the family of where it goes."""
    if not request.domain:
        return (), None, request
    inventory = libvirt.inventory
    if inventory is None:
        remedy = f"{remedies.START_LIBVIRT[0].upper()}{remedies.START_LIBVIRT[1:]}."
        return [wrong("libvirt", libvirt.fault, Cause.LIBVIRT_UNREACHABLE, remedy)], None, request
    if (domain := GuestFinder(inventory, ()).meant(request.domain)) is None:
        return [_no_domain(request, inventory)], None, request
    entry, steps = ForwardEntry(str(domain.uuid), (), _ASKED), list[Step]()
    for family in Family if request.address is None else [Family.of(request.address)]:
        walk = GuestWalk(config, libvirt, inventory, family, world)
        steps = list(walk.of_guest(entry))
        if walk.guest is not None:
            return steps, walk.guest, replace(request, source=walk.guest.address)
    return steps, None, request


def _no_domain(request: Request, inventory: Inventory) -> Step:
    names = ", ".join(shown(other.name) for other in inventory.domains) or "none"
    remedy = f"Write an address, a network, or a domain that libvirt has ({names}) after --from."
    return wrong("domain", f"libvirt has no domain {shown(request.domain)}", Cause.NO_SUCH_DOMAIN, remedy)


def away(arrival: Arrival, world: World, libvirt: Libvirt, judge: Judge, desired: Desired) -> Report:
    """Follow what a guest sends to another machine."""
    route = world.route(arrival.address, arrival.source, arrival.came_in)
    # The kernel answers no such question where the host does not forward.
    device = route.device or (world.route(arrival.address).device if not route.rule else None)
    networks = libvirt.inventory.every_network if libvirt.inventory is not None else ()
    ways = {(path.family, path.came_in, path.goes_out) for path in paths(networks, desired.uplinks)}
    judge = replace(judge, is_guests=True, has_path=(arrival.family, arrival.came_in, device) in ways)
    steps = list(_going_out(HostContext.of(arrival, world, judge, desired), device, route.rule))
    return Report(f"{arrival} from {arrival.client}", steps, f"what the guest sends to {arrival} leaves this host")


def _going_out(context: HostContext, device: str | None, rule: str) -> Iterator[Step]:
    arrival = context.arrival
    if rule:
        text = f"nothing goes from {arrival.source} to {arrival.address}, by the rule of policy routing {rule}"
        remedy = remedies.ruled_away(rule, arrival.stand_in, arrival.address)
        yield wrong("policy routing", text, Cause.ON_PURPOSE, remedy)
    elif device is None:
        remedy = f"Give this host a route to {arrival.address}: its guests go out by the routes of the host."
        yield wrong("route", f"no route leads to {arrival.address}", Cause.ROUTE_ASTRAY, remedy)
    elif device == arrival.came_in:
        yield fine("route", f"{arrival.address} is on {shown(device)}, the guest's own link")
    else:
        yield fine("route", f"{arrival.address} is no address of this host, which sends it on by {shown(device)}")
        entrance = Entrance(context)
        yield from entrance.enter()
        yield from Delivery(context, entrance).go_out(device)


def carried(arrival: Arrival, target: Target) -> Step:
    """Say how what is for a loopback address gets to a guest."""
    if arrival.protocol is Protocol.SCTP:
        text = f"forwards of SCTP do not answer on {arrival.address}"
        return wrong("proxy", text, Cause.LOCALHOST_OFF, "Connect to another address of this host instead.")
    where = f"port {target.number} of {target.address}"
    return fine("proxy", f"the daemon listens on {arrival.address} and opens a connection of the host's own to {where}")


def is_for(refused: Waiting, arrival: Arrival) -> bool:
    """Whether what is refused asks for what arrives."""
    claim = refused.claim
    if claim is None or (claim.ports, claim.address) == (None, None):
        return False
    return claim.takes(arrival.protocol, arrival.address, arrival.port)


def held_back(refused: Waiting, main: str) -> Step:
    """Say why what an entry or a domain asks for is not given, and what would give it."""
    text, there = f"{refused.origin} asks for it and is refused: {why(refused.reason)}", _written_at(refused.origin)
    match refused.reason.kind:
        case HindranceKind.NOT_ALLOWED:
            remedy = f"Where the domain is to have it, write an [[allow]] for that in {main}, and {RELOAD}."
            return wrong("entry", text, Cause.NOT_ALLOWED, remedy)
        case HindranceKind.NOT_OWN:
            remedy = f"Write an address that the guest has, or none, in {there}."
            return wrong("entry", text, Cause.ADDRESS_REFUSED, remedy)
        case HindranceKind.SOCKETS_UNKNOWN:
            remedy = f"Write a [[forward]] for this domain alone into {main}, and {RELOAD}."
            return wrong("entry", text, Cause.UNCLAIMED, remedy)
    what = "public address" if _is_public(refused) else "port of the host"
    return wrong("entry", text, Cause.CLAIMED, f"Write another {what} in {there}{_freed(refused)}.")


def _written_at(origin: Origin) -> str:
    return f"the metadata of domain {shown(origin.domain)}" if origin.domain else f"{origin} and {RELOAD}"


def _is_public(refused: Waiting) -> bool:
    return refused.claim is not None and refused.claim.ports is None


def _freed(refused: Waiting) -> str:
    """Say how else it can be had, where something can give it up."""
    reason = refused.reason
    if reason.names:
        place = f" ({reason.origin})" if reason.origin is not None else ""
        return f", or take this one away from {' and '.join(map(shown, reason.names))}{place}"
    return "" if _is_public(refused) else ", or have the process that has it listen elsewhere"
