"""The steps from the interface a packet comes in by to the routing decision, translation included. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Self

from fwdaemon.config.model import DaemonSettings
from fwdaemon.core.bans import is_behind
from fwdaemon.core.report import LIBVIRT_TABLE
from fwdaemon.core.state import Desired
from fwdaemon.core.text import shown
from fwdaemon.core.types import Address, Family, Gate, PortRange, Subnet, show_endpoint
from fwdaemon.explain import remedies
from fwdaemon.explain.arrival import Arrival, behind_others, surroundings
from fwdaemon.explain.report import Cause, Step, StepState, World, command, fine, unknown, wrong
from fwdaemon.kernel.sysctl import of_interface
from fwdaemon.legacy.model import FWD, OWN_CHAINS
from fwdaemon.nftables.dispatch_chains import NEWCOMERS, STRANGERS
from fwdaemon.nftables.gates import wanted_gates
from fwdaemon.rulesets.evaluation import Judgement, Passage, Way, asks_who, through, translations
from fwdaemon.rulesets.packet import (
    ADMIN,
    BANNING,
    OURS,
    BaseChain,
    Packet,
    RuleLocation,
    Surroundings,
    System,
    owner_of,
    owners_of,
)

# A step for each base chain on the way, and what to do about one that refuses. Pure.


@dataclass(frozen=True, slots=True)
class Judge:
    """Says what chains' judgements mean for one connection.

    `daemon_runs` decides who is to mend a gate; `main` is the main file of the configuration. `is_guests` says that a
    guest opens it, and `has_path` that `keep_guests_online` is for the way it takes.
    """

    arrival: Arrival
    settings: DaemonSettings
    daemon_runs: bool
    main: str
    is_guests: bool = False
    has_path: bool = False

    def steps(self, passages: Iterable[Passage], end: remedies.End) -> Iterator[Step]:
        """Give a step for each chain; `end` distinguishes the packets of this connection from others there."""
        for passage in passages:
            yield self._step(passage, end)

    def _step(self, passage: Passage, end: remedies.End) -> Step:
        chain = passage.chain
        policy = "accept" if chain.accepts else "drop"
        text = f"{describe(chain)} ({chain.priority}, policy {policy}, {owners_of(chain)})"
        match passage.judgement, passage.culprit:
            case Judgement.REFUSES, RuleLocation() as culprit:
                cause, remedy = Cause.CONFINED, remedies.make_router(self.arrival.family, self.main)
                if _is_confining_one(culprit):
                    remedy = remedies.forward_from(self.arrival.came_in, self.main)
                elif not _is_confining(culprit):
                    cause, remedy = self._remedy(passage, culprit, end)
                said = f"{text} refuses: {_format_culprit(culprit)}"
                return Step(chain.hook, StepState.WRONG, said, cause, remedy, passage)
            case Judgement.MAY_REFUSE, RuleLocation() as culprit:
                said = f"{text} may refuse, which cannot be decided from here: {_format_culprit(culprit)}"
                doubt = f"{describe(chain)} may refuse it"
                return Step(chain.hook, StepState.UNKNOWN, said, None, doubt, passage)
        return Step(chain.hook, StepState.FINE, text, passage=passage)

    def _remedy(self, passage: Passage, culprit: RuleLocation, end: remedies.End) -> tuple[Cause, str]:
        if self.is_guests:
            return self._of_guest(passage, culprit)
        if self._is_on_purpose(passage, culprit):
            return Cause.ON_PURPOSE, self.on_purpose("refuses", culprit)
        if passage.by_mark and not self._is_gated(passage.chain):
            return Cause.ON_PURPOSE, self.by_mark(passage, "refuses", culprit)
        return self._exposure(passage, culprit, end)

    def _of_guest(self, passage: Passage, culprit: RuleLocation) -> tuple[Cause, str]:
        """Say who refuses what a guest sends: but for Docker's policy, which is meant for containers, on purpose."""
        is_dockers = passage.chain.hook == "forward" and not culprit.number and "Docker" in owners_of(passage.chain)
        if not is_dockers:
            return Cause.ON_PURPOSE, self.on_purpose("refuses", culprit)
        if not self.has_path:
            client = str(self.arrival.source)
            return Cause.ON_PURPOSE, remedies.on_purpose("Docker refuses", culprit.chain_name, client)
        if self.settings.keep_guests_online:
            return Cause.GATE_SHUT, self.mend_ours()
        return Cause.DOCKERS_POLICY, remedies.keep_guests_online(self.main)

    def _exposure(self, passage: Passage, culprit: RuleLocation, end: remedies.End) -> tuple[Cause, str]:
        """Say how to have a chain let the connection through that was not closed on purpose."""
        chain = passage.chain
        if chain.owned and chain.hook == "forward":
            return Cause.REFUSED, remedies.share_table(chain, self.settings.gates, self.main)
        if self._is_gated(chain):
            return Cause.GATE_SHUT, self.mend_ours()
        if chain.hook == "forward" and remedies.can_have_gate(chain) and not passage.asks_who:
            return Cause.REFUSED, remedies.open_gate(chain, self.settings.gates, self.main)
        cause = Cause.REFUSED_EARLY if chain.hook in ("ingress", "prerouting", "output") else Cause.REFUSED
        if not passage.asks_who:
            return cause, remedies.except_from(chain, end, self.arrival.protocol)
        # A gate, or an exception at the head, would also let in the clients that other rules of the chain refuse.
        exception = remedies.except_within if culprit.number else remedies.except_at_end
        return cause, exception(chain, end, self.arrival.protocol)

    def _is_on_purpose(self, passage: Passage, culprit: RuleLocation) -> bool:
        """Whether a chain refuses this client rather than every client, or exists to refuse clients.

        Where the daemon keeps a gate, only rules ahead of it count: later ones do not stop forwarded connections.
        """
        if culprit in passage.selects or is_behind(culprit.chain, self.settings.behind):
            return True
        return owner_of(culprit) in BANNING or (passage.spares_others and not self._is_gated(passage.chain))

    def on_purpose(self, does: str, culprit: RuleLocation) -> str:
        """Say who treats the client so on purpose."""
        # Libvirt has only jumps in that chain, so a rule that refuses a client there is the administrator's.
        added = (culprit.table, culprit.chain) == (LIBVIRT_TABLE, "forward")
        owner = ADMIN if added else owner_of(culprit)
        who = "the administrator" if owner == ADMIN else owner
        return remedies.on_purpose(f"{who} {does}", culprit.chain_name, str(self.arrival.source or "this client"))

    def by_mark(self, passage: Passage, does: str, culprit: RuleLocation) -> str:
        """Say who treats a marked connection so, which may well be one of clients that were picked out before."""
        marking = passage.marked_by
        return remedies.by_mark(does, _where(culprit), _where(marking) if marking is not None else None)

    def missing(self, name: str, text: str) -> Step:
        """Give the step at which something is missing that the daemon should have made."""
        if not self.daemon_runs:
            return wrong(
                name, f"{text}, and the daemon is not running", Cause.DAEMON_NOT_RUNNING, remedies.START_SERVICE
            )
        remedy = f"Have the daemon read its configuration again: {command('kvm-portfwd reload')}."
        return wrong(name, f"{text}, though the daemon runs", Cause.NOT_LOADED, remedy)

    def mend_ours(self) -> str:
        """Say how to have rules of ours made again."""
        return (
            f"Repair our rules: {command('systemctl restart kvm-portfwd')}."
            if self.daemon_runs
            else remedies.START_SERVICE
        )

    def _is_gated(self, chain: BaseChain) -> bool:
        """Whether it is a chain that the daemon keeps a gate in by itself, or by the configuration."""
        if chain.hook != "forward":
            return False
        if owner_of(chain.policy) == OURS or (chain.system is System.LEGACY and chain.table == "filter"):
            return True
        return Gate(chain.family, chain.table, chain.name) in wanted_gates(Family, self.settings.gates)


