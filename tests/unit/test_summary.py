"""The line that `systemctl status` shows."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fwdaemon.core.exposures import Owner
from fwdaemon.core.state import Desired, Waiting
from fwdaemon.core.types import Origin
from fwdaemon.errors import Problem
from fwdaemon.status.model import Configuration, Header, Pass, RefusedReload, Rules
from fwdaemon.status.rows import summary
from tests.unit.forwards import forward, nat, route
from tests.unit.saying import STOPPED

NOW = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)
FILE = Path("/etc/portfwd.toml")
WAITS = Waiting(Owner("db"), STOPPED, Origin(FILE, 3))
HEADER = Header("1.0", Configuration(FILE, NOW), rules=Rules("nftables", "nftables", "libvirt's are there"))
THREE = Desired(forwards=frozenset(forward(f"tcp *:{port}", f"192.168.122.10:{port}") for port in (80, 443, 444)))
MIXED = Desired(
    forwards=frozenset({forward("tcp *:80", "192.168.122.10:80")}),
    nats=frozenset({nat("198.51.100.8", "192.168.122.25"), nat("198.51.100.9", "192.168.122.26")}),
    routes=frozenset({route("203.0.113.64/29")}),
    waiting=(WAITS, WAITS),
)


@pytest.mark.parametrize(
    ("desired", "text"),
    [
        (None, "nftables; libvirt answers"),
        (Desired(), "nothing forwarded; nftables; libvirt answers"),
        (Desired(waiting=(WAITS,)), "nothing forwarded, 1 waiting; nftables; libvirt answers"),
        (replace(THREE, waiting=(WAITS,)), "3 forwards, 1 waiting; nftables; libvirt answers"),
        (MIXED, "1 forward, 2 1:1 addresses, 1 route, 2 waiting; nftables; libvirt answers"),
    ],
)
def test_exposures_are_counted_by_their_kind(desired: Desired | None, text: str) -> None:
    assert summary(desired, HEADER, []) == text


def test_before_the_first_pass_there_is_little_to_tell() -> None:
    assert summary(None, replace(HEADER, rules=None), ["qemu:///system"]) == "no answer from libvirt at qemu:///system"


def test_the_legacy_tables_are_named() -> None:
    header = replace(HEADER, rules=Rules("iptables", "iptables-legacy", "libvirt's are there"))
    assert summary(THREE, header, []) == "3 forwards; iptables-legacy; libvirt answers"


@pytest.mark.parametrize(
    ("header", "end"),
    [
        (replace(HEADER, problems=("a",)), "1 problem"),
        (replace(HEADER, problems=("a", "b")), "2 problems"),
        (
            replace(HEADER, last_pass=Pass(NOW, 0.1, changed=False, error="nft: no\nmore")),
            r"the last pass failed: nft: no\nmore",
        ),
        (
            replace(
                HEADER, configuration=Configuration(FILE, NOW, RefusedReload(NOW, (Problem(FILE, 1, "unknown key"),)))
            ),
            "a newer configuration is refused",
        ),
    ],
)
def test_what_is_wrong_is_said_on_one_line(header: Header, end: str) -> None:
    assert summary(THREE, header, []) == f"3 forwards; nftables; libvirt answers; {end}"


def test_every_uri_that_does_not_answer_is_named() -> None:
    text = summary(THREE, HEADER, ["qemu:///system", "lxc:///system"])
    assert text == "3 forwards; nftables; no answer from libvirt at qemu:///system, lxc:///system"
