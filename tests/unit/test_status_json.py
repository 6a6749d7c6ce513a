"""The JSON form of a status: what the interface's description promises, no more and no less."""

import json
from pathlib import Path
from typing import Any

from fwdaemon.control.protocol import MANAGER
from fwdaemon.status.model import SCHEMA_VERSION, Configuration, Header, Status
from tests.unit.statuses import HOSTILE, status
from tests.unit.varlink_types import Interface

INTERFACE = Interface(MANAGER)


def encoded(found: Status) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(found.encode())
    return content


def test_it_has_exactly_the_described_keys_and_types() -> None:
    assert list(INTERFACE.faults(INTERFACE.replies["Status"], encoded(status()))) == []


def test_so_has_one_of_which_nothing_is_known() -> None:
    nothing = Status(Header("0.1.0", Configuration(Path("/etc/portfwd.toml"))), ())
    assert list(INTERFACE.faults(INTERFACE.replies["Status"], encoded(nothing))) == []


def test_the_checker_notices() -> None:
    content = encoded(status())
    content["openings"][0]["state"] = "open"
    content["libvirt"][0]["connected"] = None
    del content["counts"]["refused"]
    assert sorted(INTERFACE.faults(INTERFACE.replies["Status"], content)) == [
        ".counts.refused is in one only",
        ".libvirt[0].connected is None",
        ".openings[0].state is 'open'",
    ]


def test_one_exposure_in_full() -> None:
    exposures = {(row["owner"], row["family"]): row for row in encoded(status())["openings"]}
    assert exposures["web1", 4] == {
        "owner": "web1",
        "owner_kind": "domain",
        "state": "active",
        "reason": None,
        "reason_kinds": [],
        "listens": "tcp *:80",
        "leads_to": "192.168.122.10:80",
        "kind": "forward",
        "family": 4,
        "protocol": "tcp",
        "address": None,
        "ports": "80",
        "automatic": False,
        "subnet": None,
        "interface": None,
        "sources": [],
        "deny": [],
        "rate": None,
        "max_open": None,
        "limited": [],
        "limited_sources": 0,
        "masquerade": False,
        "target": "192.168.122.10",
        "target_ports": "80",
        "bridge": None,
        "origin": None,
        "file": None,
        "line": None,
        "allowed_by": None,
        "until": None,
        "remaining_seconds": None,
        "opened_by": None,
        "opened_ports": None,
        "connections": 1234,
        "connections_since": "2026-03-01T08:00:00.000Z",
        "open_connections": 12,
        "open_bytes": 98765,
        "dropped": None,
    }
    assert exposures["lab", 6]["subnet"] == "2001:db8:1::/64"
    assert exposures["lab", 6]["bridge"] == "virbr2"
    assert exposures["public", 4]["target"] is None
    assert exposures["post", 4]["address"] == "198.51.100.9"


def test_the_version_of_the_form_is_told() -> None:
    assert encoded(status())["schema_version"] == SCHEMA_VERSION == 1


def test_names_are_whole_and_escaped() -> None:
    raw = status().encode()
    assert raw.isascii()
    assert b"\x1b" not in raw
    assert HOSTILE in {row["owner"] for row in json.loads(raw)["openings"]}
