"""Follows the whole way of a connection, step by step. Pure, but for the `World` it asks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Final

from fwdaemon.config.model import Config, NatEntry, RouteEntry
from fwdaemon.config.sets import networks_named
from fwdaemon.core.admission import Gatekeeper
from fwdaemon.core.inventory import HostAddress, Inventory
from fwdaemon.core.state import Desired, Waiting
from fwdaemon.core.text import shown
from fwdaemon.core.types import Address, Family, Origin, Protocol
from fwdaemon.errors import ConfigError
from fwdaemon.explain import remedies
from fwdaemon.explain.arrival import (
    Arrival,
    Claim,
    Request,
    arrive,
    between_others,
    claims_on,
    device_of,
    endpoint,
    exposure_of,
    facing,
    nearest,
    preferred_addresses,
)
from fwdaemon.explain.delivery import Delivery, WayBack, WayOut
from fwdaemon.explain.entrance import Entrance, HostContext, Judge, Target
from fwdaemon.explain.guest import GuestWalk, Libvirt, away, carried, held_back, is_for, sender
from fwdaemon.explain.report import (
    RELOAD,
    START_COMMAND,
    Cause,
    GuestAnswer,
    Report,
    Step,
    World,
    command,
    fine,
    unknown,
    wrong,
)
from fwdaemon.resolve.expansion import Before, Expander
from fwdaemon.resolve.guests import Guest
from fwdaemon.resolve.placement import Placement
from fwdaemon.resolve.sharing import Grants, grants

_NOBODY: Final = Inventory()
_NOTHING: Final = Before()
_MOST_PROBLEMS: Final = 3


def refused(request: Request, error: ConfigError, world: World) -> Report:
    """Say so of a connection under a configuration that is refused; what the daemon goes by is an older one."""
    problems = "; ".join(map(str, error.problems[:_MOST_PROBLEMS]))
    more = len(error.problems) - _MOST_PROBLEMS
    listed = f"{problems}; and {more} more, see {command('kvm-portfwd check')}" if more > 0 else problems
    remedy = f"Fix {listed}; and {RELOAD}."
    step = wrong("configuration", "it is refused", Cause.CONFIGURATION_REFUSED, remedy)
    return Report(str(request), (step,), "", daemon_runs=world.daemon() is not None)


def explain(  # noqa: PLR0913  it follows from that many sources
    request: Request, config: Config, libvirt: Libvirt, world: World, main: str, *, before: Before = _NOTHING
) -> Report:
    """Follow a connection through the host; `main` is the main file of the configuration, for remedies.

    `before` are the ports that are assigned, and who came in which order.

    Raises:
        PortfwdError: the kernel could not be asked.

    """
    held = world.addresses()
    granted = grants(config, libvirt.inventory or _NOBODY, before.ports, before.turns[0])
    held_back = granted.refused
    if libvirt.inventory is not None:
        config, waiting = _expanded(granted, libvirt.inventory, before)
        held_back += tuple(item for item in waiting if item.refused)
    steps, guest, request = sender(request, config, libvirt, world)
    if request.domain and guest is None:
        return Report(str(request), steps, "", daemon_runs=world.daemon() is not None)
    arrival = arrive(request, preferred_addresses(config, request, held), libvirt.bridges, world)
    report = _Trace(config, libvirt, world, main, held, held_back, guest).report(arrival)
    return replace(report, steps=[*steps, *report.steps], daemon_runs=world.daemon() is not None)


def _expanded(granted: Grants, inventory: Inventory, before: Before) -> tuple[Config, tuple[Waiting, ...]]:
    """Give an entry for each domain, and what they wait for; a pattern that no running domain matches stays."""
    config, domains, turns = granted.config, inventory.domains, before.of_these_runs(inventory.domains)[1]
    occupied = granted.occupied(before.occupied, inventory.every_network)
    expansion = Expander(config, turns).expand(domains, before.ports, occupied)
    running = {str(domain.uuid) for domain in domains if domain.running}
    own = sorted(expansion.entries.items(), key=lambda item: (item[0][1] not in running, item[0]))
    matched = {number for (number, uuid), _ in own if uuid in running}
    written = [
        entry
        for number, entry in enumerate(config.forwards)
        if not entry.is_open or (entry.is_pattern and number not in matched)
    ]
    return replace(config, forwards=(*written, *(entry for _, entry in own))), expansion.waiting


@dataclass(frozen=True, slots=True)
class _Trace:
    config: Config
    libvirt: Libvirt
    world: World
    main: str
    held: Sequence[HostAddress]
    refused: tuple[Waiting, ...] = ()
    guest: Guest | None = None

    def report(self, arrival: Arrival) -> Report:
        desired = Placement(self.config, self.libvirt.inventory or _NOBODY).desired
        desired = replace(desired, waiting=(*desired.waiting, *self.refused))
        claims = claims_on(self.config, arrival)
        claim = _chosen(claims, desired, arrival)
        if claim is not None and arrival.source is None:
            arrival = self._as_admitted(claim, arrival)
        daemon = self.world.daemon()
        judge = Judge(arrival, self.config.daemon, daemon is not None, self.main)
        context = HostContext.of(arrival, self.world, judge, desired)
        entrance = Entrance(context)
        # At a loopback address the daemon listens itself; what else does is among the problems of the status.
        sockets = [] if arrival.address.is_loopback and claim is not None else self._sockets(arrival, claim)
        steps = [self._address(arrival, claim), *sockets]
        if claim is None:
            if (passing := self._passing(arrival, judge, desired)) is not None:
                return passing
            steps += [self._unclaimed(arrival), *entrance.enter(), *entrance.into_host()]
            return Report(f"{arrival} from {arrival.client}", steps, "", entry=self._meant(arrival))
        steps.append(self._entry(claim, arrival))
        if (admission := self._admission(claim, arrival, desired)) is not None:
            steps.append(admission)
            if admission.cause is not None:
                leads = f"{arrival} is for {shown(_owner(claim))}"
                return Report(f"{arrival} from {arrival.client}", steps, leads, entry=claim.origin)
        steps.append(self._daemon(daemon))
        by_proxy = arrival.address.is_loopback
        inside = [] if by_proxy else list(entrance.enter())
        guest_steps, target = self._target(claim, desired, arrival, None if by_proxy else entrance.led_to())
        steps += [*guest_steps, *inside]
        if target is not None:
            delivery = Delivery(context, entrance)
            if by_proxy:
                steps.append(carried(arrival, target))
            else:
                if claim.admits(arrival) and claim.takes_from(arrival):
                    steps.append(entrance.translation(target))
                steps += delivery.leave(target, self.config.daemon.label)
            steps += self._answer(arrival, target, claim, delivery)
            if self.libvirt.inventory is not None and claim.mapping is None:
                inner, chosen = self.libvirt.bridges | self.libvirt.ports, bool(self.config.daemon.uplinks)
                steps += WayOut(arrival, self.world, desired.uplinks, inner, chosen, self.main).steps(self.held)
        leads = f"{arrival} leads to {shown(_owner(claim))}" + (f", {target}" if target is not None else "")
        return Report(f"{arrival} from {arrival.client}", steps, leads, entry=claim.origin)

    def _passing(self, arrival: Arrival, judge: Judge, desired: Desired) -> Report | None:
        """Report what is for another machine, if a guest sends it, or if the host forwarded nothing before us."""
        if self.guest is not None and device_of(arrival.address, self.held) is None:
            return away(arrival, self.world, self.libvirt, judge, desired)
        crossing = between_others(arrival, self.world)
        if crossing is None:
            return None
        arrival, device = crossing
        context = HostContext.of(arrival, self.world, replace(judge, arrival=arrival), desired)
        entrance = Entrance(context)
        steps = [
            fine("address", f"{arrival.address} is no address of this host, which would send it on to {shown(device)}"),
            fine("entry", f"no entry of {self.main} claims it"),
            *entrance.enter(),
            *Delivery(context, entrance).pass_by(device),
        ]
        refused = any(step.cause is Cause.CONFINED for step in steps)
        return Report(f"{arrival} from {arrival.client}", steps, "") if refused else None

    # --- the host --------------------------------------------------------------------------------------------------

    def _address(self, arrival: Arrival, claim: Claim | None) -> Step:
        address = arrival.address
        device = device_of(address, self.held)
        if address.is_loopback:
            return self._loopback(arrival, claim)
        if device is not None:
            return fine("address", f"{address} is an address of this host, on {device}")
        if claim is not None and isinstance(claim.entry, RouteEntry):
            return fine("address", f"{address} is no address of this host, which routes it to a guest")
        own = facing(address, self.held)
        if own is not None and self.world.is_on_link(address):
            return self._held_elsewhere(arrival, own)
        if (claim is not None and not claim.everywhere and own is None) or arrival.from_host:
            doubt = f"{address} has to be routed to this host by the router upstream"
            return unknown("address", f"{address} is no address of this host, nor of a network it is on", doubt)
        return self._not_ours(arrival, own, claim)

    def _held_elsewhere(self, arrival: Arrival, own: HostAddress) -> Step:
        here = self._own_address(arrival.family)
        text = f"another machine on {shown(own.device)} has {arrival.address}, so this host gets no packets for it"
        remedy = (
            f"Ask the machine that has {arrival.address}, and do not give this host the same address: where it moves"
            f" between hosts, forwards on it work here from the moment it is here. Until then connect to {here}."
        )
        return wrong("address", text, Cause.HELD_ELSEWHERE, remedy)

    def _not_ours(self, arrival: Arrival, own: HostAddress | None, claim: Claim | None) -> Step:
        if claim is not None and isinstance(claim.entry, NatEntry) and (held_on := claim.entry.assign) is not None:
            text = f"{arrival.address} is to be on {shown(held_on)} of this host, and is not there yet"
            return wrong("address", text, Cause.NOT_OUR_ADDRESS, remedies.WAIT_FOR_ADDRESS)
        other = str(self._own_address(arrival.family) or "one of its own")
        device = own.device if own is not None else arrival.came_in
        remedy = remedies.hold_address(arrival.address, own.subnet if own else None, device, other)
        text = f"{arrival.address} is no address of this host, so no packets for it get here"
        return wrong("address", text, Cause.NOT_OUR_ADDRESS, remedy)

    def _loopback(self, arrival: Arrival, claim: Claim | None) -> Step:
        here = self._own_address(arrival.family)
        if not arrival.from_host:
            remedy = f"Connect to {here or 'another address of this host'} instead."
            return wrong("address", f"{arrival.address} is reached from this host only", Cause.ONLY_FROM_HOST, remedy)
        if claim is not None and not self.config.daemon.localhost:
            remedy = f"Write localhost = true under [daemon] in {self.main}, and {RELOAD}."
            text = f"forwards do not answer on {arrival.address} unless localhost = true"
            return wrong("address", text, Cause.LOCALHOST_OFF, remedy)
        return fine("address", f"{arrival.address} is this host itself")

    def _own_address(self, family: Family) -> Address | None:
        usable = (own.address for own in self.held if Family.of(own.address) is family)
        return next((item for item in usable if not (item.is_loopback or item.is_link_local)), None)

    def _sockets(self, arrival: Arrival, claim: Claim | None) -> Iterator[Step]:
        """Report a process of the host that listens there; a forward goes before it."""
        for listener in self.world.listeners():
            listens = arrival.family in listener.families and listener.address in (None, arrival.address)
            if listens and (listener.protocol, listener.port) == (arrival.protocol, arrival.port):
                who = shown(self.world.holder(listener) or "a process")
                ahead = "; the forward goes before it" if claim is not None else ""
                yield fine("host socket", f"{who} of this host listens there itself{ahead}")
                return
        yield fine("host socket", "no process of this host listens there")

    def _daemon(self, daemon: int | None) -> Step:
        if daemon is not None:
            return fine("daemon", f"it runs, process {daemon}")
        doubt = f"the daemon does not run, so nothing will follow what changes: {START_COMMAND}"
        return unknown("daemon", "it does not run", doubt)

    def _as_admitted(self, claim: Claim, arrival: Arrival) -> Arrival:
        """Take a client that may connect, where the user named none."""
        taken = {own.address for own in self.held}
        named = networks_named(claim.entry, self.config.sets)
        subnets = (subnet for subnet in named if Family.of(subnet) is arrival.family)
        hosts: Iterator[Address] = chain.from_iterable(islice(subnet.hosts(), len(taken) + 1) for subnet in subnets)
        client = next((address for address in hosts if address not in taken), None)
        return arrival if client is None else arrival.as_from(client)

    # --- the configuration -----------------------------------------------------------------------------------------

    def _unclaimed(self, arrival: Arrival) -> Step:
        if (refused := self._refused(arrival)) is not None:
            return held_back(refused, self.main)
        remedy = remedies.claim_port(nearest(self.config, arrival), arrival, self.main)
        return wrong("entry", f"no entry of {self.main} claims it", Cause.UNCLAIMED, remedy)

    def _refused(self, arrival: Arrival) -> Waiting | None:
        return next((item for item in self.refused if is_for(item, arrival)), None)

    def _meant(self, arrival: Arrival) -> Origin | None:
        """Give the entry that is refused, or that could claim what none claims."""
        found = self._refused(arrival) or nearest(self.config, arrival)
        return found.origin if found is not None else None

    def _entry(self, claim: Claim, arrival: Arrival) -> Step:
        text = f"{claim.origin} {claim}"
        if not claim.fits(arrival):
            remedy = f"Write another [[forward]] with the guest's IPv{arrival.family} address, and {RELOAD}."
            return wrong("entry", f"{text}, at an address of the other family", Cause.WRONG_FAMILY, remedy)
        if not claim.takes_from(arrival):
            text += f", but only what comes in by {claim.interface}"
            return wrong("entry", text, Cause.WRONG_INTERFACE, remedies.other_interface(claim, arrival))
        if not claim.admits(arrival):
            listed = ", ".join(map(str, claim.sources))
            text += f", but only from {listed}"
            source = arrival.source or arrival.stand_in
            return wrong("entry", text, Cause.SOURCE_REFUSED, remedies.admit(claim, source))
        return fine("entry", f"{text}, from {remedies.clients(claim.sources, claim.entry.admission)}")

    def _admission(self, claim: Claim, arrival: Arrival, desired: Desired) -> Step | None:
        """Whether sets or limits keep the client out; `None` where there are none of these."""
        asked, barred = claim.entry.admission, self.config.daemon.barred
        if asked is None and barred is None:
            return None
        if arrival.source is None:
            return fine("admission", f"who may connect depends on the client's address{remedies.limits(asked)}")
        sets = {item.name: item for item in self.config.sets}
        ranges = self.world.ranges([name for name, item in sets.items() if item.external])
        for admission, where in (barred, f"deny in [daemon] of {self.main}"), (asked, str(claim.origin)):
            refusal = Gatekeeper(sets, None, ranges).refusal(admission, arrival.source)
            if refusal is not None:
                text, remedy = remedies.denied(refusal, where, sets.get(refusal.name), arrival.source, self.world)
                return wrong("admission", text, Cause.ON_PURPOSE, remedy)
        exposure = exposure_of(claim, desired, arrival) if remedies.limits(asked) else None
        over = self.world.over_limit(desired, exposure.counted_as, arrival.source) if exposure is not None else 0
        text = f"nothing denies {arrival.source}{remedies.limits(asked)}"
        told = "what it may open is used up" if over is None else f"{over} of its first packets were dropped of late"
        return fine("admission", text) if over == 0 else unknown("admission", text, f"it may be over the limit: {told}")

    # --- the guest -------------------------------------------------------------------------------------------------

    def _target(
        self, claim: Claim, desired: Desired, arrival: Arrival, led: tuple[Address, int] | None
    ) -> tuple[list[Step], Target | None]:
        """Report the guest, and where the connection has to go; `led` is where our rules in the kernel send it."""
        if self.libvirt.inventory is None:
            return [self._no_libvirt(led)], Target(*led) if led is not None else None
        walk = GuestWalk(self.config, self.libvirt, self.libvirt.inventory, arrival.family, self.world)
        if isinstance(claim.entry, RouteEntry):
            steps = list(walk.of_network(claim.entry))
        else:
            steps = list(walk.of_guest(claim.entry))
        exposure = exposure_of(claim, desired, arrival)
        if exposure is not None:
            bridge = getattr(exposure, "bridge", None)
            return steps, self._placed(endpoint(exposure, arrival), bridge, walk.guest, claim)
        if led is not None and steps[-1].cause is Cause.NO_ADDRESS:
            # The daemon also asks agents, and remembers neighbours.
            steps[-1] = unknown("guest", f"{steps[-1].text}; but our rules, made earlier, lead to {led[0]}")
            return steps, Target(*led)
        return steps, None

    def _placed(self, to: tuple[Address, int], bridge: str | None, guest: Guest | None, claim: Claim) -> Target:
        if isinstance(claim.entry, RouteEntry):
            return Target(*to, translated=False, bridge=bridge, subnet=claim.entry.subnet)
        if guest is None:
            return Target(*to, bridge=bridge)
        subnet = next((own.subnet for own in self.held if to[0] in own.subnet and own.device == guest.bridge), None)
        links = frozenset(item.bridge for item in guest.domain.interfaces if item.bridge is not None)
        return Target(*to, bridge=guest.bridge, port=guest.bridge_port, subnet=subnet, links=links)

    def _no_libvirt(self, led: tuple[Address, int] | None) -> Step:
        if led is not None:
            return unknown("libvirt", f"{self.libvirt.fault}; rules made earlier stay", remedies.START_LIBVIRT)
        remedy = f"{remedies.START_LIBVIRT[0].upper()}{remedies.START_LIBVIRT[1:]}."
        return wrong("libvirt", self.libvirt.fault, Cause.LIBVIRT_UNREACHABLE, remedy)

    def _answer(self, arrival: Arrival, target: Target, claim: Claim, delivery: Delivery) -> Iterator[Step]:
        """Ask the guest itself, where its address is believed, and whether its answers come back."""
        if self.libvirt.inventory is None or not target.translated:
            yield self._not_asked(arrival, target)
            return
        near = self.world.ask_guest(target.address, target.number)
        yield self._judged(near, target) if arrival.protocol is Protocol.TCP else self._not_asked(arrival, target)
        if delivery.device is not None:
            renamed = bool(delivery.delivered) and all(packet.renamed for packet in delivery.delivered)
            hidden = renamed or claim.entry.masquerade
            way = WayBack(arrival, self.world, target, claim.entry, delivery.device, hidden)
            yield from way.from_guest(near, self.held)
            yield from way.to_client()

    def _not_asked(self, arrival: Arrival, target: Target) -> Step:
        where = f"{arrival.protocol} port {target.number} of {target.address}"
        return unknown("answer", f"this host cannot tell whether {where} answers", f"{where} was not asked")

    def _judged(self, near: GuestAnswer, target: Target) -> Step:
        where = f"{Protocol.TCP} port {target.number} of {target.address}"
        match near:
            case GuestAnswer.ANSWERS:
                return fine("answer", f"{where} answers")
            case GuestAnswer.REFUSES:
                remedy = f"Start the service in the guest: nothing listens on {where}."
                return wrong("answer", f"{where} refuses", Cause.GUEST_REFUSES, remedy)
            case GuestAnswer.SILENT:
                remedy = f"Have the guest's own firewall admit {where}, if it still has that address."
                return wrong("answer", f"{where} does not answer", Cause.GUEST_SILENT, remedy)
            case GuestAnswer.FORBIDDEN:
                return unknown("answer", f"this process may not connect to {where}", f"{where} was not asked")
        remedy = f"Give the guest the address {target.address}, or fix its network: nothing answers for it on the link."
        return wrong("answer", f"{target.address} is not there", Cause.GUEST_UNREACHABLE, remedy)


def _chosen(claims: list[Claim], desired: Desired, arrival: Arrival) -> Claim | None:
    """Choose the claim that takes the connection: one that is live, or else the one that comes nearest to it."""
    if arrival.address.is_loopback:
        claims = [claim for claim in claims if claim.everywhere and claim.interface is None]

    def lacks(claim: Claim) -> tuple[bool, bool, bool]:
        admitted = claim.takes_from(arrival) and claim.admits(arrival)
        return not claim.fits(arrival), not admitted, exposure_of(claim, desired, arrival) is None

    return min(claims, key=lacks, default=None)


def _owner(claim: Claim) -> str:
    return claim.entry.owner.name
