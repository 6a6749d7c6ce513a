"""Tracked connections in the kernel's own table: those that changes of exposures invalidate end, and no others."""

import tracemalloc
from collections.abc import Collection
from dataclasses import replace

import pytest

from fwdaemon.core.exposures import Exposure
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, Family
from fwdaemon.kernel.conntrack import (
    end,
    end_claimed,
    end_resumed,
    end_strangers,
    end_strayed,
    open_flows,
    outdated,
)
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.resolve.flows import Judge, Strangers
from fwdaemon.status.records import UsageReader
from tests.lab.connections import Connection, Tuple, label_rule, track
from tests.unit.forwards import address, forward, nat

LABEL = 25
HOSTS = {4: "198.51.100.1", 6: "2001:db8:1::1"}
CLIENTS = {4: "203.0.113.9", 6: "2001:db8:9::9"}
GUESTS = {4: "192.168.122.50", 6: "2001:db8:122::50"}
OTHER = "192.168.122.51"


def begin(version: int, protocol: str, port: int, *, label: int | None = None, to: str = "") -> None:
    """Have the kernel track a connection to a port of the host, or from there to port 80 of a guest."""
    track([connection(version, protocol, port, label, to)])


def connection(version: int, protocol: str, port: int, label: int | None = None, to: str = "") -> Connection:
    host, client = HOSTS[version], CLIENTS[version]
    sent, answered = Tuple(client, host, port, port), Tuple(to or host, client, 80 if to else port, port)
    return Connection(protocol, sent, answered, label)


def tracked(runner: SystemRunner, version: int, protocol: str) -> list[str]:
    """Give the ports of the host to which connections are tracked."""
    listing = runner.run("conntrack", "-L", "-f", f"ipv{version}", "-p", protocol).stdout
    return sorted(line.split("dport=", 1)[1].split(" ", 1)[0] for line in listing.splitlines())


def swept(
    live: Collection[Exposure],
    guests: Collection[Address] | None = None,
    removed: Collection[Exposure] = (),
    clients: Collection[Address] = (),
    few: int = 0,
) -> list[tuple[int, Address]]:
    """End what is outdated; give the ports and guests."""
    found = [entry for batch in outdated(Judge(live, (), removed), LABEL, guests, clients, few) for entry in batch]
    assert end(found) == len({entry.key for entry in found})
    return sorted({(entry.flow.destination_port, entry.flow.server) for entry in found})


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_labelled_flows_that_no_exposure_carries_are_ended(runner: SystemRunner, version: int, protocol: str) -> None:
    label_rule(runner)
    guest = GUESTS[version]
    live = forward(f"{protocol} *:8080", f"{'[' + guest + ']' if version == 6 else guest}:80")
    for port in (8080, 9090):
        begin(version, protocol, port, label=LABEL, to=guest)
    begin(version, protocol, 7070, to=guest)
    begin(version, protocol, 6060, label=LABEL + 1, to=guest)
    assert swept({live}) == [(9090, address(guest))]
    assert tracked(runner, version, protocol) == ["6060", "7070", "8080"]
    assert [item.flow.destination_port for item in open_flows(LABEL)] == [8080]
    assert swept({live}) == []


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_what_slipped_in_between_others_is_ended_and_nothing_else(
    runner: SystemRunner, version: int, protocol: str
) -> None:
    label_rule(runner)
    begin(version, protocol, 8080, label=LABEL, to=GUESTS[version])
    begin(version, protocol, 7070, to=GUESTS[version])
    begin(version, protocol, 6060, label=LABEL + 1, to=GUESTS[version])
    begin(version, protocol, 22)
    local = {address(HOSTS[version])}
    other = Family.IPV6 if version == Family.IPV4 else Family.IPV4
    assert end_strangers(Strangers(frozenset({other}), local), LABEL) == 0
    assert end_strangers(Strangers(frozenset(Family), local), LABEL) == 2
    assert tracked(runner, version, protocol) == ["22", "8080"]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("some", [True, False], ids=["of some guests", "of everybody"])
