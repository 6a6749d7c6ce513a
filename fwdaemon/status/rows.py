"""The rows of the status, and all of it in one line. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, TypeAlias

from fwdaemon.audit.causes import why
from fwdaemon.config.model import Config, ForwardEntry, NatEntry, RouteEntry
from fwdaemon.core.inventory import Hindrance, HindranceKind
from fwdaemon.core.state import Desired, Forward, Nat, Opening, Owner, Route, Waiting
from fwdaemon.core.text import printable
from fwdaemon.core.types import Address, Family, Origin, show_endpoint
from fwdaemon.status.model import Claim, Header, Kind, Row, State, Target, Usage

# From what is known to the rows of `status`. Pure.
#
# What is live has a row for each opening. What waits has one for each port string, and each address it is to listen on,
# that nothing live answers for.
Entry: TypeAlias = ForwardEntry | NatEntry | RouteEntry

NO_ANSWER: Final = Hindrance(HindranceKind.NO_ANSWER)


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the rows follow from, as references to what never changes.

    `wanted` is `None` until libvirt has answered; `held` is what the kernel was last made to hold. Where it does not
    hold what is wanted, `failure` says why, and `lacking` what that makes of an opening. `refused` tells why openings
    of a family cannot work, or single ones, and `since` when the counting of an opening's connections began.
    """

    config: Config
    wanted: Desired | None = None
    held: Desired | None = None
    failure: str = ""
    lacking: State = State.REFUSED
    refused: Mapping[Family | Opening, str] = field(default_factory=dict)
    since: Mapping[Opening, datetime] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Readings:
    """What the kernel says when it is asked: connections that rules counted, open ones and their bytes.

    Openings may be missing in either; `open` is `None` where the kernel does not tell. It forwards no packets of the
    families in `not_forwarding`. `elsewhere` are listening addresses that other machines have now, each with the MAC
    address of the machine.
    """

    connections: Mapping[Opening, int] = field(default_factory=dict)
    open: Mapping[Opening, tuple[int, int | None]] | None = None
    not_forwarding: frozenset[Family] = frozenset()
    elsewhere: Mapping[Address, str] = field(default_factory=dict)


def rows(facts: Facts, readings: Readings) -> tuple[Row, ...]:
    """Give all rows, by owner, then by what they listen on."""
    held = facts.held.openings if facts.held is not None else frozenset()
    wanted = facts.wanted.openings if facts.wanted is not None and facts.failure else frozenset()
    live = [_live(opening, held, facts, readings) for opening in held | wanted]
    waiting = facts.wanted.waiting if facts.wanted is not None else tuple(_unanswered(facts.config))
    pending = (_followed(row, readings) for row in _waiting(facts.config, waiting, live))
    return tuple(sorted([*live, *pending], key=_order))


# --- what is live ----------------------------------------------------------------------------------------------------


def _live(opening: Opening, held: frozenset[Opening], facts: Facts, readings: Readings) -> Row:
    is_held = opening in held
    state, found = _state(opening, facts, readings) if is_held else (facts.lacking, facts.failure)
    reason, kinds = (why(found), (found.kind,)) if isinstance(found, Hindrance) else (found, ())
    return Row(
        opening.owner,
        state,
        reason,
        opening.listens_at(),
        opening.leads_to(),
        _claim(opening),
        _target(opening),
        opening.origin,
        _usage(opening, facts, readings) if is_held else Usage(),
        kinds,
    )


def _state(opening: Opening, facts: Facts, readings: Readings) -> tuple[State, str | Hindrance]:
    """Tell how what the kernel holds is, and why it is not reached."""
    if refusal := _refusal(opening, facts, readings):
        return State.REFUSED, refusal
    listen = opening.listen if isinstance(opening, Forward) else None
    if listen is None or (mac := readings.elsewhere.get(listen)) is None:
        return State.ACTIVE, ""
    return State.WAITING, Hindrance(HindranceKind.HELD_ELSEWHERE, listen, names=(mac,))


def _refusal(opening: Opening, facts: Facts, readings: Readings) -> str:
    family = opening.family
    if refused := facts.refused.get(family) or facts.refused.get(opening):
        return refused
    return f"IPv{family} forwarding is off on this host" if family in readings.not_forwarding else ""


def _usage(opening: Opening, facts: Facts, readings: Readings) -> Usage:
    connections = readings.connections.get(opening)
    since = facts.since.get(opening) if connections is not None else None
    if readings.open is None:
        return Usage(connections, since)
    return Usage(connections, since, *readings.open.get(opening, (0, None)))


def _claim(opening: Opening) -> Claim:
    match opening:
        case Forward():
            return Claim(
                Kind.FORWARD,
                opening.family,
                opening.protocol,
                opening.listen,
                opening.ports,
                interface=opening.interface,
                sources=opening.sources,
                masquerade=opening.masquerade,
            )
        case Nat():
            return Claim(Kind.NAT, opening.family, address=opening.public)
        case Route():
            return Claim(Kind.ROUTE, opening.family, subnet=opening.subnet)


def _target(opening: Opening) -> Target:
    match opening:
        case Forward():
            return Target(opening.target, opening.target_ports)
        case Nat():
            return Target(opening.target)
        case Route():
            return Target(bridge=opening.bridge)


# --- what waits ------------------------------------------------------------------------------------------------------


