"""Every kind of line that the audit can write."""

import logging
from pathlib import Path
from typing import Final

import pytest

from fwdaemon import audit
from fwdaemon.config.model import Gate, Origin
from fwdaemon.desired import Waiting
from fwdaemon.errors import Problem
from fwdaemon.flapping import Flapped
from fwdaemon.outcome import GateChange
from tests.unit.forwards import forward, nat, route

# The name of the domain in them.
HOSTILE: Final = "\x1b[31m\u009bm\nSubject: forged"


def fields_of_all(caplog: pytest.LogCaptureFixture) -> list[dict[str, str]]:
    """Have them written, and give the fields of each."""
    caplog.set_level(logging.INFO, "fwdaemon.audit")
    _write()
    return [getattr(record, "journal", {}) for record in caplog.records]


def _write() -> None:
    web = forward("tcp *:80", "192.168.122.50:80", domain=HOSTILE)
    for opening in (web, nat("198.51.100.8", "192.168.122.51"), route("203.0.113.64/29", "virbr1")):
        for action in ("added", "removed", "restored"):
            audit.opening(action, opening, "a cause")
        audit.flapped([Flapped(opening, 7, 60.0, "restored", "a cause")])
        audit.waiting([Waiting(opening.owner, "a reason", Origin(Path("x.toml"), 1))])
    for restored in (True, False):
        audit.gates([GateChange(Gate("inet", "filter", "forward"), restored, "it was not there")], "a cause")
    audit.moved("rules are in nftables: libvirt's chains are there")
    audit.adopted(3)
    audit.leftovers(["ip kvm_portfwd every_address { tcp . 80 }"])
    audit.connections_ended(2)
    audit.forwarding_turned_on("net.ipv4.ip_forward")
    audit.problems(["something is wrong"])
    audit.configuration_loaded(Path("x.toml"))
    audit.configuration_refused([Problem(Path("x.toml"), 1, "is wrong")])
