"""`kvm-portfwd port`: where a domain, or one of its ports, is reached, written so that other commands can take it."""

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from fwdaemon.cli import main
from fwdaemon.core.state import Desired
from fwdaemon.resolve.expansion import Before
from fwdaemon.resolve.placement import desired_state
from fwdaemon.status.model import Configuration, Header, Row, State, Status
from fwdaemon.status.rows import Facts, Readings, rows
from tests.unit.test_expansion import config, domain, entry, host

CALL = "fwdaemon.control.protocol.call"
FIXED = entry("ci-1", "2222:22", "198.51.100.7:22", "8000-8009:9000-9009/udp")
NAT = '[[nat]]\ndomain = "mail"\npublic = "198.51.100.8"\n'


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Desired:
    """A daemon that reports three domains, one of which has but an entry that waits."""
    read = config(entry("ci-*", "auto:22") + FIXED + NAT + entry("off", "7"))
    desired = desired_state(read, host(domain(1), domain(2), domain(3, "mail"), domain(4, "off", running=False)))
    status = Status(Header("0", Configuration(Path("portfwd.toml"))), rows(Facts(read, desired, desired), Readings()))
    told: dict[str, Any] = json.loads(status.encode())
    monkeypatch.setattr(CALL, lambda *_: told)
    return desired


def automatic(desired: Desired, name: str) -> int:
    return next(item.ports.first for item in desired.forwards if item.domain == name and item.auto)


def port(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["port", *words]) == 0
    return capsys.readouterr().out


def test_every_port_that_leads_to_a_domain_has_a_line(daemon: Desired, capsys: pytest.CaptureFixture[str]) -> None:
    assert port(capsys, "ci-1").splitlines() == [
        f"0.0.0.0:{automatic(daemon, 'ci-1')}",
        "0.0.0.0:2222",
        "0.0.0.0:8000-8009",
        "198.51.100.7:22",
    ]
    assert port(capsys, "mail") == "198.51.100.8:1-65535\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("ci-1", "9005"), "0.0.0.0:8005\n"),
        (("ci-1", "9005/udp"), "0.0.0.0:8005\n"),
        (("mail", "25"), "198.51.100.8:25\n"),
        (("--port-only", "ci-1", "9000/udp"), "8000\n"),
        (("--port-only", "mail", "25/tcp"), "25\n"),
    ],
)
def test_one_port_of_the_guest(
    daemon: Desired, words: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert daemon.forwards
    assert port(capsys, *words) == expected


def test_an_assigned_port_alone(daemon: Desired, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ci-1", "ci-2"):
        assert port(capsys, name, "22", "--port-only") == f"{automatic(daemon, name)}\n"
    [told] = json.loads(port(capsys, "ci-2", "--json"))["ports"]
    assert told == {
        "address": "0.0.0.0",  # noqa: S104  every address
        "ports": str(automatic(daemon, "ci-2")),
        "protocol": "tcp",
        "guest_ports": "22",
        "automatic": True,
    }


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("off",), "no port of this host leads to off now; the domain is not running"),
        (("ci-1", "9005/tcp"), "no port of this host leads to port 9005 of ci-1 now"),
        (("a\nb",), r"no port of this host leads to a\nb now"),
    ],
)
def test_where_nothing_leads_there_the_status_is_1(
    daemon: Desired, words: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert daemon.forwards
    assert main(["port", *words]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"kvm-portfwd: {reason}\n")


@pytest.mark.parametrize("guest", ["0", "65536", "22/icmp", "ssh", "٢٢"])
def test_what_is_no_port_is_wrong_usage(guest: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["port", "ci-1", guest])


def shown(text: str, *numbers: int) -> list[Row]:
    """The rows of a host on which these domains run, the others being off."""
    domains = [domain(number, running=number in numbers) for number in range(1, 5)]
    desired = desired_state(config(text), host(*domains), None, Before())
    return list(rows(Facts(config(text), desired, desired), Readings()))


def test_of_a_pattern_each_domain_that_runs_has_its_rows() -> None:
    found = shown(entry("ci-*", "80", "auto:22"), 2, 3)
    assert [(row.owner.name, row.state, row.claim.auto, row.listens == "tcp *:80") for row in found] == [
        ("ci-2", State.ACTIVE, False, True),
        ("ci-2", State.ACTIVE, True, False),
        ("ci-3", State.REFUSED, False, True),
        ("ci-3", State.ACTIVE, True, False),
    ]
    assert [row.reason for row in found if row.reason] == ["port 80 is claimed by domain ci-2 (portfwd.toml:5)"]


def test_a_pattern_that_no_running_domain_fits_has_rows_of_its_own() -> None:
    found = shown(entry("ci-*", "80", "auto:22"))
    assert [(row.owner.name, row.state, row.listens, row.reason) for row in found] == [
        ("ci-*", State.WAITING, "tcp *:auto", "no running domain has such a name"),
        ("ci-*", State.WAITING, "tcp *:80", "no running domain has such a name"),
    ]


def test_one_by_its_name_waits_for_a_port_and_for_its_domain() -> None:
    found = shown(entry("ci-1", "auto:22", "81") + entry(str(UUID(int=2)), "auto:22"))
    assert [(row.owner.name, row.listens, row.reason) for row in found] == [
        ("ci-1", "tcp *:auto", "the domain is not running"),
        ("ci-1", "tcp *:81", "the domain is not running"),
        ("ci-2", "tcp *:auto", "the domain is not running"),
    ]
