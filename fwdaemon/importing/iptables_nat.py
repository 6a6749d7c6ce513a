"""A table nat of iptables: its DNAT rules, what they ask for, and what forwards they could become."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from fwdaemon.config.addresses import parse_guest
from fwdaemon.core.text import GrammarError, quote
from fwdaemon.core.types import Address, Family, PortRange
from fwdaemon.importing.adopting import Adopter, Claim, claims, lines_of, protocol_of
from fwdaemon.importing.findings import Nat, port_range, read_port
from fwdaemon.importing.judging import (
    BEFORE,
    BaseChain,
    Candidate,
    Stop,
    as_sent,
    asked_on_ways,
    in_turn,
    is_of_all,
    is_reached,
    near,
    single,
    stops,
)
from fwdaemon.rulesets.rules import (
    LAST_PORT,
    LAST_PROTOCOL,
    Box,
    Chains,
    End,
    Field,
    Match,
    Outcome,
    Space,
    Spans,
    TangledError,
    led_to,
    one,
)
from fwdaemon.rulesets.xt_matches import WITH_PORTS, Asked, Option
from fwdaemon.rulesets.xt_tables import RuleLine, Table, Tools, asked, chains_of

# What a DNAT rule of iptables sends connections to: one address, with the ports that those of the host become.

# Ports that all lead to one port of the guest are written one by one; more of them than this are not meant.
_MOST_TO_ONE: Final = 100
_TARGET: Final = re.compile(
    r"(?:\[(?P<ip6>[0-9A-Fa-f:.]+)\]|(?P<ip4>[0-9.]+)|(?P<bare>[0-9A-Fa-f:.]+))"
    r"(?::(?P<first>\d+)(?:-(?P<last>\d+)(?:/(?P<base>\d+))?)?)?"
)
_PORT_ONLY: Final = re.compile(r":\d+(?:-\d+)?")


@dataclass(frozen=True, slots=True)
class Target:
    """Where connections go; `base` is the port of the host that `ports.first` stands for."""

    address: Address
    ports: PortRange | None
    base: int | None

    def pairs(self, host: PortRange) -> Iterator[tuple[PortRange, PortRange]]:
        """Yield pairs of the host's and the guest's ports, as the kernel maps them (nf_nat_core.c)."""
        ports = self.ports
        if ports is None or (self.base is None and ports.first <= host.first and host.last <= ports.last):
            yield host, host
        elif ports.width == 1 and host.width <= _MOST_TO_ONE:
            yield from ((PortRange(port, port), ports) for port in host)
        elif self.base is not None and host.first >= self.base and host.last - self.base < ports.width:
            first = ports.first + host.first - self.base
            yield host, PortRange(first, first + host.width - 1)
        else:
            raise GrammarError(f"ports {host} lead to {ports} in no order a forward could keep")

    def guest_port(self, port: int) -> int | None:
        """Give the port of the guest that one of the host becomes, where that is known."""
        try:
            ((_, guest),) = self.pairs(PortRange(port, port))
        except GrammarError:
            return None
        return guest.first


def target_of(options: Sequence[Option]) -> Target:
    """Read what a DNAT rule says of its target; raise `GrammarError` where no forward could say the same."""
    for option in options:
        if option.name == "--random":
            raise GrammarError(f"{quote(str(option))} is not understood")
    said = [" ".join(option.values) for option in options if option.name == "--to-destination"]
    if len(said) != 1:
        raise GrammarError("it has no --to-destination, or several")
    return _target(said[0])


def _target(text: str) -> Target:
    if _PORT_ONLY.fullmatch(text):
        raise GrammarError(f"--to-destination {quote(text)} names a port but no guest: this host itself answered there")
    match = _TARGET.fullmatch(text)
    if match is None:
        raise GrammarError(f"--to-destination {quote(text)} is not one address with its ports")
    address = parse_guest(match["ip6"] or match["ip4"] or match["bare"])
    if match["first"] is None:
        return Target(address, None, None)
    first = read_port(match["first"])
    ports = port_range(first, first if match["last"] is None else read_port(match["last"]))
    return Target(address, ports, None if match["base"] is None else read_port(match["base"]))


WayOut: TypeAlias = Callable[[Address], str | None]
"""Gives the interface that leads to a guest's address, where that is known."""

