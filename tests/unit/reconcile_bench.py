"""A reconciler over a rule system, a host and connections in memory, and the lines that it writes."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from fwdaemon.core.exposures import Owner
from fwdaemon.core.inventory import Move
from fwdaemon.core.report import Reason, ReconcileReport
from fwdaemon.core.state import Desired, Waiting
from fwdaemon.core.types import Origin
from fwdaemon.reconcile import Reconciler, Request
from tests.unit import saying
from tests.unit.backend_behaviour import STATE
from tests.unit.forwards import forward
from tests.unit.seams import Memory, without

SSH = forward("tcp *:22", "192.168.122.52:22", domain="shell")
ORIGIN = Origin(Path("portfwd.toml"), 1)


@dataclass
class Bench(Memory):
    """A reconciler, and the lines that it wrote."""

    caplog: pytest.LogCaptureFixture | None = None
    now: float = 0.0
    reconciler: Reconciler = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin anew, as after a restart: what the kernel holds stays."""
        self.reconciler = Reconciler(self.seams())

    def reconcile(self, desired: Desired, request: Request | None = None) -> list[str]:
        """Reconcile once, wait for connections to be ended, and give the lines."""
        self.reconciler.reconcile(desired, replace(request or ask(), now=self.now))
        return self.lines()

    def lines(self) -> list[str]:
        self.reconciler.close()
        assert self.caplog is not None
        messages = [record.message for record in self.caplog.records]
        self.caplog.clear()
        return messages

    @property
    def written(self) -> set[str]:
        return {item.name for items in self.kernel.rules.values() for item in items if "home" not in item.name}

    def reported(self) -> ReconcileReport:
        assert self.reconciler.report is not None
        return self.reconciler.report

    def changes(self) -> list[tuple[str, object]]:
        return [(change.action, change.exposure) for change in self.reported().changes]


def ask(*reasons: Reason, **more: Any) -> Request:
    """Give a request to look, after these reasons."""
    return Request(reasons, (), 0.0, **more)


def stopped(domain: str = "web1", *, move: Move | None = None, returning: bool = True) -> Desired:
    """Give the state in which a domain does not run here."""
    gone = (item for item in STATE.exposures if item.owner == Owner(domain))
    waiting = Waiting(Owner(domain), saying.STOPPED, ORIGIN, stopped=True, move=move, returning=returning)
    return replace(without(STATE, *gone), waiting=(waiting,))