def _is_confining(culprit: RuleLocation) -> bool:
    """Whether our own rule refuses it, because the host did not forward it before the daemon turned forwarding on."""
    if owner_of(culprit) != OURS:
        return False
    return culprit.chain == STRANGERS or (culprit.chain == FWD and "confined " in culprit.text)


def _is_confining_one(culprit: RuleLocation) -> bool:
    """Whether it is the one that does so for what comes in by some interface."""
    if owner_of(culprit) != OURS:
        return False
    return culprit.chain == NEWCOMERS or (culprit.chain == FWD and "newcomers " in culprit.text)


def describe(chain: BaseChain) -> str:
    """Name a chain, and the rule system it is in where that is not nftables itself."""
    return chain.policy.chain_name


def _where(location: RuleLocation) -> str:
    if not location.number:
        return location.chain_name
    rule = shown(location.text) if location.text else f"handle {location.number}"
    return f"{location.chain_name} ({rule})"


def _format_culprit(culprit: RuleLocation) -> str:
    if not culprit.number:
        return "its policy"
    owner = owner_of(culprit)
    whose = (
        f" ({owner})" if owner != owner_of(RuleLocation(culprit.system, culprit.family, culprit.table, "", 0)) else ""
    )
    rule = shown(culprit.text) if culprit.text else f"handle {culprit.number}"
    return f"rule in {shown(culprit.chain)}{whose}: {rule}"