_PORTS: Final = Spans(((1, LAST_PORT),))
_ELSEWHERE: Final = (End.TRANSLATE, End.UNCLEAR)
_FOLLOWED: Final = frozenset({"DNAT", "REDIRECT"})


def base_chain(table: Table, name: str, chains: Chains) -> BaseChain:
    """Give a base chain of a table."""
    policy = table.policy(name)
    return BaseChain(chains, name, policy.end, policy.line)


@dataclass(frozen=True, slots=True)
class NatTable:
    """A table nat: its DNAT rules by line, what each asks, and where those lead that can be read."""

    table: Table
    space: Space
    way_out: WayOut
    chains: Chains
    rules: Mapping[int, RuleLine]
    asks: Mapping[int, Asked]
    targets: Mapping[int, Target]

    @classmethod
    def of(cls, table: Table, tools: Tools, way_out: WayOut) -> "NatTable":
        """Read a table."""
        rules = dict(sorted((rule.number, rule) for rule in table.rules if rule.target == "DNAT"))
        asks = {number: asked(rule, tools) for number, rule in rules.items()}
        return cls(table, tools.space, way_out, chains_of(table, tools), rules, asks, dict(_targets(rules.values())))

    def chain(self, name: str) -> BaseChain:
        """Give one of its base chains."""
        return base_chain(self.table, name, self.chains)

    def strangers(self) -> Iterator[RuleLine]:
        """Yield the rules that may lead elsewhere in a way that is not followed, but for those of connections out."""
        inward, outward = (
            led_to(self.chains, first) | led_to(self.chains, second)
            for first, second in (("PREROUTING", "OUTPUT"), ("POSTROUTING", "INPUT"))
        )
        for name in self.chains.keys() - (outward - inward):
            for line, rule in zip(self.table.chains[name], self.chains[name], strict=True):
                if rule.action in _ELSEWHERE and line.options is not None and line.target not in _FOLLOWED:
                    yield line

    def candidates(self, rule: RuleLine) -> Iterator[Candidate]:
        """Yield what a DNAT rule could become; raise `GrammarError` where no forward could say the same."""
        target = target_of(rule.options or ())
        device = self.way_out(target.address)
        goes_out = self.space.everything[Field.GOES_OUT] if device is None else self.space.interface(device)
        for packets in self._packets(rule):
            for first, last in packets[Field.PORT].ranges:
                for host, guest in target.pairs(PortRange(first, last)):
                    ports = Spans(((host.first, host.last),))
                    taken = packets.holding(port=ports, wanted_port=ports)
                    yield Candidate(rule.number, target.address, host, guest, taken, goes_out)

    def asked(self, rule: RuleLine) -> list[Match]:
        """Give what a rule asks with what the jumps to it ask, for each way to it from outside."""
        return asked_on_ways([self.chain("PREROUTING")], rule.number, self.asks[rule.number].match)

    def _packets(self, rule: RuleLine) -> list[Box]:
        """Give all that a rule asks for of what comes to this host from elsewhere."""
        if unread := self.asks[rule.number].unread:
            raise GrammarError(f"{quote(unread)} is not understood")
        asked = (_asked_from_outside(match, self.space) for match in self.asked(rule))
        found = [packets for packets in asked if packets is not None]
        if not found:
            raise GrammarError("no new connection to this host matches it")
        for packets in found:
            protocol_of(packets)
        return found


def _asked_from_outside(match: Match, space: Space) -> Box | None:
    """Give all of what comes to this host from elsewhere that matches; `None` where nothing does."""
    start = space.everything.holding(came_in=space.outside, port=_PORTS, translated=BEFORE)
    packets = start.meet(match)
    return None if packets is None else as_sent(packets, space)


def _targets(rules: Iterable[RuleLine]) -> Iterator[tuple[int, Target]]:
    for rule in rules:
        try:
            yield rule.number, target_of(rule.options or ())
        except GrammarError:
            continue


# What old rules sent to guests as forwards, each for no more than those rules are known to have let in.
# To multicast and broadcast no guest sends anything by way of an uplink.
_NO_CLIENTS: Final = {Family.IPV4: "224.0.0.0/3", Family.IPV6: "ff00::/8"}
_NO_ADDRESS: Final = "it is for every protocol, and not for one address, as a [[nat]] is"


