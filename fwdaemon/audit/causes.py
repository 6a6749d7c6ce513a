"""What changed and why, and what became of guests that went. Pure."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from fwdaemon.core.inventory import Move
from fwdaemon.core.report import Actor, Cause, Change, Outcome, Reason, ReasonKind, Report
from fwdaemon.core.state import Desired, Opening, Owner, Route
from fwdaemon.core.types import Address

# What changed: a function of what was applied before, what is now, and what the backend found in between. Pure.


@dataclass(frozen=True, slots=True)
class Known:
    """What was heard: `reasons` are for openings that come and go, `actors` for those that were found missing.

    `of_removal` gives which reasons count for an opening that went: where it was held for a moment, earlier ones too.
    """

    reasons: tuple[Reason, ...] = ()
    actors: tuple[Actor, ...] = ()
    of_removal: Callable[[Opening, tuple[Reason, ...]], tuple[Reason, ...]] = field(default=lambda _, reasons: reasons)


def changes(before: Report | None, after: Desired, outcome: Outcome, known: Known) -> tuple[Change, ...]:
    """Give what changed since `before`; at first only what was not found of an earlier run."""
    if before is None:
        cause = Cause(known.reasons)
        return tuple(Change("added", opening, cause) for opening in in_order(outcome.mended))
    if after is before.desired and not outcome.changed:
        return ()
    live, now = before.desired.openings, after.openings
    removed = ((opening, known.of_removal(opening, known.reasons)) for opening in in_order(live - now))
    return (
        *(Change("removed", opening, of_end(opening, after, reasons)) for opening, reasons in removed),
        *(Change("added", item, of_start(item, before.placed, known.reasons)) for item in in_order(now - live)),
        *(
            Change("restored", opening, of_loss(opening, known.reasons, known.actors))
            for opening in in_order(outcome.damaged & live & now)
        ),
    )


def in_order(openings: Collection[Opening]) -> list[Opening]:
    """Give openings in the order in which the audit tells of them."""
    return sorted(openings, key=lambda opening: (opening.owner, opening.listens_at()))


# Which of the things that were heard explains a change, for the audit. Pure.
#
# Events arrive in bursts and in any order: the kernel may tell that a guest's neighbour entry came before libvirt tells
# that the domain started. So a reason that names the owner is preferred, then what the state itself says, then what may
# concern anybody. What happened to other domains and other guests' addresses explains nothing.
_OF_DOMAINS: Final = frozenset({ReasonKind.DOMAIN, ReasonKind.DEVICES, ReasonKind.AGENT})
_OF_NETWORKS: Final = frozenset({ReasonKind.NETWORK, ReasonKind.RESERVATIONS})


def of_start(opening: Opening, before: Desired, reasons: Iterable[Reason]) -> Cause:
    """Give why an opening is live now that was not in the state `before`."""
    heard, owner = list(reasons), opening.owner
    now = [Reason(ReasonKind.RUNNING, owner.name, owner.kind)] if owner in before.stopped else []
    return Cause(tuple(_naming(owner, heard) or now or _concerning(opening, heard)))


def of_end(opening: Opening, after: Desired, reasons: Iterable[Reason]) -> Cause:
    """Give why an opening is not in the state `after` any more."""
    heard, owner = list(reasons), opening.owner
    hindrances = dict.fromkeys(after.hindrances.get(owner, ()))
    waiting = [Reason(ReasonKind.WAITING, detail=text) for text in hindrances]
    return Cause(tuple(_naming(owner, heard) or waiting or _concerning(opening, heard)))


def of_loss(opening: Opening, reasons: Iterable[Reason], actors: tuple[Actor, ...]) -> Cause:
    """Give why something that was in place had to be put back; `actors` are those who changed rules or routes."""
    heard = list(reasons)
    return Cause(actors or tuple(_naming(opening.owner, heard) or _concerning(opening, heard)))


def _naming(owner: Owner, reasons: Iterable[Reason]) -> list[Reason]:
    kinds = _OF_DOMAINS if owner.kind == "domain" else _OF_NETWORKS
    return [reason for reason in reasons if reason.kind in kinds and reason.subject == owner.name]


def _concerning(opening: Opening, reasons: Iterable[Reason]) -> list[Reason]:
    return [reason for reason in reasons if _may_concern(opening, reason)]


def _may_concern(opening: Opening, reason: Reason) -> bool:
    """Whether a reason that does not name the owner may be one: not where it names another."""
    match reason.kind:
        case ReasonKind.DOMAIN | ReasonKind.DEVICES | ReasonKind.AGENT:
            return False
        case ReasonKind.NEIGHBOUR:
            return not isinstance(opening, Route) and str(opening.target) == reason.subject
        case ReasonKind.LEASES:
            return opening.bridge in (None, reason.subject)
    return True


# Openings that went because their guest was handed over to another host, and what becomes of their connections.
#
# Until libvirt has ended the guest here, it may come back: the migration fails late, or is cancelled. Its connections
# are left as they are for so long, and are then ended like all others, but for one thing: what the guest sends on them
# is not refused. It sends that on the other host, where they go on, and here again if it returns soon. Pure.


class Departures:
    """Remembers what went with guests that were handed over; `moved` are the addresses of those that went for good."""

    def __init__(self) -> None:
        self._returning: frozenset[Opening] = frozenset()
        self.moved: frozenset[Address] = frozenset()

    def follow(self, removed: frozenset[Opening], desired: Desired) -> frozenset[Opening]:
        """Learn what was just removed, and the state now; give the openings whose connections are to end."""
        left = (self._returning | removed) - desired.openings
        returning = frozenset(opening for opening in left if desired.moved.get(opening.owner) is Move.AWAY)
        ended = left - returning
        moved = (item for item in ended if item.owner in desired.moved and not isinstance(item, Route))
        self._returning, self.moved = returning, frozenset(opening.target for opening in moved)
        return ended

    def with_returning(self, live: frozenset[Opening]) -> frozenset[Opening]:
        """Add those openings to the live ones that may come back; the very set where there are none."""
        return live | self._returning if self._returning else live
