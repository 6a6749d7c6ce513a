"""Every kind of line that the audit can write."""

import logging
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Final

import pytest

from fwdaemon.audit import lines, throttle
from fwdaemon.audit.throttle import Flapped, LoggedConnection
from fwdaemon.core.inventory import Hindrance, HindranceKind
from fwdaemon.core.report import (
    Assigned,
    Closing,
    Fault,
    FaultKind,
    GateChange,
    Location,
    LocationReason,
    Note,
    NoteKind,
    Setting,
    SettingKind,
)
from fwdaemon.core.state import Waiting
from fwdaemon.core.types import Gate, GateFault, Origin, Protocol
from fwdaemon.errors import Problem
from tests.unit.forwards import address, forward, nat, route
from tests.unit.saying import STOPPED, because

# The name of the domain in them.
HOSTILE: Final = "\x1b[31m\u009bm\nSubject: forged"


def fields_of_all(caplog: pytest.LogCaptureFixture) -> list[dict[str, str]]:
    """Have them written, and give the fields of each."""
    caplog.set_level(logging.INFO, "fwdaemon.audit")
    _write()
    return [getattr(record, "journal", {}) for record in caplog.records]


def _write() -> None:
    web = forward("tcp *:80", "192.168.122.50:80", domain=HOSTILE)
    for exposure in (web, nat("198.51.100.8", "192.168.122.51"), route("203.0.113.64/29", "virbr1")):
        for action in ("added", "removed", "restored"):
            lines.exposure(action, exposure, because("a cause"))
        lines.flapped([Flapped(exposure, 7, 60.0, "restored", because("a cause"))])
        lines.waiting([Waiting(exposure.owner, STOPPED, Origin(Path("x.toml"), 1))])
        declined = Hindrance(HindranceKind.NOT_ALLOWED, names=("domains", HOSTILE), origin=Origin(Path("x.toml"), 1))
        lines.waiting([Waiting(exposure.owner, declined, Origin(Path(), 1, HOSTILE, "u"), claim=exposure.claim)])
    for restored in (True, False):
        gate = GateChange(Gate("inet", "filter", "forward"), restored, GateFault.ABSENT)
        lines.gate(gate, because("a cause"))
        lines.flapped([Flapped(gate, 7, 60.0, gate.action, because("a cause"))])
    lines.moved(Location("nftables", "nftables", LocationReason.LIBVIRT_CHAINS))
    lines.assigned(
        Assigned("web", Protocol.TCP, 22, 20017, Origin(Path("portfwd.toml"), 5), moved, claimed)
        for moved, claimed in ((None, None), (20016, None), (20016, Origin(Path("portfwd.toml"), 9)))
    )
    lines.adopted(3)
    lines.leftovers(["ip kvm_portfwd every_address { tcp . 80 }"])
    lines.connections_ended(2)
    for kind, restored in product(SettingKind, (True, False)):
        setting = Setting("net.ipv4.ip_forward = 1", restored, kind)
        lines.setting(setting, because("a cause"))
        lines.flapped([Flapped(setting, 7, 60.0, setting.action, because("a cause"))])
    lines.notes([Note(NoteKind.FORWARDING_PUT_BACK, ("net.ipv4.ip_forward",))])
    lines.problems([Fault(FaultKind.NO_IPV6, (HOSTILE,), "there is no such bridge")])
    lines.configuration_loaded(Path("x.toml"))
    lines.configuration_refused([Problem(Path("x.toml"), 1, "is wrong")])
    until = datetime(2026, 3, 1, 14, tzinfo=UTC)
    lines.opened(HOSTILE, "8080:80", ("203.0.113.0/24",), until, f"uid 0, pid 7, {HOSTILE}")
    lines.closed(HOSTILE, "8080:80", Closing.ASKED, f"uid 0, pid 7, {HOSTILE}")
    lines.to_confirm(until)
    lines.confirmed(Path("x.toml"), f"uid 0, pid 7, {HOSTILE}")
    lines.rolled_back(Path("x.toml"))
    client, ends = address("203.0.113.9"), ((address("198.51.100.7"), 80), (address("192.168.122.50"), 80))
    for ended, number in product((False, True), (None, 7)):
        logged = LoggedConnection(ended, web.owner, Protocol.TCP, client, number, *ends, 1, number, number)
        throttle.connection(logged)
    throttle.unlogged(3, 60.0)