def why_way_out(asks: Match, space: Space) -> str:
    """Say why no forward can be for what a rule asks of the way out, if it asks for one."""
    everything = space.everything[Field.GOES_OUT]
    if asks.get(Field.GOES_OUT, everything) == everything:
        return ""
    return "it asks which interface a packet leaves by, and before it is sent elsewhere there is none"


@dataclass(frozen=True, slots=True)
class Sending:
    """A rule that sends what it asks for to a guest; `doubt` is what of it is not followed.

    `reason` says why it must not be live, whatever other rules do.
    """

    number: int
    asks: Match
    target: Target
    doubt: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Carrier:
    """What is known of a rule set: `renaming` are the chains that translate sources, `names` what to by their rules."""

    adopter: Adopter
    way_out: WayOut
    renaming: tuple[BaseChain, ...] = ()
    names: Mapping[int, Address] = field(default_factory=dict)

    def carry(self, sending: Sending) -> bool:
        """Write what a rule sent to a guest; return whether anything comes to the rule."""
        packets = _asked_from_outside(sending.asks, self.adopter.ruleset.space)
        if packets is None:
            return False
        is_whole = packets[Field.PORT] == _PORTS and sending.target.ports is None
        if packets[Field.PROTOCOL].size > LAST_PROTOCOL and is_whole:
            return self._carry_all(sending, packets)
        found = [
            candidate
            for number in WITH_PORTS.values()
            if (part := packets.meet({Field.PROTOCOL: one(number)})) is not None
            for candidate in self._candidates(sending, part)
        ]
        return bool([candidate for candidate in found if self._carry(sending, candidate)]) or not found

    def _candidates(self, sending: Sending, packets: Box) -> Iterator[Candidate]:
        goes_out = self._way_out(sending.target.address)
        for first, last in packets[Field.PORT].ranges:
            try:
                pairs = list(sending.target.pairs(PortRange(first, last)))
            except GrammarError as error:
                self._warn(sending.number, str(error))
                continue
            for host, guest in pairs:
                ports = Spans(((host.first, host.last),))
                taken = packets.holding(port=ports, wanted_port=ports)
                yield Candidate(sending.number, sending.target.address, host, guest, taken, goes_out)

    def _way_out(self, address: Address) -> Spans:
        space, bridge = self.adopter.ruleset.space, self.way_out(address)
        return space.everything[Field.GOES_OUT] if bridge is None else space.interface(bridge)

    def _carry(self, sending: Sending, candidate: Candidate) -> bool:
        """Write one forward; where nothing comes to its rule, tell so, unless it is known what took that before."""
        if sending.reason:
            self.adopter.leave_out(candidate, sending.reason)
            return True
        if not is_reached(candidate, self.adopter.ruleset):
            taken = lines_of(stops(candidate, self.adopter.ruleset))
            if taken:
                self.adopter.leave_out(candidate, f"{self.adopter.named(taken)} took it before")
            return bool(taken)
        if reason := why_way_out(sending.asks, self.adopter.ruleset.space):
            self.adopter.leave_out(candidate, reason)
        elif sending.doubt:
            self.adopter.leave_out(candidate, f"{sending.doubt} is not followed")
        else:
            self._adopt(candidate)
        return True

    def _adopt(self, candidate: Candidate) -> None:
        try:
            if self.adopter.adopt(candidate):
                self.remark_masquerade(candidate)
        except GrammarError as error:
            self.adopter.leave_out(candidate, str(error))

    def remark_masquerade(self, candidate: Candidate) -> None:
        """Say once where a guest saw its clients under an address of the host, which it does no more."""
        space, findings = self.adopter.ruleset.space, self.adopter.findings
        delivered = candidate.delivered.holding(came_in=space.everything[Field.CAME_IN])
        try:
            outcomes = list(in_turn(self.renaming, delivered))
        except TangledError:
            return
        found = (outcome.rule for outcome in outcomes if is_of_all(outcome, candidate, space))
        rule = next((rule for rule in found if rule is not None), None)
        if rule is not None:
            findings.warn_once(self.adopter.origins[rule.line].line, _MASQUERADE)

    # --- 1:1 ----------------------------------------------------------------------------------------------------------

    def _carry_all(self, sending: Sending, packets: Box) -> bool:
        """Write what a rule for every protocol sent to a guest, as a whole address or not at all."""
        ports = PortRange(1, LAST_PORT)
        goes_out = self._way_out(sending.target.address)
        candidate = Candidate(sending.number, sending.target.address, ports, ports, packets, goes_out)
        if not is_reached(candidate, self.adopter.ruleset):
            return False
        if sending.doubt:
            # What is not followed may be a protocol and its ports, too.
            self._warn(sending.number, f"{sending.doubt} is not followed")
            return True
        try:
            claim, public = self._whole(packets)
        except GrammarError as error:
            self._warn(sending.number, str(error))
            return True
        origin = self.adopter.findings.origin(self.adopter.origins[sending.number].line)
        reason = sending.reason or self._why_not_whole(candidate, claim, public) or self.adopter.blocked
        self.adopter.findings.nats.append(Nat(public, candidate.address, origin, reason))
        return True

    def _whole(self, packets: Box) -> tuple[Claim, Address]:
        """Give the first claim on packets for one address, and the address; raise `GrammarError` where none can be."""
        is_one = packets[Field.DESTINATION].size == 1
        claim = next((claim for claim, _ in claims(packets, self.adopter.ruleset.space)), None) if is_one else None
        if claim is None or claim.listen is None:
            raise GrammarError(_NO_ADDRESS)
        return claim, claim.listen

    def _why_not_whole(self, candidate: Candidate, claim: Claim, public: Address) -> str:
        """Say why a guest was less than all of an address, if it was."""
        found = list(stops(candidate, self.adopter.ruleset))
        if found:
            return f"{self._stopped(found)} stopped some of it, and a [[nat]] is a whole address"
        if claim.interface is not None or claim.sources:
            return "it was for one interface or some sources only, and a [[nat]] is for all"
        return self._why_not_out(candidate.address, public)

    def _why_not_out(self, guest: Address, public: Address) -> str:
        """Say why a guest did not leave under an address, if it did not."""
        space, device = self.adopter.ruleset.space, self.way_out(guest)
        came_in = space.outside if device is None else space.interface(device)
        leaving = space.everything.holding(source=one(int(guest)), came_in=came_in, port=_PORTS)
        if (kept := self._kept_in(leaving)) is not None:
            return f"{self.adopter.named([kept])} kept the guest from leaving"
        ways = self._ways_out(leaving, guest)
        given = [{self._name(outcome) for outcome in in_turn(self.renaming, way)} for way in ways]
        if {public} in given:
            return ""
        if public in set().union(*given):
            return f"only some of what the guest sent to the outside left as {public}, and with a [[nat]] all does"
        return f"no rule gave the guest {public} on its way out, as a [[nat]] does"

    def _ways_out(self, leaving: Box, guest: Address) -> Iterator[Box]:
        """Yield what a guest may send to the outside, by each interface that may lead there."""
        space = self.adopter.ruleset.space
        outside = leaving[Field.DESTINATION].minus(space.addresses_in(_NO_CLIENTS[space.family]))
        outside = outside.minus(near(guest, space))
        others = space.outside.minus(single(leaving[Field.CAME_IN], space))
        for first, last in others.ranges:
            for number in range(first, last + 1):
                yield leaving.holding(destination=outside, wanted=outside, goes_out=one(number))

    def _name(self, outcome: Outcome) -> Address | None:
        """Give the address that packets leave under where a rule gave them one that is known."""
        return self.names.get(outcome.rule.line) if outcome.end is End.RENAME and outcome.rule is not None else None

    def _kept_in(self, leaving: Box) -> int | None:
        """Give the line that refused what a guest sends, if any; that may be for this host or for elsewhere."""
        ruleset = self.adopter.ruleset
        for chain in (*ruleset.before, ruleset.nat, *ruleset.more_nat, *ruleset.after):
            for outcome in chain.walk(leaving):
                if outcome.end not in (End.ACCEPT, End.TRANSLATE):
                    return chain.policy_line if outcome.rule is None else outcome.rule.line
        return None

    def _stopped(self, found: Iterable[Stop]) -> str:
        return self.adopter.named(lines_of(found)) or "a chain that does not lead to it"

    def _warn(self, number: int, why: str) -> None:
        origin = self.adopter.origins[number]
        self.adopter.findings.warn(origin.line, f"{quote(origin.text)} left out: {why}")


_MASQUERADE: Final = (
    "it gave clients an address of this host on their way to the guest; now the guest sees their own, unless the"
    " forward has masquerade = true"
)
