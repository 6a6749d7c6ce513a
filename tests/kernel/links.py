"""A host between a neighbour on its uplink and a guest on a bridge, for what is kept of links, addresses and routes."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.topology import Node, own_namespace
from tests.lab.place import wait_until

NEIGHBOUR = "198.51.100.2"
NEIGHBOUR6 = "2001:db8::2"
BRIDGE_MAC = "52:54:00:00:00:01"
BRIDGE_LINK_LOCAL = "fe80::5054:ff:fe00:1"


@dataclass(frozen=True, slots=True)
class Links:
    """The machines: this thread is on `host`, whose `eth0` leads to `neighbour`, and whose `virbr1` to `guest`.

    The guest sends everything to the bridge.
    """

    host: Node
    neighbour: Node
    guest: Node

    def told(self, *words: str) -> str:
        """What `ip` prints on the host, in an order of its own."""
        return "\n".join(sorted(self.host.run("ip", *words).splitlines()))

    def are_settled(self) -> bool:
        """Whether every link has its carrier and its link-local address."""
        at_both_ends = [
            node.run("ip", "-oneline", "address", "show", "scope", "link").count("inet6 fe80::")
            for node in (self.host, self.neighbour, self.guest)
        ]
        return at_both_ends == [3, 1, 1] and "linkdown" not in self.told("route", "show", "table", "all")

    def mac(self, node: Node, interface: str = "eth0") -> str:
        """The MAC address of an interface."""
        words = node.run("ip", "-oneline", "link", "show", interface).split()
        return words[words.index("link/ether") + 1]

    def awaits_neighbour(self, address: str, mac: str) -> None:
        """Wait until the neighbour believes that `address` is at `mac`."""
        wait_until(
            lambda: f" {mac} " in self.neighbour.run("ip", "neighbour", "show", "to", address),
            f"the neighbour knows {address} at {mac}",
        )


@contextmanager
def linked() -> Iterator[Links]:
    """Wire them up; nothing is routed, and forwarding is on."""
    with ExitStack() as at_end:
        neighbour, guest, host = (_entered(at_end, name) for name in ("neighbour", "guest", "host"))
        host.sysctl("ipv4.ip_forward=1", "ipv6.conf.all.forwarding=1")
        host.ip(
            "link set lo up",
            f"link add eth0 type veth peer name eth0 netns {neighbour.namespace}",
            f"link add virbr1 address {BRIDGE_MAC} type bridge",
            f"link add vnet0 type veth peer name eth0 netns {guest.namespace}",
            "link set vnet0 master virbr1 up",
            "link set virbr1 up",
            "link set eth0 up",
            "address add 198.51.100.1/24 dev eth0",
            "address add 2001:db8::1/64 dev eth0",
            "address add 192.168.123.1/24 dev virbr1",
        )
        host.sysctl("ipv4.neigh.eth0.proxy_delay=0", "ipv6.neigh.eth0.proxy_delay=0")
        neighbour.ip(
            "link set eth0 up",
            f"address add {NEIGHBOUR}/24 dev eth0",
            f"address add {NEIGHBOUR6}/64 dev eth0",
        )
        guest.ip(
            "link set eth0 up",
            "address add 192.168.123.60/24 dev eth0",
            "route add default via 192.168.123.1",
            f"route add default via {BRIDGE_LINK_LOCAL} dev eth0",
        )
        links = Links(host, neighbour, guest)
        wait_until(links.are_settled, "the kernel has done what follows from a link that comes up")
        yield links


def _entered(at_end: ExitStack, name: str) -> Node:
    """Move this thread into a fresh namespace; addresses there can be used at once."""
    at_end.enter_context(own_namespace())
    descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    at_end.callback(os.close, descriptor)
    node = Node(Path(f"/proc/{os.getpid()}/fd/{descriptor}"), name)
    node.sysctl("ipv6.conf.all.accept_dad=0", "ipv6.conf.default.accept_dad=0")
    return node
