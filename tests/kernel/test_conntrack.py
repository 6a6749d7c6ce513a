"""Tracked connections in the kernel's own table: those that changes of openings invalidate are ended, and no others."""

from collections.abc import Collection

import pytest

from fwdaemon.conntrack import end_claimed, end_outdated, open_flows
from fwdaemon.flows import Flow
from fwdaemon.model import Address
from fwdaemon.process import SystemRunner
from tests.unit.forwards import address, forward, nat

MARK = 0x02000000
HOSTS = {4: "198.51.100.1", 6: "2001:db8:1::1"}
CLIENTS = {4: "203.0.113.9", 6: "2001:db8:9::9"}
GUESTS = {4: "192.168.122.50", 6: "2001:db8:122::50"}
# What `conntrack` wants to be told besides, so that a connection is an open one.
STATES = {
    "tcp": ("--state", "ESTABLISHED"),
    "sctp": ("--state", "ESTABLISHED", "--orig-vtag", "1", "--reply-vtag", "2"),
    "udp": (),
}


def track(runner: SystemRunner, version: int, protocol: str, port: int, *more: str, to: str = "") -> None:
    """Have the kernel track a connection to a port of the host, or from there to port 80 of a guest."""
    host, client = HOSTS[version], CLIENTS[version]
    ends = ["-s", client, "-d", host, "-r", to or host, "-q", client]
    sent = ["--sport", str(port), "--dport", str(port)]
    answered = ["--reply-port-src", "80" if to else str(port), "--reply-port-dst", str(port)]
    about = ["-p", protocol, *STATES[protocol], "-t", "60", *more]
    runner.run("conntrack", "-I", *ends, *about, *sent, *answered)


def tracked(runner: SystemRunner, version: int, protocol: str) -> list[str]:
    """Give the ports of the host to which connections are tracked."""
    listing = runner.run("conntrack", "-L", "-f", f"ipv{version}", "-p", protocol).stdout
    return sorted(line.split("dport=", 1)[1].split(" ", 1)[0] for line in listing.splitlines())


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_marked_flows_that_no_opening_carries_are_ended(runner: SystemRunner, version: int, protocol: str) -> None:
    guest = GUESTS[version]
    live = forward(f"{protocol} *:8080", f"{'[' + guest + ']' if version == 6 else guest}:80")
    for port in (8080, 9090):
        track(runner, version, protocol, port, "-m", str(MARK), to=guest)
    track(runner, version, protocol, 7070, to=guest)
    refused: list[Flow] = []

    def refuse(flows: Collection[Flow]) -> None:
        refused.extend(flows)

    assert end_outdated({live}, MARK, (), refuse) == 1
    assert [(flow.destination_port, flow.server) for flow in refused] == [(9090, address(guest))]
    assert tracked(runner, version, protocol) == ["7070", "8080"]
    assert [item.flow.destination_port for item in open_flows(MARK)] == [8080]
    assert end_outdated({live}, MARK, (), refuse) == 0


@pytest.mark.parametrize("version", [4, 6])
def test_datagrams_of_a_port_that_is_taken_begin_a_new_flow(runner: SystemRunner, version: int) -> None:
    guest, local = GUESTS[version], {address(HOSTS[version])}
    taken = forward("udp *:53", f"{'[' + guest + ']' if version == 6 else guest}:53")
    for protocol, port in [("udp", 53), ("udp", 54), ("tcp", 53)]:
        track(runner, version, protocol, port)
    assert end_claimed({taken}, local) == 1
    assert (tracked(runner, version, "udp"), tracked(runner, version, "tcp")) == (["54"], ["53"])


def test_pings_of_an_address_that_is_taken_whole_end(runner: SystemRunner) -> None:
    host, client, local = HOSTS[4], CLIENTS[4], set[Address]()
    for number in ("7", "8"):
        ping = ["--icmp-type", "8", "--icmp-code", "0", "--icmp-id", number]
        runner.run("conntrack", "-I", "-p", "icmp", "-s", client, "-d", host, "-t", "60", *ping)
    assert end_claimed({nat("198.51.100.2", GUESTS[4])}, local) == 0
    assert end_claimed({nat(host, GUESTS[4])}, local) == 2