def test_what_a_guest_opened_under_its_public_address_is_known_without_a_label(
    runner: SystemRunner, version: int, *, some: bool
) -> None:
    label_rule(runner)
    guest, client, mapped = GUESTS[version], CLIENTS[version], nat(HOSTS[version], GUESTS[version])
    other = OTHER if version == Family.IPV4 else "2001:db8:122::51"
    for port, source, sent_as in ((1, guest, HOSTS[version]), (2, other, HOSTS[version]), (3, guest, guest)):
        track([Connection("tcp", Tuple(source, client, 5000, port), Tuple(client, sent_as, port, 5000), None)])
    begin(version, "tcp", 4)
    assert [item.flow.destination_port for item in open_flows(LABEL, renamed={mapped.renaming})] == [1]
    guests = [mapped.target] if some else None
    assert [*swept({mapped}, guests, [mapped], guests or ())] == []
    assert [*swept((), guests, [mapped], guests or ())] == [(1, address(client))]
    assert tracked(runner, version, "tcp") == ["2", "3", "4"]
    many = [
        nat(f"192.0.2.{number}" if version == Family.IPV4 else f"2001:db8:7::{number}", guest) for number in range(30)
    ]
    assert [*swept((), removed=[*many, nat(HOSTS[version], other)])] == [(2, address(client))]


def test_only_connections_of_some_guests_are_looked_at(runner: SystemRunner) -> None:
    """What the guest answers, and what it began where that is asked for: each takes a walk through all there are."""
    label_rule(runner)
    guest, other, client = GUESTS[4], OTHER, CLIENTS[4]
    for port, to in ((8080, guest), (9090, other)):
        begin(4, "tcp", port, label=LABEL, to=to)
    track([Connection("tcp", Tuple(guest, client, 1, 2), Tuple(client, HOSTS[4], 2, 1), LABEL)])
    assert swept((), [address(guest)]) == [(8080, address(guest))]
    assert swept((), (), clients=[address(guest)]) == [(2, address(client))]
    assert tracked(runner, 4, "tcp") == ["9090"]
    many = [address(f"192.0.2.{number}") for number in range(20)]
    assert swept((), [*many, address(other)]) == [(9090, address(other))]


def test_where_few_connections_are_open_all_of_them_are_looked_at(runner: SystemRunner) -> None:
    label_rule(runner)
    for port in (8080, 9090):
        begin(4, "tcp", port, label=LABEL, to=OTHER)
    assert swept((), [address(GUESTS[4])], few=1) == []
    assert swept((), [address(GUESTS[4])], few=2) == [(8080, address(OTHER)), (9090, address(OTHER))]


def test_what_a_connection_expected_lives_as_long_as_that_one(runner: SystemRunner) -> None:
    """As the data connections of FTP do, which have no label of their own."""
    label_rule(runner)
    control = replace(connection(4, "tcp", 21, LABEL, GUESTS[4]), helper="ftp")
    other = replace(connection(4, "tcp", 22, LABEL, OTHER), helper="ftp")
    data = [
        replace(connection(4, "tcp", port, None, GUESTS[4]), master=master.original)
        for port, master in ((30000, control), (30001, other), (30002, control))
    ]
    # The server opens this one itself, as it does unless the client asks for passive mode.
    back = Tuple(GUESTS[4], CLIENTS[4], 20, 30003), Tuple(CLIENTS[4], HOSTS[4], 30003, 20)
    track([control, other, *data, Connection("tcp", *back, None, control.original)])
    live = forward("tcp *:22", f"{OTHER}:80")
    assert swept({live, forward("tcp *:21", f"{GUESTS[4]}:80")}) == []
    assert [port for port, _ in swept({live}, [address(GUESTS[4])])] == [21, 30000, 30002, 30003]
    assert tracked(runner, 4, "tcp") == ["22", "30001"]


def test_connections_of_others_are_not_ended_whatever_bytes_they_are_written_with(runner: SystemRunner) -> None:
    """Their addresses hold the bytes that expected connections are picked from the kernel's listing by."""
    label_rule(runner)
    for port, client in ((8080, "10.0.14.128"), (9090, "10.0.128.14")):
        for label in (None, LABEL + 1):
            sent = Tuple(client, HOSTS[4], port + bool(label), port + bool(label))
            track([Connection("tcp", sent, Tuple(GUESTS[4], client, 80, sent.source_port), label)])
    before = tracked(runner, 4, "tcp")
    assert len(before) == 4
    assert swept(()) == []
    assert tracked(runner, 4, "tcp") == before


def test_connections_of_many_clients_are_counted_as_one(runner: SystemRunner) -> None:
    label_rule(runner)
    for number in range(3):
        sent = Tuple(f"203.0.113.{number}", HOSTS[4], 40000 + number, 8080)
        track([Connection("tcp", sent, Tuple(GUESTS[4], sent.source, 80, sent.source_port), LABEL)])
    begin(4, "udp", 9090, label=LABEL, to=GUESTS[4])
    found = {(item.flow.destination_port, item.number) for item in open_flows(LABEL, bytes(65536))}
    assert found == {(8080, 3), (9090, 1)}
    assert sum(item.number for item in open_flows(LABEL)) == 4


