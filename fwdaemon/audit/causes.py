"""What changed, why, and what waits, as data and in words. Pure."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final

from fwdaemon.core.exposures import Exposure, Owner
from fwdaemon.core.inventory import HijackedAddress, Hindrance, HindranceKind, Place
from fwdaemon.core.report import (
    Actor,
    ActorKind,
    ApplyResult,
    Cause,
    Change,
    Reason,
    ReasonKind,
    ReconcileReport,
)
from fwdaemon.core.state import Desired, Namesake, Unchosen, Waiting
from fwdaemon.core.text import printable, shown
from fwdaemon.core.types import Address, Origin

# What changed: a function of what was applied before, what is now, and what the backend found in between. Pure.


def in_order(exposures: Collection[Exposure]) -> list[Exposure]:
    """Give exposures in the order in which the audit lists them."""
    return sorted(exposures, key=lambda exposure: (exposure.owner, exposure.listens_at()))


@dataclass(frozen=True, slots=True)
class Known:
    """What is known: `reasons` are for exposures that come and go, `actors` for those that were found missing.

    `of_removal` gives which reasons count for an exposure that went: where it was held for a moment, earlier ones too.
    """

    reasons: tuple[Reason, ...] = ()
    actors: tuple[Actor, ...] = ()
    of_removal: Callable[[Exposure, tuple[Reason, ...]], tuple[Reason, ...]] = field(default=lambda _, reasons: reasons)


def changes(before: ReconcileReport | None, after: Desired, result: ApplyResult, known: Known) -> tuple[Change, ...]:
    """Give what changed since `before`; at first only what was not found of an earlier run."""
    if before is None:
        cause = Cause(known.reasons)
        return tuple(Change("added", exposure, cause) for exposure in in_order(result.mended))
    if after is before.desired and not result.changed:
        return ()
    live, now = before.desired.exposures, after.exposures
    gone, come = live - now, now - live
    removed = ((exposure, known.of_removal(exposure, known.reasons)) for exposure in in_order(gone))
    had_another = frozenset(item.owner for item in gone)
    # To note where each of thousands of guests is would take longer than all else.
    new_homes = _homes(item for item in come if item.owner in had_another)
    new_homes = new_homes - _homes(live) if new_homes else new_homes
    return (
        *(Change("removed", exposure, of_end(exposure, after, reasons, new_homes)) for exposure, reasons in removed),
        *(Change("added", item, of_start(item, before.placed, known.reasons, new_homes)) for item in in_order(come)),
        *(
            Change("restored", exposure, of_loss(exposure, known.reasons, known.actors))
            for exposure in in_order(result.damaged & live & now)
        ),
    )


def _homes(exposures: Iterable[Exposure]) -> frozenset[tuple[Owner, str]]:
    return frozenset((item.owner, str(item.guest)) for item in exposures if item.guest is not None)


# Which of the known reasons explains a change, for the audit. Pure.
#
# Events arrive in bursts and in any order: the kernel may report that a guest's neighbour entry came before libvirt
# reports that the domain started. So a reason that names the owner is preferred, then what the state itself says, then
# what may concern any owner. What happened to other domains and other guests' addresses explains nothing.
_OPENINGS: Final = frozenset({ReasonKind.OPENED, ReasonKind.CLOSED, ReasonKind.ENDED})
_OF_DOMAINS: Final = _OPENINGS | {ReasonKind.DOMAIN, ReasonKind.DEVICES, ReasonKind.AGENT, ReasonKind.METADATA}
_OF_CLAIMS: Final = frozenset({ReasonKind.CLAIM_TAKEN, ReasonKind.CLAIM_LOST})
_OF_CONFIGURATION: Final = frozenset({ReasonKind.CONFIGURATION, ReasonKind.UNCONFIRMED, ReasonKind.TABLE})
_OF_NETWORKS: Final = frozenset({ReasonKind.NETWORK, ReasonKind.RESERVATIONS})


def of_start(
    exposure: Exposure, before: Desired, reasons: Iterable[Reason], moved: Collection[tuple[Owner, str]] = ()
) -> Cause:
    """Give why an exposure is live now that was not in the state `before`; `moved` are new homes."""
    known, owner = list(reasons), exposure.owner
    now = [Reason(ReasonKind.RUNNING, owner.name, owner.kind)] if owner in before.stopped else []
    # An inventory may hold a new address before the event about it arrives.
    there = [Reason(ReasonKind.MOVED, str(exposure.guest))] if (owner, str(exposure.guest)) in moved else []
    of_others = _freed(owner, before, known) or _concerning(exposure, known)
    return Cause(tuple(_naming(owner, known) or now or of_others or there))


def _freed(owner: Owner, before: Desired, known: Iterable[Reason]) -> list[Reason]:
    """Give what happened to the domains that claimed what the owner waited for."""
    waiting = (entry.reason for entry in before.hindered.get(owner, ()))
    claims = (found for found in waiting if found.kind is HindranceKind.CLAIMED)
    takers = [Owner(name) for found in claims for name in found.names]
    return [reason for taker in takers for reason in _naming(taker, known)]


def of_end(
    exposure: Exposure,
    after: Desired,
    reasons: Iterable[Reason],
    new_homes: AbstractSet[tuple[Owner, str]] = frozenset(),
) -> Cause:
    """Give why an exposure is not in the state `after` any more; `new_homes` are where owners are from now on."""
    known, owner = list(reasons), exposure.owner
    entries = (entry for entry in after.hindered.get(owner, ()) if _is_for(entry, exposure))
    waiting = dict.fromkeys(entry.reason for entry in entries)
    moved = [reason for reason in known if reason.kind is ReasonKind.NEIGHBOUR and (owner, reason.subject) in new_homes]
    # Of one that has stopped, libvirt's event may come later than what the kernel reports about its address.
    after_loss = any(reason.kind is ReasonKind.LIBVIRT for reason in known)
    now = [Reason(ReasonKind.STOPPED, owner.name, owner.kind)] if owner in after.stopped and not after_loss else []
    return Cause(tuple(_naming(owner, known) or waiting or now or [*moved, *_concerning(exposure, known)]))


def _is_for(entry: Waiting, exposure: Exposure) -> bool:
    """Whether what waits could be this; of what a domain asks for, each claim waits for reasons of its own."""
    return entry.claim is None or str(entry.claim) == exposure.listens_at()


def of_loss(exposure: Exposure, reasons: Iterable[Reason], actors: tuple[Actor, ...]) -> Cause:
    """Give why something that was in place had to be put back; `actors` are those who changed rules or routes."""
    known = list(reasons)
    return Cause(actors or tuple(_naming(exposure.owner, known) or _concerning(exposure, known)))


def _naming(owner: Owner, reasons: Iterable[Reason]) -> list[Reason]:
    kinds = _OF_DOMAINS if owner.kind == "domain" else _OF_NETWORKS
    return [reason for reason in reasons if reason.kind in kinds and reason.subject == owner.name]


def _concerning(exposure: Exposure, reasons: Iterable[Reason]) -> list[Reason]:
    return [reason for reason in reasons if _may_concern(exposure, reason)]


def _may_concern(exposure: Exposure, reason: Reason) -> bool:
    """Whether a reason that does not name the owner may be one: not where it names another."""
    match reason.kind:
        case kind if kind in _OF_DOMAINS:
            return False
        case ReasonKind.NEIGHBOUR:
            return exposure.guest is not None and str(exposure.guest) == reason.subject
        case kind if kind in _OF_CLAIMS:
            return str(exposure.claim.address) == reason.subject
        case ReasonKind.LEASES | ReasonKind.FIRST_LEASE:
            return exposure.bridge in (None, reason.subject)
    return True


# All of these facts in words, and here alone: for the audit, the status and `explain`. Nothing reads these words.
_MOST: Final = 3
_NOTHING_KNOWN: Final = "found at a regular comparison"
UNANSWERED: Final = "libvirt has not answered yet"

_REASONS: Final[Mapping[ReasonKind, Callable[[Reason], str]]] = {
    ReasonKind.DOMAIN: lambda reason: f"domain {shown(reason.subject)} {reason.detail}",
    ReasonKind.DEVICES: lambda reason: f"devices of domain {shown(reason.subject)} changed",
    ReasonKind.AGENT: lambda reason: (
        f"guest agent of domain {shown(reason.subject)} {reason.detail or 'reported its addresses'}"
    ),
    ReasonKind.METADATA: lambda reason: f"metadata of domain {shown(reason.subject)} changed",
    ReasonKind.NETWORK: lambda reason: f"network {shown(reason.subject)} {reason.detail}",
    ReasonKind.LIBVIRT: lambda reason: f"libvirt at {printable(reason.subject)} {reason.detail}",
    ReasonKind.LISTED: lambda _: "domains and networks were listed, as libvirt sent too many events",
    ReasonKind.HOST_ADDRESS: lambda reason: f"host address {printable(reason.subject)} {reason.detail}",
    ReasonKind.NEIGHBOUR: lambda reason: (
        f"neighbour {printable(reason.subject)} "
        + (f"answered from {reason.detail}" if reason.detail else "does not answer")
    ),
    ReasonKind.ADDRESSES_LOST: lambda _: "more changes of addresses than could be followed",
    ReasonKind.ROUTE: lambda reason: (
        f"interface {shown(reason.subject)} {'lost a route' if reason.detail == 'lost' else 'has a route now'}"
    ),
    ReasonKind.ROUTES_LOST: lambda _: "more changes of routes than could be followed",
    ReasonKind.ADDRESS_PUT_BACK: lambda _: "an address that was taken over was put back",
    ReasonKind.LEASES: lambda reason: f"DHCP leases on {shown(reason.subject)} changed",
    ReasonKind.FIRST_LEASE: lambda reason: f"DHCP leases on {shown(reason.subject)} changed",
    ReasonKind.RESERVATIONS: lambda reason: f"DHCP reservations of network {shown(reason.subject)} changed",
    ReasonKind.LEASE_DIRECTORY: lambda reason: f"{printable(reason.subject)} appeared",
    ReasonKind.LEASES_WATCHED: lambda _: "DHCP leases are watched again",
    ReasonKind.CONFIGURATION: lambda reason: f"configuration {printable(reason.subject)} loaded again",
    ReasonKind.RUNNING: lambda reason: f"{reason.detail} {shown(reason.subject)} is running now",
    ReasonKind.STOPPED: lambda reason: f"{reason.detail} {shown(reason.subject)} stopped",
    ReasonKind.MOVED: lambda reason: f"the guest has {printable(reason.subject)} now",
    ReasonKind.OPENED: lambda reason: f"opened for a while by {printable(reason.detail)}",
    ReasonKind.CLOSED: lambda reason: f"closed by {printable(reason.detail)}",
    ReasonKind.ENDED: lambda _: "its time is over",
    ReasonKind.UNCONFIRMED: lambda reason: (
        f"configuration {printable(reason.subject)} was not confirmed; the one before is in force again"
    ),
    ReasonKind.TABLE: lambda reason: f"the table of the fleet changed, revision {printable(reason.subject)}",
    ReasonKind.CLAIM_TAKEN: lambda reason: f"etcd gave {printable(reason.subject)} to this host",
    ReasonKind.CLAIM_LOST: lambda reason: (
        f"{printable(reason.subject)} is claimed by host {shown(reason.detail)}"
        if reason.detail
        else f"etcd does not confirm that this host has {printable(reason.subject)}"
    ),
    ReasonKind.STOP: lambda reason: f"the daemon stops, {reason.detail}",
}
_ACTORS: Final[Mapping[ActorKind, Callable[[Actor], str]]] = {
    ActorKind.PROGRAM: lambda actor: f"{shown(actor.process)}, pid {actor.pid}",
    ActorKind.LEGACY_TABLES: lambda _: "an unknown program, in iptables-legacy",
    ActorKind.COMMITS_LOST: lambda _: "an unknown program, in more commits than could be followed",
    ActorKind.ROUTE_ADDED: lambda actor: f"a process that added a route (netlink port {actor.pid})",
    ActorKind.ROUTE_REMOVED: lambda actor: f"a process that removed a route (netlink port {actor.pid})",
    ActorKind.LINK_UP: lambda actor: f"a process that brought link {shown(actor.link)} up",
    ActorKind.LINK_DOWN: lambda actor: f"a process that took link {shown(actor.link)} down",
    ActorKind.KERNEL: lambda _: "the kernel itself",
    ActorKind.ROUTES_LOST: lambda _: "an unknown program, in more changes of routes than could be followed",
}
_HINDRANCES: Final[Mapping[HindranceKind, Callable[[Hindrance], str]]] = {
    HindranceKind.NO_ANSWER: lambda _: UNANSWERED,
    HindranceKind.NO_SUCH_DOMAIN: lambda _: "libvirt knows no such domain",
    HindranceKind.NOT_RUNNING: lambda _: "the domain is not running",
    HindranceKind.ARRIVING: lambda _: "it does not run here yet: its memory is being received",
    HindranceKind.ARRIVED: lambda _: "it is paused and has not run here yet",
    HindranceKind.HANDED_OVER: lambda _: "it was handed over to another host",
    HindranceKind.NO_SUCH_NETWORK: lambda found: (
        f"network {_names(found)} does not exist" if found.names else "libvirt knows no such network"
    ),
    HindranceKind.NETWORK_NOT_ACTIVE: lambda found: (
        f"network {_names(found)} is not active" if found.names else "the network is not active"
    ),
    HindranceKind.NO_BRIDGE: lambda _: "the network has no bridge to route to",
    HindranceKind.BRIDGE_NAME: lambda _: "its bridge has a name that no rule can hold",
    HindranceKind.NO_INTERFACE: lambda found: _missed(*found.places),
    HindranceKind.SEVERAL_INTERFACES: lambda found: _ambiguous(found.places),
    HindranceKind.NO_FITTING_INTERFACE: lambda found: (
        f"none of its {len(found.places)} interfaces can have {found.address or f'an IPv{found.family} address'}"
    ),
    HindranceKind.USER_MODE: lambda _: (
        "its network is user-mode (slirp or passt), which this host cannot reach: give it an interface on a libvirt"
        " network"
    ),
    HindranceKind.MACVTAP: lambda found: (
        f"it is on macvtap{f' of {_names(found)}' if found.names else ''}, where every machine but this host reaches"
        " it: connect to the guest itself, or give it an interface on a libvirt network"
    ),
    HindranceKind.NO_ADDRESS: lambda _: "no address yet: no lease, agent or neighbour names one",
    HindranceKind.NO_SUBNET: lambda found: f"{_place(*found.places)} has no IPv{found.family} subnet",
    HindranceKind.SUBNETS_UNKNOWN: lambda found: (
        f"it is not known which addresses belong to {_place(*found.places)}: write address = …"
    ),
    HindranceKind.ADDRESS_OF_HOST: lambda found: f"{found.address} belongs to the host",
    HindranceKind.ADDRESS_OF_SUBNET: lambda found: (
        f"{found.address} is not a guest's address but that of {_subnets(found)} itself"
    ),
    HindranceKind.ADDRESS_SPECIAL: lambda found: (
        f"{found.address} ({found.source}) is no address a guest can be reached at"
    ),
    HindranceKind.ADDRESS_OUTSIDE: lambda found: (
        f"{found.address} ({found.source}) is outside {_subnets(found)}, the guest's own network"
    ),
    HindranceKind.ADDRESS_OF_ANOTHER: lambda found: (
        f"{found.address} belongs to domain {_names(found)} ({found.source})"
    ),
    HindranceKind.ADDRESS_CONTESTED: lambda found: (
        f"{found.address} is claimed by both {_names(found)} ({found.source})"
    ),
    HindranceKind.CLAIMED: lambda found: (
        f"{_names(found) or 'the host'} has it already{_at(found.origin)}"
        if found.ports is None
        else f"port {found.ports} is claimed by domain {_names(found)}{_at(found.origin)}"
        if found.names
        else f"a process of the host has port {found.ports}"
    ),
    HindranceKind.ASSIGNED: lambda found: (
        f"port {found.ports} is an automatic port of {_names(found) or 'a domain that may come back'}"
    ),
    HindranceKind.NO_FREE_PORT: lambda found: f"no port of auto_ports ({found.ports}) is free",
    HindranceKind.SOCKETS_UNKNOWN: lambda _: "the kernel does not report which ports processes of the host have",
    HindranceKind.NO_RUNNING_DOMAIN: lambda _: "no running domain has such a name",
    HindranceKind.HELD_ELSEWHERE: lambda found: (
        f"the machine at {_names(found)} has {found.address}, and clients come here once this host has it"
    ),
    HindranceKind.NOT_ALLOWED: lambda found: _not_allowed(found.origin, found.names),
    HindranceKind.NOT_OWN: lambda found: f"{found.address} is no address that this guest is known to have",
    HindranceKind.NO_CLAIM: lambda found: f"etcd has not given {found.address} to this host",
    HindranceKind.CLAIMED_BY_HOST: lambda found: (
        f"{f'host {_names(found)}' if any(found.names) else 'an unknown host'} has {found.address};"
        " it comes here once that host gives it back"
    ),
    HindranceKind.NOT_REMOVED: lambda found: f"it is to be removed; the last pass failed: {printable(found.names[0])}",
    HindranceKind.MISREAD: lambda found: "; ".join(map(printable, found.names)),
}


@lru_cache(maxsize=64)  # thousands of forwards may change for one
def format_cause(cause: Cause) -> str:
    """Give the first facts, a new configuration ahead of all; after a burst the rest would not help a reader."""
    facts = sorted(cause.facts, key=lambda fact: fact.kind not in _OF_CONFIGURATION)
    if not facts:
        return _NOTHING_KNOWN
    more = [f"and {len(facts) - _MOST} more"] if len(facts) > _MOST else []
    words = "; ".join(dict.fromkeys([*map(_fact, facts[:_MOST]), *more]))
    return f"changed by {words}" if isinstance(facts[0], Actor) else words


def why(hindrance: Hindrance) -> str:
    """Say what hinders an entry, as a short sentence without a full stop."""
    return _HINDRANCES[hindrance.kind](hindrance)


def declined(entry: Waiting) -> str:
    """Say what is declined; for what could not be parsed, put the place first, as in the errors of a file."""
    if entry.reason.kind is HindranceKind.MISREAD:
        return f"{replace(entry.origin, element='')}: {why(entry.reason)}"
    return f"{entry.claim}, {why(entry.reason)} ({entry.origin})"


def followed(reason: str, address: Address, mac: str) -> str:
    """Say why something waits, and which machine has the public address of a guest that was handed over."""
    return f"{reason}; the machine at {mac} has {address} now"


def remark(about: Namesake | Unchosen | HijackedAddress) -> str:
    """Say what an administrator should know, or write."""
    match about:
        case Namesake():
            return _namesake(about)
        case Unchosen(domain, mac, reason, origin):
            return f"domain {shown(domain)} {why(reason)}; until then it leads to {mac} ({origin})"
        case HijackedAddress(rightful, owner, taker):
            whose = f"domain {shown(owner)}"
            who = f"domain {shown(taker)}" if taker is not None else f"a machine on bridge {shown(rightful.device)}"
            return (
                f"{who} answered for {rightful.address}, which is the address of {whose}: it leads to {whose} again, "
                "and libvirt's network filter clean-traffic prevents that"
            )


def _namesake(other: Namesake) -> str:
    name, where = shown(other.name), f" on {other.uri}" if other.uri else ""
    if other.is_uuid:
        return f"a domain{where} has the UUID {name} for a name: entries with it mean the domain of this UUID alone"
    kind = "network" if other.is_network else "domain"
    return (
        f"there is another {kind} {name}{where}: entries for this name mean that of the first URI in [daemon] libvirt;"
        f" its UUID is {other.uuid}"
    )


def _fact(fact: Reason | Actor | Hindrance) -> str:
    match fact:
        case Reason():
            return _REASONS[fact.kind](fact)
        case Actor():
            return _ACTORS[fact.kind](fact)
        case Hindrance():
            return why(fact)


def _names(found: Hindrance) -> str:
    return " and ".join(map(shown, found.names))


def _subnets(found: Hindrance) -> str:
    return " and ".join(map(str, found.subnets))


def _place(place: Place) -> str:
    if place.network is not None:
        return f"network {shown(place.network)}"
    return f"bridge {shown(place.bridge)}" if place.bridge is not None else f"interface {place.mac}"


def _not_allowed(closest: Origin | None, lacking: Sequence[str]) -> str:
    """Say what the policy that comes closest does not cover."""
    if closest is None:
        return "no [[allow]] is for this domain"
    lacks = (f"{key} {shown(value)}" for key, value in zip(lacking[::2], lacking[1::2], strict=True))
    return f"no [[allow]] covers it; the closest, {printable(str(closest))}, does not cover {' and '.join(lacks)}"


def _at(origin: Origin | None) -> str:
    return "" if origin is None else f" ({printable(str(origin))})"


def _missed(place: Place) -> str:
    if place.mac is not None:
        return f"has no interface with mac {place.mac}"
    if place.network is not None:
        return f"has no interface on network {shown(place.network)}"
    return "has no network interface"


def _ambiguous(places: Collection[Place]) -> str:
    listed = ", ".join(f"{place.mac} on {_place(place)}" for place in places)
    networks = {place.network for place in places}
    hint = "network = … or mac = …" if None not in networks and len(networks) == len(places) else "mac = …"
    return f"has {len(places)} interfaces ({listed}): write {hint}"
