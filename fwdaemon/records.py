"""What the daemon remembers to tell whoever asks how things are. On the loop's thread only.

It keeps references to what never changes, so that remembering costs next to nothing; what is told is made of them only
when somebody asks.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Final

from fwdaemon import __version__
from fwdaemon.account import Account, Change
from fwdaemon.config.model import Config
from fwdaemon.desired import Desired, Opening
from fwdaemon.errors import Problem
from fwdaemon.model import Family
from fwdaemon.netfilter import Side
from fwdaemon.status import Configuration, Header, LibvirtState, Look, Process, RefusedReload, Restored, Rules
from fwdaemon.status_rows import Facts

_MOST_RESTORED: Final = 5
_BACKENDS: Final = {Side.NFTABLES: "nftables", Side.LEGACY: "iptables"}

Publish = Callable[[datetime, Sequence[Change]], None]


class Records:
    """All of it; `publish` is told whenever a status would say something else."""

    def __init__(self, path: Path, config: Config, publish: Publish) -> None:
        self.side: Side | None = None
        self._publish = publish
        self._began = _now()
        self._configuration = Configuration(path, self._began)
        self._facts = Facts(config)
        self._since: dict[Opening, datetime] = {}
        self._reason = ""
        self._unusable: Mapping[Family, str] = {}
        self._look: Look | None = None
        self._problems: tuple[str, ...] = ()
        self._restored: deque[Restored] = deque(maxlen=_MOST_RESTORED)

    def configuration_loaded(self, config: Config) -> None:
        """Remember that another configuration is in force."""
        self._facts = replace(self._facts, config=config)
        self._configuration = Configuration(self._configuration.file, _now())
        self._tell()

    def configuration_refused(self, problems: Iterable[Problem]) -> None:
        """Remember that one was refused, until one is taken."""
        self._configuration = replace(self._configuration, refused=RefusedReload(_now(), tuple(problems)))
        self._tell()

    def placed(self, side: Side | None, reason: str, unusable: Mapping[Family, str]) -> None:
        """Remember where the rules are and why, and which families cannot be served there; a look is told next."""
        self.side, self._reason, self._unusable = side, reason, unusable

    def looked(self, account: Account, seconds: float) -> None:
        """Remember a look that has just ended well and took so long."""
        before, problems, outcome = self._facts, self._problems, account.outcome
        self._look = Look(_now(), seconds, outcome.changed)
        refused: dict[Family | Opening, str] = dict(outcome.refused)
        refused.update(self._unusable.items())
        self._facts = replace(before, wanted=account.desired, held=account.desired, failure="", refused=refused)
        self._problems = outcome.faults
        self._remember(account)
        is_news = bool(account.changes or outcome.gates or outcome.moved) or problems != outcome.faults
        if is_news or _differ(before, self._facts):
            self._tell(account.changes)

    def failed(self, wanted: Desired | None, failure: str, seconds: float) -> None:
        """Remember a look that has just failed."""
        before = self._facts.failure
        self._look = Look(_now(), seconds, changed=False, error=failure)
        self._facts = replace(self._facts, wanted=wanted or self._facts.wanted, failure=failure)
        if failure != before:
            self._tell()

    def facts(self) -> Facts:
        """Give what the rows follow from."""
        return replace(self._facts, since=dict(self._since))

    def header(self, libvirt: Iterable[LibvirtState]) -> Header:
        """Give everything else."""
        return Header(
            __version__,
            self._configuration,
            Process(os.getpid(), self._began),
            None if self.side is None else rules_in(self.side, self._reason),
            tuple(libvirt),
            self._look,
            tuple(self._restored),
            self._problems,
        )

    def _remember(self, account: Account) -> None:
        at = _now()
        for change in account.changes:
            if change.action == "removed":
                self._since.pop(change.opening, None)
        self._since |= dict.fromkeys(account.outcome.mended, at)
        self._restored.extendleft(reversed(list(_restored(account, at))))

    def _tell(self, changes: Sequence[Change] = ()) -> None:
        self._publish(_now(), changes)


def rules_in(side: Side, reason: str) -> Rules:
    """Tell which rule system holds the rules, by the words that the configuration has for it."""
    return Rules(_BACKENDS[side], reason)


def _restored(account: Account, at: datetime) -> Iterator[Restored]:
    """Tell what was put back: of openings with one cause, and of gates, the first and how many more."""
    changes = [change for change in account.changes if change.action == "restored"]
    for cause, alike in groupby(changes, key=lambda change: change.cause):
        first, *others = alike
        opening = first.opening
        what = f"{opening.owner.name}: {opening.listens_at()} -> {opening.leads_to()}"
        yield Restored(at, what, len(others), cause)
    if gates := [gate for gate in account.outcome.gates if gate.restored]:
        yield Restored(at, f"gate in {gates[0].gate}", len(gates) - 1, f"{gates[0].fault}; {account.meddler}")


def _differ(before: Facts, after: Facts) -> bool:
    """Whether a look has something to tell besides changes of openings."""
    waiting = [facts.wanted.waiting if facts.wanted is not None else None for facts in (before, after)]
    return waiting[0] != waiting[1] or (before.failure, before.refused) != (after.failure, after.refused)


def _now() -> datetime:
    return datetime.now(UTC)
