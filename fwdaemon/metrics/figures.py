"""From a status and a tally to metrics, as plain data. Pure.

Names and units follow Prometheus' rules (https://prometheus.io/docs/practices/naming/). Every value of a label that is
known beforehand has its sample from the start, so that a first event is seen as a rise.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from itertools import product
from typing import Final, TypeAlias, TypeVar

from fwdaemon.core.exposures import Kind
from fwdaemon.core.report import Actor, ActorKind, ReconcileReport
from fwdaemon.core.types import FleetState, Job
from fwdaemon.status.model import Configuration, Header, Row, State, Status, Usage

# What is counted while the daemon works, from its start on. Pure.

# Upper bounds of how long a reconcile takes: from one netlink message to a program that is given up after 30 s.
BOUNDS_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)

E = TypeVar("E", bound=StrEnum)


class Result(StrEnum):
    """How a reconcile ended: nothing had to be done, something was, or it could not be."""

    UNCHANGED = "unchanged"
    CHANGED = "changed"
    FAILED = "failed"


class Cause(StrEnum):
    """Who changed what was put back; processes may have any name, so only a few have a value of their own."""

    NFT = "nft"
    IPTABLES = "iptables"
    FIREWALLD = "firewalld"
    LEGACY = "iptables-legacy"
    ROUTING = "routing"
    OTHER = "other"
    UNKNOWN = "unknown"


_PROGRAMS: Final = (
    (re.compile("nft"), Cause.NFT),
    (re.compile("(ip6?|x)tables[a-z0-9-]*"), Cause.IPTABLES),
    (re.compile("firewalld"), Cause.FIREWALLD),
)
"""Names of processes, as the kernel gives the first 15 characters of them."""
_OTHERS: Final = {
    ActorKind.LEGACY_TABLES: Cause.LEGACY,
    ActorKind.COMMITS_LOST: Cause.UNKNOWN,
    ActorKind.ROUTES_LOST: Cause.UNKNOWN,
}


def cause_of(actors: Sequence[Actor]) -> Cause:
    """Give who it was; of several, the first."""
    if not actors:
        return Cause.UNKNOWN
    first = actors[0]
    if first.kind is ActorKind.PROGRAM:
        return next((cause for name, cause in _PROGRAMS if name.fullmatch(first.process)), Cause.OTHER)
    return _OTHERS.get(first.kind, Cause.ROUTING)


def _none_of(kinds: type[E]) -> Mapping[E, int]:
    return dict.fromkeys(kinds, 0)


@dataclass(frozen=True, slots=True)
class Tally:
    """The counters. It never changes; each reconcile gives a new one.

    `within` counts how many reconciles took no longer than each of `BOUNDS_S`, `seconds` is the sum of their times.
    `restores` counts reconciles that put back what was taken away, `ended` connections that were ended.
    """

    reconciles: Mapping[Result, int] = field(default_factory=lambda: _none_of(Result))
    within: tuple[int, ...] = (0,) * len(BOUNDS_S)
    seconds: float = 0.0
    restores: Mapping[Cause, int] = field(default_factory=lambda: _none_of(Cause))
    ended: int = 0

    def pass_ended(self, report: ReconcileReport, seconds: float) -> "Tally":
        """Count a reconcile that ended well."""
        counted = self._timed(Result.CHANGED if report.result.changed else Result.UNCHANGED, seconds)
        restores = _one_more(self.restores, cause_of(report.actors)) if _restored(report) else self.restores
        return replace(counted, restores=restores, ended=self.ended + report.ended)

    def failed(self, seconds: float) -> "Tally":
        """Count one that did not."""
        return self._timed(Result.FAILED, seconds)

    def _timed(self, result: Result, seconds: float) -> "Tally":
        first = bisect_left(BOUNDS_S, seconds)
        within = tuple(number + (index >= first) for index, number in enumerate(self.within))
        reconciles = _one_more(self.reconciles, result)
        return replace(self, reconciles=reconciles, within=within, seconds=self.seconds + seconds)


def _one_more(counts: Mapping[E, int], kind: E) -> Mapping[E, int]:
    return {**counts, kind: counts[kind] + 1}


def _restored(report: ReconcileReport) -> bool:
    has_exposure = any(change.action == "restored" for change in report.changes)
    return has_exposure or any(gate.restored for gate in report.result.gates)


PREFIX: Final = "kvm_portfwd_"
_UNUSED: Final = Usage()

_Labels: TypeAlias = tuple[tuple[str, str], ...]
_Used: TypeAlias = Iterable[tuple[_Labels, Usage]]


class Type(StrEnum):
    """What a metric is, in Prometheus' words."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Sample:
    """One value; the sample's name is the metric's followed by `suffix`."""

    value: float
    labels: Mapping[str, str]
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric with its samples; the name of a counter lacks `_total`, which its samples have as their suffix."""

    name: str
    type: Type
    help: str
    samples: tuple[Sample, ...]


def metrics_of(status: Status, tally: Tally, now: datetime) -> tuple[Metric, ...]:
    """Give all metrics; `now` is when they are written."""
    return (
        *_own(status.header, now),
        *_exposures(status.rows),
        _denied(status.denied),
        *_work(tally),
        *_configuration(status.header.configuration),
    )


def _own(header: Header, now: datetime) -> Iterator[Metric]:
    yield _gauge("build_info", "Always 1, with the running version as a label.", {"version": header.version})
    yield _gauge("metrics_timestamp_seconds", "When these metrics were written.", value=now.timestamp())
    yield Metric(
        f"{PREFIX}libvirt_connected",
        Type.GAUGE,
        "Whether a libvirt URI is connected.",
        tuple(Sample(state.connected, {"uri": state.uri}) for state in header.libvirt),
    )
    yield _gauge("problems", "Problems that the last reconcile left.", value=len(header.problems))
    yield from _behind(header)
    if header.fleet is not None:
        yield from _fleet(header.fleet)


def _behind(header: Header) -> Iterator[Metric]:
    longest = dict.fromkeys(Job, 0.0)
    for late in header.late:
        longest[late.job] = max(longest[late.job], late.seconds)
    samples = tuple(Sample(seconds, _labels(job=job)) for job, seconds in longest.items())
    yield Metric(
        f"{PREFIX}late_seconds", Type.GAUGE, "Seconds that overdue background jobs have been running.", samples
    )
    for name, what, lost in (
        ("log_lines_lost", "Log lines that were not taken in time.", header.lost_lines),
        ("connection_log_lost", "Connection start and end events not logged in time.", header.unlogged),
    ):
        yield Metric(f"{PREFIX}{name}", Type.COUNTER, what, (Sample(lost, {}, "_total"),))


def _fleet(fleet: FleetState) -> Iterator[Metric]:
    yield _gauge("etcd_members", "Members of etcd that are configured.", value=fleet.members)
    yield _gauge("etcd_members_answering", "Members of etcd that answer.", value=fleet.answering)
    yield _gauge("table_revision", "Revision of the shared table in force.", value=fleet.revision)
    yield _gauge("table_entries", "Entries of the shared table in force.", value=fleet.entries)
    yield _gauge("claims_held", "Public addresses of the shared table that this host may have.", value=len(fleet.held))


# --- exposures --------------------------------------------------------------------------------------------------------


def _exposures(rows: Iterable[Row]) -> Iterator[Metric]:
    every = list(rows)
    used = [(tuple(_identity(row).items()), row.usage) for row in every if row.usage != _UNUSED]
    found = Counter((row.claim.kind, row.state) for row in every)
    yield Metric(
        f"{PREFIX}openings",
        Type.GAUGE,
        "Port forwards, 1:1 addresses and routes by their state.",
        tuple(Sample(found[pair], _labels(kind=pair[0], state=pair[1])) for pair in product(Kind, State)),
    )
    ports = {row.claim.ports for row in every if row.claim.auto and row.claim.ports is not None}
    yield _gauge("auto_ports", "Ports of auto_ports that lead to running domains.", value=len(ports))
    yield _summed(
        "connections",
        Type.COUNTER,
        "Connections that came in, or left by a 1:1 address, since its rules were made.",
        used,
        lambda usage: usage.connections,
    )
    yield _summed("open_connections", Type.GAUGE, "Connections open now.", used, lambda usage: usage.open)
    yield _summed(
        "open_connections_bytes",
        Type.GAUGE,
        "Bytes that the connections open now have carried, where the kernel counts them (nf_conntrack_acct).",
        used,
        lambda usage: usage.open_bytes,
    )
    text = "First packets over a limit, or from addresses that an entry denies."
    yield _summed("dropped", Type.COUNTER, text, used, lambda usage: usage.dropped)
    text = "Source addresses over a limit now or of late; all ports of an entry have the same."
    yield _summed("limited_sources", Type.GAUGE, text, used, _limited_sources)


def _limited_sources(usage: Usage) -> int | None:
    return None if usage.dropped is None else usage.limited_sources


def _denied(denied: Mapping[str, int]) -> Metric:
    samples = tuple(Sample(number, _labels(set=name), "_total") for name, number in sorted(denied.items()))
    return Metric(f"{PREFIX}denied", Type.COUNTER, "First packets dropped as their source is in a set.", samples)


def _summed(name: str, kind: Type, text: str, used: _Used, value: Callable[[Usage], int | None]) -> Metric:
    """Give a sample for each exposure that has a value; those with the same labels differ in their sources only."""
    sums = Counter[_Labels]()
    for labels, usage in used:
        if (number := value(usage)) is not None:
            sums[labels] += number
    suffix = "_total" if kind is Type.COUNTER else ""
    return Metric(f"{PREFIX}{name}", kind, text, tuple(Sample(sums[key], dict(key), suffix) for key in sums))


def _identity(row: Row) -> Mapping[str, str]:
    claim = row.claim
    return _labels(
        domain=row.owner.name if row.owner.kind == "domain" else "",
        network=row.owner.name if row.owner.kind == "network" else "",
        kind=claim.kind,
        family=claim.family,
        protocol=claim.protocol,
        address=claim.subnet or claim.address or "*",
        ports=claim.ports,
        interface=claim.interface,
    )


# --- work ------------------------------------------------------------------------------------------------------------


def _work(tally: Tally) -> Iterator[Metric]:
    yield Metric(
        f"{PREFIX}reconciles",
        Type.COUNTER,
        "Reconciles by result.",
        tuple(Sample(number, _labels(result=result), "_total") for result, number in tally.reconciles.items()),
    )
    yield Metric(
        f"{PREFIX}reconcile_duration_seconds",
        Type.HISTOGRAM,
        "Duration of reconciles in seconds.",
        tuple(_distribution(tally)),
    )
    yield Metric(
        f"{PREFIX}restores",
        Type.COUNTER,
        "Reconciles that restored what another program had removed, by program.",
        tuple(Sample(number, _labels(cause=cause), "_total") for cause, number in tally.restores.items()),
    )
    yield Metric(
        f"{PREFIX}ended_connections",
        Type.COUNTER,
        "Connections ended because their forward was removed or leads elsewhere.",
        (Sample(tally.ended, {}, "_total"),),
    )


def _distribution(tally: Tally) -> Iterator[Sample]:
    every = sum(tally.reconciles.values())
    for bound, number in zip((*BOUNDS_S, "+Inf"), (*tally.within, every), strict=True):
        yield Sample(number, {"le": str(bound)}, "_bucket")
    yield Sample(every, {}, "_count")
    yield Sample(tally.seconds, {}, "_sum")


# --- configuration ---------------------------------------------------------------------------------------------------


def _configuration(configuration: Configuration) -> Iterator[Metric]:
    refused, loaded_at = configuration.refused, configuration.loaded_at
    yield _gauge(
        "config_last_reload_successful",
        "Whether the configuration was accepted when it was last read.",
        value=refused is None,
    )
    if loaded_at is not None:
        yield _gauge(
            "config_last_reload_success_timestamp_seconds",
            "When the configuration in force was read.",
            value=loaded_at.timestamp(),
        )
    yield _gauge(
        "config_problems",
        "Errors in the configuration that was last read.",
        value=0 if refused is None else len(refused.problems),
    )


def _gauge(name: str, text: str, labels: Mapping[str, str] | None = None, *, value: float = 1) -> Metric:
    return Metric(f"{PREFIX}{name}", Type.GAUGE, text, (Sample(value, labels or {}),))


def _labels(**values: object) -> Mapping[str, str]:
    """Write values of labels; an empty one is the same as none to Prometheus."""
    return {name: "" if value is None else str(value) for name, value in values.items()}
