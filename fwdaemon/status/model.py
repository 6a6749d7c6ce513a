"""What `status` shows, as plain data, and its JSON form. Pure.

How the rows follow from what is known is in `fwdaemon.status.rows`; the names and types of the JSON form are described
in `fwdaemon/control/kvm.portfwd.Manager.varlink`. Names are held as they are: JSON escapes them, and
`fwdaemon.core.text.shown` does so for people. Times are UTC.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from fwdaemon.core.admission import Admission
from fwdaemon.core.exposures import Claim, Destination, Owner
from fwdaemon.core.inventory import HindranceKind
from fwdaemon.core.types import Address, Family, FleetState, Late, Origin
from fwdaemon.errors import Problem

# Rises when a key goes or changes its meaning; further keys may come without that.
SCHEMA_VERSION = 1


class State(StrEnum):
    """How an exposure is: reachable; not yet, for want of something; or the host does not let it."""

    ACTIVE = "active"
    WAITING = "waiting"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Usage:
    """What was counted of an exposure; `None` where that is unknown.

    `connections` began since `since`, where that is known. `open` are those the kernel tracks now, and `open_bytes`
    what they have carried in both directions, where the kernel is set to count that (nf_conntrack_acct). `dropped` are
    first packets over a limit, or of denied addresses; `None` where nothing is limited. What sets deny counts apart.
    `limited` are the sources that have gone over a limit of its entry of late, those with the most packets first; where
    these are not counted, `None`, the sources that may open none now. The first few are named, of `limited_sources`.
    """

    connections: int | None = None
    since: datetime | None = None
    open: int | None = None
    open_bytes: int | None = None
    dropped: int | None = None
    limited: tuple[tuple[Address, int | None], ...] = ()
    limited_sources: int = 0

    def as_json(self) -> dict[str, Any]:
        """Give the JSON form."""
        return {
            "connections": self.connections,
            "connections_since": time_as_json(self.since),
            "open_connections": self.open,
            "open_bytes": self.open_bytes,
            "dropped": self.dropped,
            "limited": [{"source": str(source), "dropped": number} for source, number in self.limited],
            "limited_sources": self.limited_sources,
        }


@dataclass(frozen=True, slots=True)
class OpenFor:
    """For how long something is open that was opened for a while, in seconds and as a time.

    `by` is who did that, and `ports` what was asked for, as `close` takes it.
    """

    until: datetime
    seconds: int
    by: str
    ports: str


@dataclass(frozen=True, slots=True)
class Row:
    """One exposure, or one that is asked for and waits.

    `listens` and `leads` are what the audit says of it; `leads` is empty, and `target` `None`, while it is not known
    where it will lead. `reason` is empty where it is active, unless it is still there because the last pass failed;
    `kinds` tell programs why an entry waits, or is still there. `open_for` is
    `None` but for what was opened for a while. `admission` is what is asked of clients where it is live.
    """

    owner: Owner
    state: State
    reason: str
    listens: str
    leads: str
    claim: Claim
    target: Destination | None
    origin: Origin | None
    usage: Usage = Usage()
    kinds: tuple[HindranceKind, ...] = ()
    open_for: OpenFor | None = None
    admission: Admission | None = None

    def as_json(self) -> dict[str, Any]:
        """Give the JSON form."""
        open_for = self.open_for
        target = self.target or Destination()
        return {
            "owner": self.owner.name,
            "owner_kind": self.owner.kind,
            "state": self.state.value,
            "reason": self.reason or None,
            "reason_kinds": [kind.value for kind in self.kinds],
            "listens": self.listens,
            "leads_to": self.leads or None,
            **_claim_as_json(self.claim),
            **_admission_as_json(self.claim, self.admission or Admission()),
            "target": _text(target.address),
            "target_ports": _text(target.ports),
            "bridge": target.bridge,
            **_origin_as_json(self.origin),
            "until": None if open_for is None else time_as_json(open_for.until),
            "remaining_seconds": None if open_for is None else open_for.seconds,
            "opened_by": None if open_for is None else open_for.by,
            "opened_ports": None if open_for is None else open_for.ports,
            **self.usage.as_json(),
        }


def _origin_as_json(origin: Origin | None) -> dict[str, Any]:
    """Say where an entry stands: on a line of a file, or in the metadata of a domain, and which policy allows it."""
    in_file = origin is not None and not origin.domain
    allowed = None if origin is None else origin.allowed
    return {
        "origin": _text(origin),
        "file": str(origin.file) if origin is not None and in_file else None,
        "line": origin.line if origin is not None and in_file else None,
        "allowed_by": _text(allowed),
    }


def _claim_as_json(claim: Claim) -> dict[str, Any]:
    return {
        "kind": claim.kind.value,
        "family": None if claim.family is None else int(claim.family),
        "protocol": None if claim.protocol is None else claim.protocol.value,
        "address": _text(claim.address),
        "ports": _text(claim.ports),
        "automatic": claim.auto,
        "subnet": _text(claim.subnet),
        "interface": claim.interface,
        "masquerade": claim.masquerade,
    }


def _admission_as_json(claim: Claim, asked: Admission) -> dict[str, Any]:
    """Say who may connect, and how often; sets are named as the configuration does."""
    sources, deny = (*claim.sources, *asked.sources), asked.deny
    return {
        "sources": [*map(str, sources), *(f"set:{name}" for name in asked.sets)],
        "deny": [*map(str, deny), *(f"set:{name}" for name in asked.denied)],
        "rate": _text(asked.rate),
        "max_open": asked.max_open,
    }


@dataclass(frozen=True, slots=True)
class Process:
    """The running daemon."""

    pid: int
    since: datetime


@dataclass(frozen=True, slots=True)
class Rules:
    """Which of the kernel's rule systems the rules are in, by its name in the configuration and for people, and why."""

    backend: str
    title: str
    reason: str

    def as_json(self) -> dict[str, str]:
        """Give it with stable keys."""
        return {"name": self.backend, "title": self.title, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class RefusedReload:
    """A configuration that was not taken up, and everything that is wrong with it."""

    at: datetime
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Configuration:
    """The configuration in force; `refused` is a later one that was not taken up.

    Where the file was wrong when the daemon started, the one in force is the last good one, loaded by an earlier run.
    One that waits to be confirmed goes `unless_by` then, in `seconds_left`; where that was not done, the one before
    `is_back` in force.
    """

    file: Path
    loaded_at: datetime | None = None
    refused: RefusedReload | None = None
    is_last_good: bool = False
    unless_by: datetime | None = None
    seconds_left: int | None = None
    is_back: bool = False


@dataclass(frozen=True, slots=True)
class LibvirtState:
    """How the connection to a URI is, and since when; `last_error` is the last one there was."""

    uri: str
    connected: bool
    since: datetime
    last_error: str | None = None


@dataclass(frozen=True, slots=True)
class Pass:
    """The last time the kernel was brought to the desired state; `error` says that it was not."""

    at: datetime
    seconds: float
    changed: bool
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Restored:
    """Something that was found missing and put back, with the number of `more` like it, and the cause of its loss."""

    at: datetime
    what: str
    more: int
    cause: str


@dataclass(frozen=True, slots=True)
class Header:
    """Everything but the exposures; `daemon` is `None` where none runs. `uplinks` lead away from the host.

    In `confined` families forwarding was off before us, and the rules refuse what no exposure is for and what libvirt
    does not forward for its networks. On `confined_interfaces` it was off on them alone, and what comes in there is
    refused so. `late` is work that has gone on for too long, `lost_lines` how many lines of the journal were lost, and
    `unlogged` how many begins and ends of connections that were to be logged.
    """

    version: str
    configuration: Configuration
    daemon: Process | None = None
    rules: Rules | None = None
    libvirt: tuple[LibvirtState, ...] = ()
    last_pass: Pass | None = None
    restored: tuple[Restored, ...] = ()
    problems: tuple[str, ...] = ()
    uplinks: tuple[str, ...] = ()
    confined: tuple[Family, ...] = ()
    confined_interfaces: tuple[str, ...] = ()
    fleet: FleetState | None = None
    late: tuple[Late, ...] = ()
    lost_lines: int = 0
    unlogged: int = 0

    def as_json(self) -> dict[str, Any]:
        """Give the JSON form."""
        return {
            "schema_version": SCHEMA_VERSION,
            "version": self.version,
            "daemon": None
            if self.daemon is None
            else {"pid": self.daemon.pid, "since": time_as_json(self.daemon.since)},
            "backend": None if self.rules is None else self.rules.as_json(),
            "configuration": _configuration(self.configuration),
            "libvirt": [_libvirt(state) for state in self.libvirt],
            "last_look": None if self.last_pass is None else _last_pass(self.last_pass),
            "restored": [_restored(entry) for entry in self.restored],
            "problems": list(self.problems),
            "uplinks": list(self.uplinks),
            "confined": list(map(int, self.confined)),
            "confined_interfaces": list(self.confined_interfaces),
            "fleet": None if self.fleet is None else fleet_as_json(self.fleet),
            "late": [_late(late) for late in self.late],
            "lost_log_lines": self.lost_lines,
            "lost_connection_events": self.unlogged,
        }


@dataclass(frozen=True, slots=True)
class Status:
    """Everything `status` shows; `denied` is how many first packets were dropped for each set that denies."""

    header: Header
    rows: tuple[Row, ...]
    denied: Mapping[str, int] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Write the JSON form, ASCII only.

        Row by row: the interpreter lets other threads run in between, but not while it writes one large value.
        """
        denied = [{"set": name, "dropped": number} for name, number in sorted(self.denied.items())]
        head = json.dumps(self.header.as_json() | {"counts": counts(self.rows), "denied": denied})
        rows = ", ".join(json.dumps(row.as_json()) for row in self.rows)
        return f'{head[:-1]}, "openings": [{rows}]}}'.encode("ascii")


def counts(rows: Iterable[Row]) -> Mapping[str, int]:
    """Count the rows of each state."""
    found = dict.fromkeys(map(str, State), 0)
    for row in rows:
        found[row.state.value] += 1
    return found


def problem_as_json(problem: Problem) -> dict[str, Any]:
    """Give the JSON form of what is wrong at one place of the configuration."""
    return {"file": str(problem.file), "line": problem.line, "text": problem.text}


def time_as_json(moment: datetime | None) -> str | None:
    """Write a UTC time as RFC 3339 does."""
    return None if moment is None else moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _configuration(configuration: Configuration) -> dict[str, Any]:
    refused = configuration.refused
    return {
        "file": str(configuration.file),
        "loaded_at": time_as_json(configuration.loaded_at),
        "last_good": configuration.is_last_good,
        "refused_at": None if refused is None else time_as_json(refused.at),
        "confirm_by": time_as_json(configuration.unless_by),
        "remaining_seconds": configuration.seconds_left,
        "unconfirmed": configuration.is_back,
        "refused_problems": [] if refused is None else [problem_as_json(problem) for problem in refused.problems],
    }


def fleet_as_json(state: FleetState) -> dict[str, Any]:
    """Give the JSON form of how it is with etcd."""
    return {
        "answering": state.answering,
        "members": state.members,
        "revision": state.revision,
        "age_seconds": None if state.age is None else round(state.age, 3),
        "entries": state.entries,
        "held": [str(address) for address in state.held],
    }


def _libvirt(state: LibvirtState) -> dict[str, Any]:
    return asdict(state) | {"since": time_as_json(state.since)}


def _late(late: Late) -> dict[str, Any]:
    return {"job": late.job.value, "about": late.about or None, "seconds": round(late.seconds, 3)}


def _last_pass(last_pass: Pass) -> dict[str, Any]:
    return {
        "at": time_as_json(last_pass.at),
        "seconds": round(last_pass.seconds, 6),
        "changed": last_pass.changed,
        "error": last_pass.error,
    }


def _restored(entry: Restored) -> dict[str, Any]:
    return {"at": time_as_json(entry.at), "what": entry.what, "more": entry.more, "cause": entry.cause}


def _text(item: object | None) -> str | None:
    return None if item is None else str(item)