def begin_many(port: int, clients: int) -> None:
    """Have that many clients, each with an address of its own, connect to the port that leads to the guest's 80."""
    sources = (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}" for number in range(clients))
    ways = ((Tuple(source, HOSTS[4], port, port), Tuple(GUESTS[4], source, 80, port)) for source in sources)
    track(Connection("tcp", *way, LABEL) for way in ways)


def test_however_many_clients_there_are_few_ways_are_remembered_and_none_is_lost(runner: SystemRunner) -> None:
    label_rule(runner)
    begin_many(8080, 20_000)
    begin_many(9090, 600)
    tracemalloc.start()
    try:
        assert sum(item.number for item in open_flows(LABEL)) == 20_600
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 6_000_000, "all of them together take twice as much"
    apart = bytearray(65536)
    apart[9090] = 3
    found = [(item.flow.destination_port, item.number) for item in open_flows(LABEL, apart)]
    assert sorted(found) == [(8080, 20_000), (9090, 88), (9090, 256), (9090, 256)]


def test_connections_of_forwards_that_differ_in_their_sources_are_counted_apart(runner: SystemRunner) -> None:
    label_rule(runner)
    begin_many(8080, 600)
    to, asked = f"{GUESTS[4]}:80", ("10.0.0.0/24", "10.0.1.0/28", "10.0.2.0/32")
    some = [forward("tcp *:8080", to, sources=(each,)) for each in asked]
    desired = Desired(label=LABEL).having([*some, forward("tcp *:9090", to)])
    found = UsageReader(lambda _: {}).read(desired).open
    assert found == {some[0]: (256, None), some[1]: (16, None), some[2]: (1, None)}


@pytest.mark.parametrize("version", [4, 6])
def test_datagrams_of_a_port_that_is_taken_begin_a_new_flow(runner: SystemRunner, version: int) -> None:
    guest, local = GUESTS[version], {address(HOSTS[version])}
    taken = forward("udp *:53", f"{'[' + guest + ']' if version == 6 else guest}:53")
    for protocol, port in [("udp", 53), ("udp", 54), ("tcp", 53)]:
        begin(version, protocol, port)
    assert len(end_claimed({taken}, local)) == 1
    assert (tracked(runner, version, "udp"), tracked(runner, version, "tcp")) == (["54"], ["53"])


def test_pings_of_an_address_that_is_taken_whole_end(runner: SystemRunner) -> None:
    host, client, local = HOSTS[4], CLIENTS[4], set[Address]()
    for number in ("7", "8"):
        ping = ["--icmp-type", "8", "--icmp-code", "0", "--icmp-id", number]
        runner.run("conntrack", "-I", "-p", "icmp", "-s", client, "-d", host, "-t", "60", *ping)
    assert end_claimed({nat("198.51.100.2", GUESTS[4])}, local) == []
    assert len(end_claimed({nat(host, GUESTS[4])}, local)) == 2


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_what_was_not_translated_as_an_arriving_guest_is_ends(
    runner: SystemRunner, version: int, protocol: str
) -> None:
    guest, client, host = GUESTS[version], CLIENTS[version], HOSTS[version]
    public = "198.51.100.8" if version == 4 else "2001:db8::8"
    for port, known_as in ((80, host), (81, public)):
        track([Connection(protocol, Tuple(guest, client, port, port), Tuple(client, known_as, port, port), None)])
    for port, led_to in ((82, public), (83, guest)):
        track([Connection(protocol, Tuple(client, public, port, port), Tuple(led_to, client, port, port), None)])
    assert end_strayed({nat(public, guest)}) == 2
    assert sorted(tracked(runner, version, protocol)) == ["81", "83"]


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_known_of_a_guest_that_was_taken_over_is_forgotten(runner: SystemRunner, version: int) -> None:
    """Connections to it and from it, by TCP; those of others, and what is translated to it, stay."""
    guest, client, host = GUESTS[version], CLIENTS[version], HOSTS[version]
    connections = (
        Connection("tcp", Tuple(client, guest, 80, 80), Tuple(guest, client, 80, 80), None),
        Connection("tcp", Tuple(guest, client, 81, 81), Tuple(client, guest, 81, 81), None),
        Connection("tcp", Tuple(client, host, 82, 82), Tuple(guest, client, 82, 82), None),
        Connection("tcp", Tuple(client, host, 83, 83), Tuple(host, client, 83, 83), None),
        Connection("udp", Tuple(client, guest, 84, 84), Tuple(guest, client, 84, 84), None),
    )
    track(connections)
    assert end_resumed(()) == 0
    assert end_resumed({address(guest)}) == 2
    assert (tracked(runner, version, "tcp"), tracked(runner, version, "udp")) == (["82", "83"], ["84"])
