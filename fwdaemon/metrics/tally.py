"""What is counted while the daemon works, from its start on. Pure."""

import re
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, TypeVar

from fwdaemon.account import Account

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


# How `Account.meddler` begins. A process's name has 15 characters at most, and iptables' programs have many.
_MEDDLERS: Final = (
    (re.compile("changed by nft, pid "), Cause.NFT),
    (re.compile("changed by (ip6?|x)tables[a-z0-9-]*, pid "), Cause.IPTABLES),
    (re.compile("changed by firewalld, pid "), Cause.FIREWALLD),
    (re.compile("changed by somebody, in the legacy tables"), Cause.LEGACY),
    (
        re.compile("changed by (the kernel itself|somebody who (added|removed) a route|somebody who took)"),
        Cause.ROUTING,
    ),
    (re.compile("changed by .*, pid "), Cause.OTHER),
)


def cause_of(meddler: str) -> Cause:
    """Tell who it was; of several, the first."""
    return next((cause for begins, cause in _MEDDLERS if begins.match(meddler)), Cause.UNKNOWN)


def _none_of(kinds: type[E]) -> Mapping[E, int]:
    return dict.fromkeys(kinds, 0)


@dataclass(frozen=True, slots=True)
class Tally:
    """The counters. It never changes; each reconcile gives a new one.

    `within` tells how many reconciles took no longer than each of `BOUNDS_S`, `seconds` is the sum of their times.
    `restores` counts reconciles that put back what was taken away, `ended` connections that were ended.
    """

    reconciles: Mapping[Result, int] = field(default_factory=lambda: _none_of(Result))
    within: tuple[int, ...] = (0,) * len(BOUNDS_S)
    seconds: float = 0.0
    restores: Mapping[Cause, int] = field(default_factory=lambda: _none_of(Cause))
    ended: int = 0

    def looked(self, account: Account, seconds: float) -> "Tally":
        """Count a reconcile that ended well."""
        counted = self._timed(Result.CHANGED if account.outcome.changed else Result.UNCHANGED, seconds)
        restores = _one_more(self.restores, cause_of(account.meddler)) if _restored(account) else self.restores
        return replace(counted, restores=restores, ended=self.ended + account.ended)

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


def _restored(account: Account) -> bool:
    has_opening = any(change.action == "restored" for change in account.changes)
    return has_opening or any(gate.restored for gate in account.outcome.gates)