# What every part of the walk through the kernel stands on. Pure, but for the `World` it asks.
_STRICT: Final = 1


@dataclass(frozen=True, slots=True)
class Target:
    """Where a connection is to go: a guest's address and port, and what leads there.

    `translated` says that a rule of ours has to send it there; a route needs none. `bridge` and `port` are where the
    guest is plugged in, `subnet` that of its network, where they are known; `links` are all bridges of its domain.
    """

    address: Address
    number: int
    translated: bool = True
    bridge: str | None = None
    port: str | None = None
    subnet: Subnet | None = None
    links: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return show_endpoint(self.address, PortRange(self.number, self.number))


@dataclass(frozen=True, slots=True)
class HostContext:
    """The host and the connection: every chain there is, and what rules ask of the host besides the packet."""

    arrival: Arrival
    world: World
    judge: Judge
    chains: Sequence[BaseChain]
    around: Surroundings

    @classmethod
    def of(cls, arrival: Arrival, world: World, judge: Judge, desired: Desired) -> Self:
        """Look at the host."""
        around = surroundings(arrival, world.addresses(), world, behind_others(arrival, desired))
        return cls(arrival, world, judge, world.chains(), around)


def is_strict(world: World, interface: str) -> bool:
    """Whether IPv4's reverse path filter is strict (ip-sysctl.rst, rp_filter): the higher of two settings counts."""
    names = of_interface(Family.IPV4, interface, "rp_filter"), "net.ipv4.conf.all.rp_filter"
    return max(int(world.sysctl(name) or 0) for name in names) == _STRICT


def is_ours(packet: Packet) -> bool:
    """Whether a rule of ours sent a packet where it goes."""
    return packet.translated_by is not None and owner_of(packet.translated_by) == OURS


def leads_to(packet: Packet, target: Target) -> bool:
    """Whether a packet goes where it should, by the rule that should lead it."""
    if not target.translated:
        return packet.translated_by is None
    return is_ours(packet) and (packet.destination, packet.port) == (target.address, target.number)


