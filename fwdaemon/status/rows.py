"""The rows of the status, and all of it in one line. Pure."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from fwdaemon.audit.causes import followed, why
from fwdaemon.audit.lines import format_fault
from fwdaemon.config.model import Config, Entry
from fwdaemon.core.exposures import Claim, Exposure, Kind, Owner
from fwdaemon.core.inventory import Hindrance, HindranceKind
from fwdaemon.core.report import Fault, FaultKind
from fwdaemon.core.state import Desired, Dropped, Waiting
from fwdaemon.core.text import printable
from fwdaemon.core.types import Address, Family, Origin
from fwdaemon.status.model import Header, OpenFor, Row, State, Usage

# From what is known to the rows of `status`. Pure.
#
# What is live has a row for each exposure. What waits has one for each port string, and each address it is to listen
# on, that nothing live answers for.
# So many of those over a limit are named; of a flood, all would be too many.
_MOST_LIMITED: Final = 10
NO_ANSWER: Final = Hindrance(HindranceKind.NO_ANSWER)


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the rows follow from, as references to what never changes.

    `wanted` is `None` until libvirt has answered; `held` is what the kernel was last made to hold. Where it does not
    hold what is wanted, `failure` says why, and `lacking` what that makes of an exposure. `refused` says why exposures
    of a family cannot work, or single ones, and `since` when the counting of an exposure's connections began.
    `open_for` is for what was opened for a while, by where that is said to be asked for.
    """

    config: Config
    wanted: Desired | None = None
    held: Desired | None = None
    failure: str = ""
    lacking: State = State.REFUSED
    refused: Mapping[Family | Exposure, Fault] = field(default_factory=dict)
    since: Mapping[Exposure, datetime] = field(default_factory=dict)
    open_for: Mapping[Origin, OpenFor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Readings:
    """What the kernel says when it is asked: connections that rules counted, open ones and their bytes.

    Exposures may be missing in either; `open` is `None` where the kernel does not say. It forwards no packets of the
    families in `not_forwarding`. `elsewhere` are listening addresses that other machines have now, each with the MAC
    address of the machine.
    """

    connections: Mapping[Exposure, int] = field(default_factory=dict)
    open: Mapping[Exposure, tuple[int, int | None]] | None = None
    not_forwarding: frozenset[Family] = frozenset()
    elsewhere: Mapping[Address, str] = field(default_factory=dict)
    dropped: Dropped = field(default_factory=Dropped)


def rows(facts: Facts, readings: Readings) -> tuple[Row, ...]:
    """Give all rows, by owner, then by what they listen on."""
    held = facts.held.exposures if facts.held is not None else frozenset()
    wanted = facts.wanted.exposures if facts.wanted is not None and facts.failure else frozenset()
    live = [_live(exposure, held, facts, readings) for exposure in held | wanted]
    pending = (_followed(row, readings) for row in _waiting(facts.config, facts.wanted, live))
    found = sorted([*live, *pending], key=_order)
    return tuple(_with_end(row, facts.open_for) for row in found) if facts.open_for else tuple(found)


def _with_end(row: Row, open_for: Mapping[Origin, OpenFor]) -> Row:
    return replace(row, open_for=open_for.get(row.origin)) if row.origin is not None else row


# --- what is live ----------------------------------------------------------------------------------------------------


def _live(exposure: Exposure, held: frozenset[Exposure], facts: Facts, readings: Readings) -> Row:
    is_held = exposure in held
    state, found = _state(exposure, facts, readings) if is_held else (facts.lacking, facts.failure)
    reason, kinds = (why(found), (found.kind,)) if isinstance(found, Hindrance) else (found, ())
    return Row(
        exposure.owner,
        state,
        reason,
        exposure.listens_at(),
        exposure.leads_to(),
        exposure.claim,
        exposure.destination,
        exposure.origin,
        _usage(exposure, facts, readings) if is_held else Usage(),
        kinds,
        admission=exposure.admission,
    )


def _state(exposure: Exposure, facts: Facts, readings: Readings) -> tuple[State, str | Hindrance]:
    """Say how what the kernel holds is, and why it is not reached, or still is."""
    if refusal := _refusal(exposure, facts, readings):
        return State.REFUSED, format_fault(refusal)
    if facts.failure and facts.wanted is not None and exposure not in facts.wanted.exposures:
        return State.ACTIVE, Hindrance(HindranceKind.NOT_REMOVED, names=(facts.failure,))
    listen = exposure.claim.address if exposure.claim.kind is Kind.FORWARD else None
    if listen is None or (mac := readings.elsewhere.get(listen)) is None:
        return State.ACTIVE, ""
    return State.WAITING, Hindrance(HindranceKind.HELD_ELSEWHERE, listen, names=(mac,))


def _refusal(exposure: Exposure, facts: Facts, readings: Readings) -> Fault | None:
    family = exposure.family
    if refused := facts.refused.get(family) or facts.refused.get(exposure):
        return refused
    return Fault(FaultKind.HOST_NOT_FORWARDING, (str(family),)) if family in readings.not_forwarding else None


def _usage(exposure: Exposure, facts: Facts, readings: Readings) -> Usage:
    connections = readings.connections.get(exposure)
    since = facts.since.get(exposure) if connections is not None else None
    usage = Usage(connections, since)
    if readings.open is not None:
        number, carried = readings.open.get(exposure, (0, None))
        usage = replace(usage, open=number, open_bytes=carried)
    if exposure.admission is None:
        return usage
    dropped = readings.dropped.by_exposure.get(exposure, 0)
    by_source = readings.dropped.by_source.get(exposure.counted_as, {}).items()
    limited = [(source, number) for source, number in by_source if Family.of(source) is exposure.family]
    limited.sort(key=lambda item: (-(item[1] or 0), int(item[0])))
    return replace(usage, dropped=dropped, limited=tuple(limited[:_MOST_LIMITED]), limited_sources=len(limited))


# --- what waits ------------------------------------------------------------------------------------------------------


def _waiting(config: Config, wanted: Desired | None, live: Collection[Row]) -> Iterator[Row]:
    waiting = wanted.waiting if wanted is not None else tuple(_unanswered(config))
    reasons: defaultdict[Origin, list[Waiting]] = defaultdict(list)
    single: defaultdict[tuple[Origin, Owner, Claim], list[Waiting]] = defaultdict(list)
    for item in waiting:
        if item.claim is None:
            reasons[item.origin].append(item)
        else:
            single[item.origin, item.owner, item.claim].append(item)
    answered = {(row.origin, row.listens) for row in live}
    known = {(row.owner, row.origin, row.listens) for row in live}
    every = [_of_claims(items, claim, origin) for (origin, _, claim), items in single.items()]
    apart = [row for row in every if (row.owner, row.origin, row.listens) not in known]
    yield from apart
    for entry in config.entries:
        found = _of_entry(entry, reasons.get(entry.origin, ()), is_answered=wanted is not None)
        if found:
            rows = _pending(entry.every_claim(), found)
            yield from (row for row in rows if (row.origin, row.listens) not in answered)
    if wanted is not None:
        yield from _of_domains(wanted, reasons, (*live, *apart))


def _of_domains(wanted: Desired, reasons: Mapping[Origin, Sequence[Waiting]], live: Collection[Row]) -> Iterator[Row]:
    """Give what waits or is refused of expanded entries, for each domain by itself.

    Of domains that one entry is for by a pattern, those that do not run are none of its rows.
    """
    answered = {(row.owner, row.origin, row.listens) for row in live}
    for entry in wanted.expanded:
        every = reasons.get(entry.origin, ())
        found = [item for item in every if item.owner == entry.owner] or ([] if entry.is_matched else every)
        if found := [item for item in found if not item.is_idle]:
            rows = _pending(entry.claims, found)
            yield from (row for row in rows if (row.owner, row.origin, row.listens) not in answered)


def _followed(row: Row, readings: Readings) -> Row:
    """Say which machine has the public address of a guest that was handed over."""
    address = row.claim.address if row.claim.kind is Kind.NAT else None
    if address is None or (mac := readings.elsewhere.get(address)) is None:
        return row
    return replace(row, reason=followed(row.reason, address, mac))


def _of_entry(entry: Entry, waiting: Sequence[Waiting], *, is_answered: bool) -> Sequence[Waiting]:
    """Choose what is said of this entry; others may be written on the same line, and a domain by its UUID.

    Of one that takes an inventory, that is only that there is no domain for it.
    """
    if entry.is_open and is_answered:
        return [item for item in waiting if item.reason.kind is HindranceKind.NO_RUNNING_DOMAIN]
    return [item for item in waiting if item.owner.name == entry.owner.name] or waiting


def _pending(claims: Iterable[tuple[Claim, Origin]], waiting: Sequence[Waiting]) -> Iterator[Row]:
    for claim, origin in claims:
        yield _of_claims(waiting, claim, origin)


def _of_claims(waiting: Sequence[Waiting], claim: Claim, origin: Origin) -> Row:
    """Give the row of a claim that is not live, with all the reasons."""
    hindrances = dict.fromkeys(item.reason for item in waiting)
    reason, kinds = "; ".join(map(why, hindrances)), tuple(dict.fromkeys(found.kind for found in hindrances))
    state = State.REFUSED if waiting[0].refused else State.WAITING
    return Row(waiting[0].owner, state, reason, str(claim), "", claim, None, origin, kinds=kinds)


def _unanswered(config: Config) -> Iterator[Waiting]:
    for entry in config.entries:
        yield Waiting(entry.owner, NO_ANSWER, entry.origin)


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


# How the daemon is, in one line for `systemctl status`. Pure; `kvm-portfwd status` shows all of it.
_REFUSED: Final = "a newer configuration is refused"


def summary(desired: Desired | None, header: Header, silent: Sequence[str]) -> str:
    """Say it; `desired` is what the kernel was last made to hold, and `silent` are the URIs that do not answer."""
    return printable("; ".join(_parts(desired, header, silent)))


def _parts(desired: Desired | None, header: Header, silent: Sequence[str]) -> Iterator[str]:
    if desired is not None:
        yield _exposures(desired)
    if header.rules is not None:
        yield header.rules.title
    yield f"no answer from libvirt at {', '.join(silent)}" if silent else "libvirt answers"
    if header.configuration.refused is not None:
        is_last_good = header.configuration.is_last_good
        yield "the configuration is refused, the last good one in force" if is_last_good else _REFUSED
    if header.last_pass is not None and header.last_pass.error:
        yield f"the last pass failed: {header.last_pass.error}"
    elif header.problems:
        yield _counted(len(header.problems), "problem")
    if header.late:
        yield f"{_counted(len(header.late), 'job')} late"


def _exposures(desired: Desired) -> str:
    live = [_counted(len(found), kind.noun) for kind, found in desired.by_kind.items() if found]
    live = live or ["nothing forwarded"]
    waiting = sum(not entry.is_idle for entry in desired.waiting)
    return ", ".join([*live, *([f"{waiting} waiting"] if waiting else [])])


def _counted(number: int, thing: str) -> str:
    ending = "" if number == 1 else "es" if thing.endswith("s") else "s"
    return f"{number} {thing}{ending}"
