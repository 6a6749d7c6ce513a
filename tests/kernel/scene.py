"""What the tests with real packets share: addresses, and what answers and refuses."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_network

from tests.kernel.topology import PORT, Node, Topology, address_words
from tests.lab.place import PATIENCE


@dataclass(frozen=True, slots=True)
class Plan:
    """The addresses of one family. `public` and `other` are the host's; `elsewhere` is routed to it, and to no one."""

    host: str
    outside: str
    gateway: str
    public: str
    other: str
    elsewhere: str
    mail: str
    peer: str
    far: str
    routed: str
    subnet: str
    astray: str


V4 = Plan(
    host="198.51.100.1",
    outside="198.51.100.2",
    gateway="192.168.122.1",
    public="198.51.100.8",
    other="198.51.100.9",
    elsewhere="203.0.113.200",
    mail="192.168.122.50",
    peer="192.168.122.51",
    far="192.168.123.60",
    routed="203.0.113.66",
    subnet="203.0.113.64/29",
    astray="203.0.113.67",
)
V6 = Plan(
    host="2001:db8::1",
    outside="2001:db8::2",
    gateway="2001:db8:122::1",
    public="2001:db8::8",
    other="2001:db8::9",
    elsewhere="2001:db8:200::8",
    mail="2001:db8:122::50",
    peer="2001:db8:122::51",
    far="2001:db8:123::60",
    routed="2001:db8:64::66",
    subnet="2001:db8:64::/64",
    astray="2001:db8:64::67",
)


def answers(node: Node, address: str, text: str) -> None:
    """Check that TCP and UDP get this answer, and an echo request any."""
    tcp, udp = node.tcp(address, PORT, timeout=PATIENCE), node.udp(address, PORT, timeout=PATIENCE)
    assert (tcp.text, udp.text) == (text, text)
    assert node.pings(address, timeout=PATIENCE)


def refuses(node: Node, address: str) -> None:
    """Check that the host refuses both."""
    tcp, udp = node.tcp(address, PORT, timeout=PATIENCE), node.udp(address, PORT, timeout=PATIENCE)
    assert [tcp.outcome, udp.outcome] == ["refused", "refused"]


@contextmanager
def holding(node: Node, address: str) -> Iterator[None]:
    """Give a machine one more address, usable at once."""
    node.ip(address_words(str(ip_network(address)), "eth0"))
    try:
        yield
    finally:
        node.ip(f"address delete {ip_network(address)} dev eth0")


def count(machines: Topology, counter: str, *, family: str = "ip") -> int:
    """How many packets a test's own counter counted."""
    words = machines.host.run("nft", "list", "counter", family, "watch", counter).split()
    return int(words[words.index("packets") + 1])