class Entrance:
    """First `enter`; then it knows where the connection was sent, and `arrived` are its packets."""

    def __init__(self, context: HostContext) -> None:
        self._context = context
        self._entering: Way | None = None
        self._end = remedies.End(context.arrival.address, context.arrival.port)
        self.arrived: frozenset[Packet] = frozenset()

    def enter(self) -> Iterator[Step]:
        """Give the steps up to the routing decision, translation included, whatever it should be."""
        yield from list(self._kept_away()) or self._reverse_path()
        arrival = self._context.arrival
        packets = frozenset([arrival.packet()])
        if arrival.from_host:
            self._entering = through(self._context.chains, "output", packets, self._context.around)
        else:
            ingress = through(self._context.chains, "ingress", packets, self._context.around, link=arrival.came_in)
            yield from self._context.judge.steps(ingress.passages, self._end)
            self._entering = through(self._context.chains, "prerouting", ingress.packets, self._context.around)
        yield from self._context.judge.steps(self._entering.passages, self._end)
        self.arrived = self._entering.packets

    def into_host(self) -> Iterator[Step]:
        """Give the steps of a connection that stays on the host."""
        if not self._context.arrival.from_host:
            way = through(self._context.chains, "input", self.arrived, self._context.around)
            yield from self._context.judge.steps(way.passages, self._end)

    def led_to(self) -> tuple[Address, int] | None:
        """Give the address and port that rules of ours in the kernel send the connection to, if they do."""
        ours = [packet for packet in self.arrived if is_ours(packet)]
        found = {(packet.destination, packet.port) for packet in ours}
        for address, port in found:
            if len(found) == 1 and address is not None and port is not None:
                return address, port
        return None

    def translation(self, target: Target) -> Step:
        """Judge whether the connection was sent where it should go."""
        if not target.translated:
            return self._untouched(target)
        right = [packet for packet in self.arrived if leads_to(packet, target)]
        others = list(translations(packet for packet in self.arrived if not is_ours(packet)))
        if right and len(right) == len(self.arrived):
            return fine("translation", f"our rules send it to {target}")
        if others:
            return self._taken(others[0], certainly=not right)
        if right:
            return unknown("translation", f"our rules send it to {target}, unless what may refuse it does")
        untracked = self._entering.untracked_by if self._entering is not None else None
        if untracked is not None:
            return self._not_tracked(untracked)
        return self._missing(target)

    def _not_tracked(self, chain: BaseChain) -> Step:
        text = f"{describe(chain)} takes it out of connection tracking, so nothing can translate it"
        passage = next((passage for passage in self.passages if passage.chain == chain), None)
        if passage is not None and passage.by_mark:
            remedy = self._context.judge.by_mark(passage, "does not track", chain.policy)
            return wrong("translation", text, Cause.ON_PURPOSE, remedy)
        return wrong("translation", text, Cause.UNTRACKED, self._exception(chain))

    def _untouched(self, target: Target) -> Step:
        others = list(translations(self.arrived))
        if others:
            return self._taken(others[0], certainly=all(packet.translated_by for packet in self.arrived))
        return fine("translation", f"none is needed: {target.address} is routed")

    def _taken(self, location: RuleLocation, *, certainly: bool) -> Step:
        passage = next(passage for passage in self.passages if _translates(passage, location))
        chain = passage.chain
        where = next(packet for packet in self.arrived if packet.translated_by == location)
        to = "elsewhere" if where.destination is None else str(where.destination)
        verb = "sends" if certainly else "may send"
        text = f"{describe(chain)} ({owner_of(location)}) {verb} it to {to} before our rules: {shown(location.text)}"
        if not certainly:
            return unknown("translation", text, f"{describe(chain)} may take it")
        if not OWN_CHAINS.isdisjoint(chain.chains):
            # An exception in there would end the table, and our chain with it.
            return wrong("translation", text, Cause.TAKEN, self._context.judge.mend_ours())
        if any(location in passage.selects for passage in self.passages):
            return wrong("translation", text, Cause.ON_PURPOSE, self._context.judge.on_purpose("sends away", location))
        if passage.by_mark:
            remedy = self._context.judge.by_mark(passage, "sends away", location)
            return wrong("translation", text, Cause.ON_PURPOSE, remedy)
        return wrong("translation", text, Cause.TAKEN, self._exception(chain))

    def _exception(self, chain: BaseChain) -> str:
        """Say how to have a chain leave the connection alone, but not that of clients which other rules of it stop."""
        asks = asks_who(chain, [self._context.arrival.packet()], self._context.around)
        exception = remedies.except_within if asks else remedies.except_from
        return exception(chain, self._end, self._context.arrival.protocol)

    def _missing(self, target: Target) -> Step:
        led = self.led_to()
        text = (
            "none of our rules in the kernel takes it"
            if led is None
            else f"our rules send it to {led[0]}, not {target}"
        )
        return self._context.judge.missing("translation", text)

    @property
    def passages(self) -> Sequence[Passage]:
        """The packet's way through every chain it met so far, those of one interface aside."""
        return self._entering.passages if self._entering is not None else ()

    def _kept_away(self) -> Iterator[Step]:
        """Judge what leads a client's answers nowhere, as fail2ban and administrators ban by: a route, or a rule."""
        client = self._context.arrival.source
        if client is None or self._context.arrival.from_host:
            return
        route = self._context.world.route(client)
        if route.rule:
            text = f"nothing goes back to {client}, by the rule of policy routing {route.rule}"
            remedy = remedies.ruled_away(route.rule, self._context.arrival.address, client)
            yield wrong("way back", text, Cause.ON_PURPOSE, remedy)
        if route.kind and route.subnet is not None and route.subnet.prefixlen:
            text = f"nothing goes back to {client}, by the route {route.kind} {route.subnet}"
            yield wrong("way back", text, Cause.ON_PURPOSE, remedies.kept_away(client, route))

    def _reverse_path(self) -> Iterator[Step]:
        """Judge the reverse path filter."""
        arrival, back = self._context.arrival, self._context.around.way_back
        if arrival.from_host or arrival.family is Family.IPV6 or back == arrival.came_in:
            return
        if not is_strict(self._context.world, arrival.came_in):
            return
        if self._context.world.route(arrival.address, arrival.stand_in, arrival.came_in).device is not None:
            return  # by another route, as one of several
        text = f"rp_filter is strict on {arrival.came_in}, and the way back to the client is {back or 'unknown'}"
        gateway = self._context.world.gateway_on(arrival.came_in, arrival.family)
        remedy = remedies.mend_reverse_path(arrival, back or "another interface", gateway)
        yield wrong("reverse path", text, Cause.REVERSE_PATH, remedy)


def _translates(passage: Passage, location: RuleLocation) -> bool:
    return any(packet.translated_by == location for packet in passage.packets)