def _waiting(config: Config, waiting: Iterable[Waiting], live: Iterable[Row]) -> Iterator[Row]:
    reasons: defaultdict[Origin, list[Waiting]] = defaultdict(list)
    for item in waiting:
        reasons[item.origin].append(item)
    answered = {(row.origin, row.listens) for row in live}
    for entry in _entries(config):
        if found := _of_entry(entry, reasons.get(entry.origin, ())):
            yield from (row for row in _pending(entry, found) if (row.origin, row.listens) not in answered)


def _followed(row: Row, readings: Readings) -> Row:
    """Say which machine has the public address of a guest that was handed over."""
    address = row.claim.address if row.claim.kind is Kind.NAT else None
    if address is None or (mac := readings.elsewhere.get(address)) is None:
        return row
    return replace(row, reason=f"{row.reason}; the machine at {mac} has {address} now")


def _of_entry(entry: Entry, waiting: Sequence[Waiting]) -> Sequence[Waiting]:
    """Choose what is said of this entry; others may be written on the same line, and a domain by its UUID."""
    return [item for item in waiting if item.owner.name == _name(entry)] or waiting


def _pending(entry: Entry, waiting: Sequence[Waiting]) -> Iterator[Row]:
    hindrances = dict.fromkeys(item.reason for item in waiting)
    reason, kinds = "; ".join(map(why, hindrances)), tuple(dict.fromkeys(found.kind for found in hindrances))
    for claim, listens, origin in _claims(entry):
        yield Row(waiting[0].owner, State.WAITING, reason, listens, "", claim, None, origin, kinds=kinds)


def _claims(entry: Entry) -> Iterator[tuple[Claim, str, Origin]]:
    """Give what an entry asks for, how that is told, and where it is written."""
    match entry:
        case ForwardEntry():
            yield from _forward_claims(entry)
        case NatEntry():
            claim = Claim(Kind.NAT, Family.of(entry.public), address=entry.public)
            yield claim, f"all of {entry.public}", entry.origin
        case RouteEntry():
            claim = Claim(Kind.ROUTE, Family.of(entry.subnet), subnet=entry.subnet)
            yield claim, f"route {entry.subnet}", entry.origin


def _forward_claims(entry: ForwardEntry) -> Iterator[tuple[Claim, str, Origin]]:
    for mapping in entry.mappings:
        for listen in (mapping.listen,) if mapping.listen else entry.listen or (None,):
            claim = Claim(
                Kind.FORWARD,
                None if listen is None else Family.of(listen),
                mapping.protocol,
                listen,
                mapping.host,
                interface=entry.interface,
                sources=entry.sources,
                masquerade=entry.masquerade,
            )
            yield claim, f"{mapping.protocol} {show_endpoint(listen, mapping.host)}", mapping.origin


def _unanswered(config: Config) -> Iterator[Waiting]:
    for entry in _entries(config):
        kind = "network" if isinstance(entry, RouteEntry) else "domain"
        yield Waiting(Owner(_name(entry), kind), NO_ANSWER, entry.origin)


def _entries(config: Config) -> Iterator[Entry]:
    yield from config.forwards
    yield from config.nats
    yield from config.routes


def _name(entry: Entry) -> str:
    return entry.network if isinstance(entry, RouteEntry) else entry.domain


def _order(row: Row) -> tuple[object, ...]:
    claim = row.claim
    where = claim.address if claim.subnet is None else claim.subnet.network_address
    ports = (0, 0) if claim.ports is None else (claim.ports.first, claim.ports.last)
    return (
        row.owner.name,
        row.owner.kind,
        claim.kind,
        claim.protocol or "",
        ports,
        0 if where is None else where.version,
        0 if where is None else int(where),
        row.leads,
    )


# How the daemon is, in one line for `systemctl status`. Pure; `kvm-portfwd status` tells all of it.
_RULES_IN: Final = {"nftables": "nftables", "iptables": "legacy iptables tables"}
_REFUSED: Final = "a newer configuration is refused"


def summary(desired: Desired | None, header: Header, silent: Sequence[str]) -> str:
    """Say it; `desired` is what the kernel was last made to hold, and `silent` are the URIs that do not answer."""
    return printable("; ".join(_parts(desired, header, silent)))


def _parts(desired: Desired | None, header: Header, silent: Sequence[str]) -> Iterator[str]:
    if desired is not None:
        yield _openings(desired)
    if header.rules is not None:
        yield _RULES_IN.get(header.rules.backend, header.rules.backend)
    yield f"no answer from libvirt at {', '.join(silent)}" if silent else "libvirt answers"
    if header.configuration.refused is not None:
        is_last_good = header.configuration.is_last_good
        yield "the configuration is refused, the last good one in force" if is_last_good else _REFUSED
    if header.look is not None and header.look.error:
        yield f"the last look failed: {header.look.error}"
    elif header.problems:
        yield _counted(len(header.problems), "problem")


def _openings(desired: Desired) -> str:
    kinds = (desired.forwards, "forward"), (desired.nats, "1:1 address"), (desired.routes, "route")
    live = [_counted(len(found), kind) for found, kind in kinds if found] or ["nothing forwarded"]
    return ", ".join([*live, *([f"{len(desired.waiting)} waiting"] if desired.waiting else [])])


def _counted(number: int, thing: str) -> str:
    ending = "" if number == 1 else "es" if thing.endswith("s") else "s"
    return f"{number} {thing}{ending}"
