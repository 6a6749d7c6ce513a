"""127.0.0.1 with real packets, through the rules of either backend."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kernel.conftest import Open
from tests.kernel.scene import V4, count, holding
from tests.kernel.topology import PORT, Node, Topology
from tests.lab.place import wait_until
from tests.unit.forwards import forward

WATCH = """
table ip watch {
    counter spoken { }
    counter sent { }
    chain prerouting {
        type filter hook prerouting priority -149; policy accept;
        iifname != "lo" ip saddr 127.0.0.0/8 counter name spoken
        iifname != "lo" ip daddr 127.0.0.0/8 counter name sent
    }
}
"""


@pytest.fixture
def localnet(machines: Topology) -> Iterator[Topology]:
    """Let the host take 127.0.0.0/8 from everywhere, and let others send it there."""
    everybody = (machines.host, machines.peer, machines.outside)
    for node in everybody:
        node.sysctl("ipv4.conf.all.route_localnet=1")
    yield machines
    for node in everybody:
        node.sysctl("ipv4.conf.all.route_localnet=0")


def test_a_forward_answers_on_localhost_where_asked(localnet: Topology, opened: Open) -> None:
    host = localnet.host
    openings = [
        forward("tcp *:8080", f"{V4.mail}:{PORT}"),
        forward("udp *:8080-8081", f"{V4.mail}:{PORT}-{PORT + 1}"),
        forward("tcp *:9090", f"{V4.mail}:{PORT}", interface="eth0"),
        forward("tcp 198.51.100.1:7070", f"{V4.mail}:{PORT}"),
    ]
    opened(*openings, localhost=True)
    assert host.tcp("127.0.0.1", 8080).text == host.udp("127.0.0.1", 8080).text == f"mail {V4.gateway}"
    assert localnet.outside.tcp("198.51.100.1", 8080).text == f"mail {V4.outside}"
    assert [host.tcp("127.0.0.1", port).outcome for port in (7070, 9090)] == ["refused", "refused"]
    assert host.tcp("127.0.0.53", 8080).outcome == "refused", "the rest of 127.0.0.0/8 is the host's own"
    opened(*openings)
    assert [host.tcp("127.0.0.1", 8080).outcome, host.udp("127.0.0.1", 8080).outcome] == ["refused", "refused"]


@pytest.mark.parametrize("sender", ["peer", "outside"])
def test_nobody_else_gets_to_127_0_0_1_or_speaks_for_it(localnet: Topology, opened: Open, sender: str) -> None:
    localnet.host.run("nft", "-f", "-", stdin=WATCH)
    node, own, gateway = {
        "peer": (localnet.peer, V4.peer, V4.gateway),
        "outside": (localnet.outside, V4.outside, "198.51.100.1"),
    }[sender]
    with sending_to_loopback(node, gateway):
        assert node.tcp("127.0.0.1", PORT, source=own).text == f"host {own}"
        node.udp(gateway, PORT, source="127.0.0.9", timeout=0.01)
        wait_until(lambda: count(localnet, "spoken") == 1, "the packet comes in")
        opened(forward(f"tcp *:{PORT}", f"{V4.mail}:{PORT}"), localhost=True)
        before = count(localnet, "sent")
        assert node.tcp("127.0.0.1", PORT, source=own, timeout=0.2).outcome == "timed out"
        node.udp(gateway, PORT, source="127.0.0.9", timeout=0.01)
        assert node.udp(gateway, PORT, source=own).text == f"host {own}"
        assert (count(localnet, "spoken"), count(localnet, "sent")) == (1, before)


@contextmanager
def sending_to_loopback(node: Node, gateway: str) -> Iterator[None]:
    node.ip(f"route add 127.0.0.0/8 via {gateway}")
    try:
        with holding(node, "127.0.0.9"):
            yield
    finally:
        node.ip(f"route delete 127.0.0.0/8 via {gateway}")
