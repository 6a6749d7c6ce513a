"""A third backend, for tests: rules in memory, and the evaluator that `explain` uses for packets.

It fits `fwdaemon.netfilter.Backend` by the recipe in CONTRIBUTING.md. The `Kernel` is what stays when a backend goes.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from fwdaemon.core.admission import Gatekeeper, Need
from fwdaemon.core.exposures import Exposure, Forward, Nat
from fwdaemon.core.report import (
    Actor,
    ActorKind,
    ApplyResult,
    Fault,
    FaultKind,
    GateChange,
    RulesChanged,
)
from fwdaemon.core.state import Desired, Dropped
from fwdaemon.core.types import Address, Family, Gate, GateFault, GuestPath, Presence, Stamp, Subnet
from fwdaemon.errors import KernelError, ProcessError
from fwdaemon.kernel.process import Finished
from fwdaemon.resolve.flows import Flow, renamings
from fwdaemon.resolve.segments import Home, homes, segments
from fwdaemon.rulesets.evaluation import pass_through
from fwdaemon.rulesets.packet import (
    BaseChain,
    End,
    Match,
    Packet,
    Rule,
    RuleLocation,
    Statement,
    Surroundings,
    System,
    Translate,
    Tristate,
    Verdict,
    all_of,
    tristate_of,
)

_CHAIN: Final = "prerouting"
_PROGRAM: Final = Actor(ActorKind.PROGRAM, "another", 7)


@dataclass(frozen=True)
class Written:
    """One rule: known by its name, never by its body."""

    name: str
    rule: Rule = field(compare=False)


@dataclass
class Kernel:
    """What a rule system holds, and is `lacking`; `refusals` is how many of the next commits are refused."""

    rules: dict[Family, tuple[Written, ...]] = field(default_factory=dict)
    exposures: frozenset[Exposure] = frozenset()
    label: int = 25
    uplinks: frozenset[str] = frozenset()
    gates: set[Gate] = field(default_factory=set)
    forward_chains: tuple[Gate, ...] = ()
    confined: frozenset[Family] = frozenset()
    switched: frozenset[tuple[Family, str]] = frozenset()
    refused: list[Flow] = field(default_factory=list)
    guest_paths: frozenset[GuestPath] = frozenset()
    libvirt: Presence = Presence.NOTHING
    generation: int = 0
    refusals: int = 0
    lacking: frozenset[Need] = frozenset()
    changed: RulesChanged | None = None

    def commit(self) -> None:
        """Take a change, or refuse it whole."""
        if self.refusals:
            self.refusals -= 1
            raise KernelError("the kernel refused: no memory")
        self.generation += 1

    def wipe(self) -> None:
        """Take all rules away, as another program does."""
        self.rules, self.gates, self.confined, self.switched = {}, set(), frozenset(), frozenset()
        self.generation += 1
        if self.changed is not None:
            self.changed(_PROGRAM, full=False)

    def led(self, packet: Packet, surroundings: Surroundings) -> tuple[Address, int] | None:
        """Say where a packet is translated to."""
        rules = tuple(written.rule for written in self.rules.get(packet.family, ()))
        chain = BaseChain(
            System.NFTABLES,
            packet.family.name,
            "memory",
            _CHAIN,
            "nat",
            _CHAIN,
            -100,
            accepts=True,
            chains={_CHAIN: rules},
        )
        (passed,) = pass_through(chain, [packet], surroundings).packets
        if passed.translated_by is None or passed.destination is None or passed.port is None:
            return None
        return passed.destination, passed.port


@dataclass
class _Monitor:
    kernel: Kernel
    changed: RulesChanged

    def start(self) -> None:
        self.kernel.changed = self.changed

    def close(self) -> None:
        self.kernel.changed = None


class MemoryBackend:
    """Holds our rules in a `Kernel`; see `fwdaemon.netfilter.Backend`."""

    variant = "memory"

    def __init__(self, kernel: Kernel, name: str = "memory", unusable: Mapping[Family, Fault] | None = None) -> None:
        self.kernel = kernel
        self.name = self.title = name
        self.forgets = False
        self.unusable = unusable or {}
        self._committed: frozenset[str] = frozenset()
        self._settled: tuple[Desired, int] | None = None

    def apply(self, desired: Desired, *, full: bool) -> ApplyResult:
        """See `Backend.apply`."""
        self.kernel.guest_paths = desired.guest_paths
        if not full and self._settled == (desired, self.kernel.generation):
            return ApplyResult()
        planned = self._planned(desired, desired.families)
        refusing = desired.confined, desired.switched
        if planned.changed or (self.kernel.confined, self.kernel.switched) != refusing:
            self.kernel.commit()
            self.kernel.rules = written(desired, desired.families)
            self.kernel.exposures, self.kernel.label = desired.exposures, desired.label
            self.kernel.uplinks = desired.uplinks
            self.kernel.gates = set(self._wanted(desired))
            self.kernel.confined, self.kernel.switched = refusing
        self._committed = frozenset(_names(self.kernel.rules))
        self._settled = desired, self.kernel.generation
        return planned

    def apply_gates(self, desired: Desired, *, full: bool) -> ApplyResult:
        """See `Backend.apply_gates`."""
        del full  # all is compared each time
        self.kernel.guest_paths = desired.guest_paths
        planned = self.preview_gates(desired)
        if planned.changed:
            self.kernel.commit()
            self.kernel.gates = set(self._wanted(desired))
        return ApplyResult(gates=planned.gates, changed=planned.changed)

    def leave(self) -> ApplyResult:
        """See `Backend.leave`."""
        self.kernel.rules, self._committed, self._settled = {}, frozenset(), None
        return ApplyResult()

    def preview(self, desired: Desired) -> ApplyResult:
        """See `Backend.preview`."""
        return self._planned(desired, desired.families)

    def preview_gates(self, desired: Desired) -> ApplyResult:
        """See `Backend.preview_gates`."""
        shut = self._shut(desired)
        return ApplyResult(gates=shut, changed=bool(shut or self.kernel.gates.difference(self._wanted(desired))))

    def render(self, desired: Desired) -> str:
        """See `Backend.render`."""
        return "\n".join(_names(written(desired, desired.families)))

    def refuse(self, flows: Collection[Flow]) -> None:
        """See `Backend.refuse`."""
        self.kernel.commit()
        self.kernel.refused += flows

    def remove(self) -> ApplyResult:
        """See `Backend.remove`."""
        return self.apply(Desired(), full=True)

    def lacks(self, needs: Collection[Need]) -> Mapping[Need, Fault]:
        """See `Backend.lacks`."""
        lacking = self.kernel.lacking.intersection(needs)
        return {need: Fault(FaultKind.NO_EXPRESSION, (need, need, "memory")) for need in lacking}

    def close(self) -> None:
        """See `Backend.close`."""

    def held(self) -> frozenset[Family]:
        """See `Backend.held`."""
        return frozenset(self.kernel.rules)

    def confined(self) -> frozenset[Family]:
        """See `Backend.confined`."""
        return self.kernel.confined

    def switched(self) -> frozenset[tuple[Family, str]]:
        """See `Backend.switched`."""
        return self.kernel.switched

    def monitor(self, changed: RulesChanged) -> _Monitor:
        """See `Backend.monitor`."""
        return _Monitor(self.kernel, changed)

    def counters(self, desired: Desired) -> Mapping[Exposure, int]:
        """See `Backend.counters`."""
        return dict.fromkeys([*desired.forwards, *desired.nats], 0)

    def dropped(self, desired: Desired) -> Dropped:
        """See `Backend.dropped`: what would drop any stays closed."""
        del desired
        return Dropped()

    def stamp(self) -> Stamp:
        """See `Backend.stamp`."""
        return Stamp(self.kernel.generation, certain=True)

    def libvirt(self, family: Family = Family.IPV4) -> Presence:
        """See `Backend.libvirt`; it has rules of both families, or none."""
        del family
        return self.kernel.libvirt

    def _wanted(self, desired: Desired) -> Iterator[Gate]:
        return (gate for gate in self.kernel.forward_chains if desired.families)

    def _shut(self, desired: Desired) -> tuple[GateChange, ...]:
        wanted = (gate for gate in self._wanted(desired) if gate not in self.kernel.gates)
        return tuple(GateChange(gate, restored=False, fault=GateFault.ABSENT) for gate in wanted)

    def _planned(self, desired: Desired, families: Iterable[Family]) -> ApplyResult:
        wanted, there = written(desired, families), frozenset(_names(self.kernel.rules))
        lacking = {item.name for items in wanted.values() for item in items}.difference(there)
        mended = frozenset(exposure for exposure in desired.exposures if name_of(exposure) in lacking)
        damaged = frozenset(exposure for exposure in mended if name_of(exposure) in self._committed)
        stale = there.difference(_names(wanted)).difference(self._committed)
        gates = self._shut(desired)
        others = desired.exposures - self.kernel.exposures if not self._committed else frozenset()
        changed = bool(
            desired.label != self.kernel.label
            or others
            or wanted != self.kernel.rules
            or gates
            or self.kernel.gates.difference(self._wanted(desired))
        )
        script = self.render(desired) if changed else ""
        gone = {item.owner for item in self.kernel.exposures - desired.exposures} if not self._committed else set()
        altered = frozenset(item for item in others if name_of(item) in there)
        altered |= frozenset(item for item in desired.forwards if item.owner in gone)
        result = ApplyResult(mended, damaged, stale, gates, script=script, changed=changed, altered=altered)
        if not there or self._committed:
            return result
        left = renamings(self.kernel.exposures)
        return replace(result, labels=frozenset({self.kernel.label}), uplinks=self.kernel.uplinks, renamings=left)


def written(desired: Desired, families: Iterable[Family]) -> dict[Family, tuple[Written, ...]]:
    """Write the rules of each family, the first that takes a packet before the others."""
    return {family: tuple(_rules(family, desired)) for family in sorted(families)}


def name_of(exposure: Exposure) -> str:
    """Name an exposure as its rules do."""
    asked = "" if exposure.admission is None else f" {exposure.admission}"
    return f"{exposure.owner.name}: {exposure.listens_at()} -> {exposure.leads_to()}{asked}"


def _names(rules: Mapping[Family, tuple[Written, ...]]) -> list[str]:
    return list(dict.fromkeys(item.name for items in rules.values() for item in items))


def _rules(family: Family, desired: Desired) -> Iterator[Written]:
    accept = Verdict(End.ACCEPT)
    for home in homes(family, desired):
        yield _written(f"home {home.subnet}", Match(partial(_is_forged, home=home)), accept)
    if elsewhere := {address for address in desired.elsewhere if Family.of(address) is family}:
        guests = [subnet for subnet in desired.guest_subnets if Family.of(subnet) is family]
        yield _written("elsewhere", Match(partial(_is_left, guests=guests, elsewhere=elsewhere)), accept)
    keeper = desired.gatekeeper() or Gatekeeper()
    cut = segments(desired.of_family(family))
    for segment in sorted(cut, key=lambda segment: segment.listen is None):
        for forward in segment.forwards:
            takes = partial(_takes, forward, listen=segment.listen, first=segment.ports.first, last=segment.ports.last)
            may = Match(partial(_may_connect, forward, keeper=keeper))
            yield _written(name_of(forward), Match(takes), may, Translate(partial(_to_guest, forward)))
    for nat in sorted((nat for nat in desired.nats if nat.family is family), key=name_of):
        yield _written(name_of(nat), Match(partial(_is_for, nat)), Translate(partial(_to, nat.target)))
    for route in sorted((route for route in desired.routes if route.family is family), key=name_of):
        yield _written(name_of(route), Match(lambda _packet, _host: Tristate.NO), accept)


def _written(name: str, *statements: Statement) -> Written:
    return Written(name, Rule(RuleLocation(System.NFTABLES, "memory", "memory", _CHAIN, 0, name), statements))


def _is_forged(packet: Packet, host: Surroundings, *, home: Home) -> Tristate:
    found = next(
        (part for part in (*home.parts, home) if host.within(packet.source, part.subnet) is Tristate.YES), None
    )
    return tristate_of(found is not None and found.interfaces is not None and packet.came_in not in found.interfaces)


def _is_left(
    packet: Packet, host: Surroundings, *, guests: Iterable[Subnet], elsewhere: Collection[Address]
) -> Tristate:
    away = packet.destination in elsewhere and host.type_of(packet.destination) != "local"
    inside = max((host.within(packet.source, subnet) for subnet in guests), default=Tristate.NO)
    return all_of([inside, tristate_of(away)])


def _takes(  # noqa: PLR0913  a port segment has that many sides
    forward: Forward, packet: Packet, host: Surroundings, *, listen: Address | None, first: int, last: int
) -> Tristate:
    to = packet.destination
    reaches_host = to is not None and host.type_of(to) == "local" and not (to.is_loopback or to.is_link_local)
    here = to == listen if listen is not None else reaches_host
    ported = packet.protocol is forward.protocol and packet.port is not None and first <= packet.port <= last
    by = forward.interface in (None, packet.came_in)
    sources = [host.within(packet.source, subnet) for subnet in forward.sources]
    return all_of([tristate_of(here and ported and by), max(sources, default=Tristate.YES)])


def _may_connect(forward: Forward, packet: Packet, _host: Surroundings, *, keeper: Gatekeeper) -> Tristate:
    is_refused = packet.source is not None and keeper.refusal(forward.admission, packet.source) is not None
    return tristate_of(not is_refused)


def _to_guest(forward: Forward, packet: Packet, location: RuleLocation) -> Packet:
    assert packet.port is not None
    port = forward.target_ports.first + packet.port - forward.ports.first
    return packet.sent_to(forward.target, port, location).labelled("ours")


def _is_for(nat: Nat, packet: Packet, _host: Surroundings) -> Tristate:
    return tristate_of(packet.destination == nat.public)


def _to(target: Address, packet: Packet, location: RuleLocation) -> Packet:
    return packet.sent_to(target, packet.port, location).labelled("ours")


class NoProgram:
    """Runs nothing: no rule system in memory has programs."""

    def run(self, *argv: str, stdin: str = "") -> Finished:
        """See `Runner.run`."""
        raise ProcessError(argv, stdin, 127, "the program is not installed")
