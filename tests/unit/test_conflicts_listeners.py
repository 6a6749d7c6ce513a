"""What is said of processes of the host that listen where an exposure takes what comes."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from fwdaemon.audit.rules import format_conflict, format_entry
from fwdaemon.conflicts import comparing
from fwdaemon.conflicts.comparing import takings, takings_if_running
from fwdaemon.core.conflicts import ListenerConflict
from fwdaemon.core.exposures import Forward, Nat
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, Listener, Origin, PortRange, Protocol
from tests.unit.forwards import address, forward, nat, subnets
from tests.unit.test_config_support import read
from tests.unit.work import grows_no_faster

BOTH, FOUR, SIX = frozenset(Family), frozenset({Family.IPV4}), frozenset({Family.IPV6})
CLIENTS = PortRange(32768, 60999)
LOCAL = frozenset(map(address, ["198.51.100.1", "198.51.100.8", "192.168.122.1", "127.0.0.1", "2001:db8::1"]))
GUESTS = subnets("192.168.122.0/24")
TO_WEB = "will reach web1 instead"


def socket(endpoint: str, *, families: frozenset[Family] = BOTH, device: str | None = None, inode: int = 0) -> Listener:
    """Write `tcp *:22`, or `udp 192.168.122.1:53`, whose family is that of the address."""
    protocol, _, where = endpoint.partition(" ")
    host, _, port = where.rpartition(":")
    bound = None if host == "*" else address(host.strip("[]"))
    of = families if bound is None else frozenset({Family.of(bound)})
    return Listener(Protocol(protocol), of, bound, int(port), device, inode)


def found(
    exposures: Iterable[Forward | Nat], *sockets: Listener, names: dict[int, str] | None = None
) -> list[ListenerConflict]:
    shadowed = comparing.shadowed_listeners(takings(Desired().having(exposures), LOCAL), sockets, CLIENTS, GUESTS)
    return list(comparing.listener_conflicts(shadowed, names or {}))


def said(
    exposures: Iterable[Forward | Nat],
    *sockets: Listener,
    names: dict[int, str] | None = None,
) -> list[str]:
    return [format_conflict(conflict) for conflict in found(exposures, *sockets, names=names)]


def test_the_process_and_the_place_in_the_configuration_are_named() -> None:
    ssh = replace(forward("tcp *:22", "192.168.122.50:22"), origin=Origin(Path("/etc/portfwd.toml"), 12))
    assert said([ssh], socket("tcp *:22", inode=5), names={5: "sshd (pid 712)"}) == [
        (
            "port 22/tcp: sshd (pid 712) of the host listens there; connections from outside will reach web1 instead"
            " (/etc/portfwd.toml:12)"
        )
    ]


def test_a_conflict_is_the_same_while_the_same_is_to_be_said() -> None:
    four, six = forward("tcp *:22", "192.168.122.50:22"), forward("tcp *:22", "[2001:db8:122::5]:22")
    before = found([four], socket("tcp *:22", inode=5), names={5: "sshd"})
    for exposures in ([six], [four, six]):
        again = socket("tcp *:22", inode=9), socket("tcp *:22", families=SIX, inode=8)
        assert found(exposures, *again, names={9: "sshd", 8: "sshd"}) == before
    assert found([four], socket("tcp *:22", inode=5), names={5: "dropbear"}) != before


@pytest.mark.parametrize(
    ("exposure", "other"),
    [
        ("tcp *:22", "tcp *:23"),
        ("tcp *:22", "udp *:22"),
        ("tcp *:22", "tcp 127.0.0.1:22"),
        ("tcp *:22", "tcp [2001:db8::1]:22"),
        ("tcp *:22", "tcp 169.254.0.9:22"),
        ("udp *:5353", "udp 224.0.0.251:5353"),
        ("tcp 198.51.100.1:22", "tcp 192.168.122.1:22"),
        ("tcp 198.51.100.1:22", "tcp 127.0.0.1:22"),
    ],
)
def test_what_it_does_not_take_is_not_told(exposure: str, other: str) -> None:
    assert said([forward(exposure, "192.168.122.50:22")], socket(other)) == []


@pytest.mark.parametrize(
    ("exposure", "other"),
    [
        ("tcp *:22", "tcp *:22"),
        ("tcp *:22", "tcp 198.51.100.1:22"),
        ("tcp *:20-30", "tcp *:22"),
        ("tcp 198.51.100.1:22", "tcp 198.51.100.1:22"),
        ("tcp 198.51.100.1:22", "tcp *:22"),
        ("udp *:53", "udp 192.168.122.1:53"),
        ("sctp *:3868", "sctp *:3868"),
    ],
)
def test_what_it_takes_is_told(exposure: str, other: str) -> None:
    assert len(said([forward(exposure, "192.168.122.50:22")], socket(other))) == 1


def test_a_socket_on_all_of_ipv6_takes_ipv4_too_unless_it_says_otherwise() -> None:
    four, six = forward("tcp *:22", "192.168.122.50:22"), forward("tcp *:22", "[2001:db8:122::50]:22")
    only_six = socket("tcp *:22", families=SIX)
    assert [len(said([item], only_six)) for item in (four, six)] == [0, 1]
    assert [len(said([item], socket("tcp *:22", families=BOTH))) for item in (four, six)] == [1, 1]


def test_one_entry_is_told_once_for_both_families() -> None:
    exposures = [forward("tcp *:53", "192.168.122.50:53"), forward("tcp *:53", "[2001:db8:122::50]:53")]
    sockets = [socket("tcp *:53", families=FOUR, inode=1), socket("tcp *:53", families=SIX, inode=2)]
    assert said(exposures, *sockets, names={1: "named (pid 7)", 2: "named (pid 7)"}) == [
        f"port 53/tcp: named (pid 7) of the host listens there; connections from outside {TO_WEB}"
    ]


def test_what_guests_ask_at_their_gateway_is_taken_too() -> None:
    dnsmasq = socket("udp 192.168.122.1:53", inode=1)
    assert said([forward("udp *:53", "192.168.122.50:53")], dnsmasq, names={1: "dnsmasq (pid 9)"}) == [
        f"port 53/udp: dnsmasq (pid 9) of the host listens there on 192.168.122.1; datagrams there {TO_WEB}"
    ]
    assert said([forward("udp 198.51.100.1:53", "192.168.122.50:53")], dnsmasq) == []
    assert said([forward("udp *:53", "192.168.122.50:53", interface="eth0")], dnsmasq) == []
    here = socket("udp 198.51.100.1:53")
    assert len(said([forward("udp *:53", "192.168.122.50:53", interface="eth0")], here)) == 1


def test_a_socket_bound_to_an_interface() -> None:
    bound = socket("udp *:67", families=FOUR, device="virbr0")
    assert said([forward("udp *:67", "192.168.122.50:67")], bound) == [
        f"port 67/udp: a process of the host listens there on virbr0; datagrams there {TO_WEB}"
    ]
    assert said([forward("udp *:67", "192.168.122.50:67", interface="eth0")], bound) == []


@pytest.mark.parametrize(
    "exposure",
    [
        forward("tcp *:22", "192.168.122.50:22", interface="eth0"),
        forward("tcp *:22", "192.168.122.50:22", sources=("203.0.113.0/24",)),
    ],
)
def test_a_forward_that_does_not_take_everybody_says_so(exposure: Forward) -> None:
    assert said([exposure], socket("tcp *:22")) == [
        f"port 22/tcp: a process of the host listens there; the connections that the forward takes {TO_WEB}"
    ]


def test_what_listens_on_a_loopback_address_keeps_what_comes_there() -> None:
    exposure = forward("tcp *:5432", "192.168.122.50:5432")
    sockets = socket("tcp 127.0.0.1:5432"), socket("tcp 127.0.0.53:5432"), socket("tcp [::1]:5432")
    assert said([exposure], *sockets) == []


def test_of_several_ports_three_are_named_and_sshd_first() -> None:
    sockets = [socket(f"tcp *:{port}", inode=port) for port in (21, 2022, 25, 23, 26)]
    names = {21: "vsftpd (pid 3)", 23: "inetd (pid 4)", 25: "master (pid 5)", 26: "x (pid 6)", 2022: "sshd (pid 7)"}
    assert said([forward("tcp *:20-3000", "192.168.122.50:20-3000")], *sockets, names=names) == [
        (
            "ports 20-3000/tcp: sshd (pid 7) at port 2022, vsftpd (pid 3) at port 21, inetd (pid 4) at port 23 and 2"
            f" more of the host listen there; connections from outside {TO_WEB}"
        )
    ]


def test_a_public_address_of_the_host_is_told_in_one_sentence() -> None:
    sockets = [socket("tcp *:80", inode=1), socket("udp *:123", inode=2), socket("tcp 198.51.100.8:22", inode=3)]
    names = {1: "nginx (pid 3)", 2: "chronyd (pid 4)", 3: "sshd (pid 5)"}
    assert said([nat("198.51.100.8", "192.168.122.51")], *sockets, names=names) == [
        (
            "all of 198.51.100.8: sshd (pid 5) at port 22/tcp, nginx (pid 3) at port 80/tcp and chronyd (pid 4) at port"
            " 123/udp of the host listen there; connections from outside will reach mail instead"
        )
    ]


def test_what_listens_everywhere_has_no_claim_on_an_address_that_is_there_for_a_guest() -> None:
    everywhere, there = socket("tcp *:22"), socket("tcp 198.51.100.8:22")
    assigned, elsewhere = nat("198.51.100.8", "192.168.122.51", assign="eth0"), nat("192.0.2.9", "192.168.122.51")
    assert said([assigned], everywhere) == said([elsewhere], everywhere) == []
    assert len(said([assigned], there)) == 1
    assert said([forward("tcp 192.0.2.9:22", "192.168.122.50:22")], everywhere) == []


def test_clients_of_udp_are_not_taken_for_servers_unless_their_port_is_named() -> None:
    client = socket("udp *:40000")
    assert said([forward("udp *:30000-50000", "192.168.122.50:30000-50000")], client) == []
    assert said([nat("198.51.100.8", "192.168.122.51")], client) == []
    assert len(said([forward("udp *:40000", "192.168.122.50:40000")], client)) == 1
    assert len(said([forward("tcp *:30000-50000", "192.168.122.50:30000-50000")], socket("tcp *:40000"))) == 1


def test_a_hostile_name_of_a_process_or_a_domain_is_one_line() -> None:
    exposure = forward("tcp *:22", "192.168.122.50:22", domain="a\nb\x1b[31m")
    (line,) = said([exposure], socket("tcp *:22", inode=1), names={1: "x\ny\x1b[2J (pid 1)"})
    assert line.isprintable()
    assert r"x\ny\x1b[2J (pid 1) of the host" in line


def test_without_libvirt_an_entry_counts_in_each_family_it_may_have() -> None:
    config = read(
        '[[forward]]\ndomain = "web1"\nports = ["22", "198.51.100.1:80:80"]\n'
        '[[forward]]\ndomain = "six"\naddress = "2001:db8:122::5"\nsources = ["2001:db8::/32"]\nports = ["90/udp"]\n'
        '[[nat]]\ndomain = "mail"\npublic = "198.51.100.8"\nassign = "eth0"\n'
    )
    found = {(format_entry(item.entry), item.family): item for item in takings_if_running(config, LOCAL)}
    assert set(found) == {
        ("port 22/tcp", Family.IPV4),
        ("port 22/tcp", Family.IPV6),
        ("port 80/tcp of 198.51.100.1", Family.IPV4),
        ("port 90/udp", Family.IPV6),
        ("all of 198.51.100.8", Family.IPV4),
    }
    assert [key for key, item in found.items() if not item.shared] == [("all of 198.51.100.8", Family.IPV4)]
    assert {item.origin.line for item in found.values() if item.origin} == {3, 8, 11}


def test_a_pattern_is_said_to_yield_to_a_process_that_listens() -> None:
    config = read('[[forward]]\ndomain = "ci-*"\nports = ["22"]\n[[forward]]\ndomain = "web"\nports = ["23"]\n')
    sockets = [socket("tcp *:22", inode=1), socket("tcp *:23", inode=2)]
    met = comparing.shadowed_listeners(takings_if_running(config, LOCAL), sockets, CLIENTS, ())
    assert [
        format_conflict(item) for item in comparing.listener_conflicts(met, {1: "sshd (pid 1)", 2: "it (pid 2)"})
    ] == [
        (
            "port 22/tcp: sshd (pid 1) of the host listens there; no domain ci-* is given the port before that ends"
            " (/etc/portfwd.toml:3)"
        ),
        (
            "port 23/tcp: it (pid 2) of the host listens there; connections from outside will reach web instead"
            " (/etc/portfwd.toml:6)"
        ),
    ]


@pytest.mark.parametrize(
    "made",
    [
        lambda number: forward("tcp *:80", "192.168.122.50:80", sources=(f"10.{number >> 8}.{number & 255}.0/24",)),
        lambda number: forward(f"tcp 10.{number >> 8}.{number & 255}.1:80", "192.168.122.50:80"),
        lambda number: forward("tcp *:80", "192.168.122.50:80", interface=f"e{number}"),
    ],
)
def test_forwards_of_one_port_and_guest_are_told_apart_at_once(made: Callable[[int], Forward]) -> None:
    def many(size: int) -> Callable[[], object]:
        return partial(frozenset, list(map(made, range(size))))

    assert grows_no_faster(many, 200)
