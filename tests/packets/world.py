"""The host and the machines around it in network namespaces; these have no addresses, so nothing but a test answers.

Frames go out by packet sockets, whatever is in them, and what comes to a machine is read there. Each is handled where
it is sent, on one processor and in order, so what has not come once a later frame has gone as far never will.
"""

import os
import select
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final

from fwdaemon.core.types import Address
from tests.kernel.topology import Node, address_words, fresh_node, own_namespace
from tests.lab.netns import open_socket
from tests.lab.place import wait_until
from tests.packets.plan import BRIDGES, HELD, LINK, MAC, OWN, ROUTED, own_address
from tests.packets.promise import Fate, Packet
from tests.packets.wire import Seen, frame, seen, segment_seen

_ETH_P_ALL: Final = 3
_SENTINEL: Final = 0xFFFFFFFF
# From a machine's link to the host, from there to a bridge, and from a bridge to a machine.
_HOPS: Final = 3
_BUFFER: Final = 1 << 23
_RAW: Final = [(family, protocol) for family in (socket.AF_INET, socket.AF_INET6) for protocol in ("udp", "tcp")]
_PROTOCOLS: Final = {"udp": socket.IPPROTO_UDP, "tcp": socket.IPPROTO_TCP}


@dataclass(frozen=True, slots=True)
class Arrival:
    """A packet where it came to, and the port its sender seems to have."""

    fate: Fate
    source_port: int


@dataclass(frozen=True, slots=True)
class World:
    """The host, on which this thread is, and sockets on all links."""

    host: Node
    links: Mapping[str, socket.socket]
    own: tuple[tuple[int, socket.socket], ...]
    macs: Mapping[str, str]

    def send(self, packets: Iterable[Packet]) -> dict[int, list[Arrival]]:
        """Send packets, and give where each came to."""
        arrived: defaultdict[int, list[Arrival]] = defaultdict(list)
        for packet in packets:
            self._send(packet)
        for _ in range(_HOPS):
            self._send(_sentinel())
            while not any(number == _SENTINEL for number, _ in self._read(arrived)):
                select.select([*self.links.values(), *(own for _, own in self.own)], (), ())
        self._read(arrived)
        arrived.pop(_SENTINEL, None)
        return arrived

    def _send(self, packet: Packet) -> None:
        self.links[packet.sender].send(frame(packet, MAC[packet.mac], self.macs[LINK[packet.sender]]))

    def _read(self, arrived: defaultdict[int, list[Arrival]]) -> list[tuple[int, Arrival]]:
        found = [*self._on_links(), *self._on_host()]
        for number, arrival in found:
            arrived[number].append(arrival)
        return found

    def _on_links(self) -> Iterator[tuple[int, Arrival]]:
        for name, link in self.links.items():
            for data, sender, _ in _received(link):
                if sender[2] != socket.PACKET_OUTGOING and (found := seen(data[14:])):
                    yield found.number, _arrival(name, found)

    def _on_host(self) -> Iterator[tuple[int, Arrival]]:
        for family, own in self.own:
            for data, sender, to in _received(own):
                # A raw socket of IPv6 gives no header.
                found = seen(data) if family == socket.AF_INET else segment_seen(data, ip_address(sender[0]), to)
                if found:
                    yield found.number, _arrival("host", found)


def _arrival(where: str, found: Seen) -> Arrival:
    return Arrival(Fate(where, found.source, found.to, found.port), found.source_port)


def _received(link: socket.socket) -> Iterator[tuple[bytes, Any, Address]]:
    """Give what has come with its sender, and its destination where that is in no header."""
    while True:
        try:
            data, asides, _, sender = link.recvmsg(2048, 64)
        except BlockingIOError:
            return
        yield data, sender, ip_address(asides[0][2][:16] if asides else 0)


def _sentinel() -> Packet:
    own: Address = own_address("eth0", 4)
    return Packet(_SENTINEL, "outside", "outside", HELD["outside"][0], 9, own, 9, "udp")


@contextmanager
def world() -> Iterator[World]:
    """Wire everything; this thread is on the host meanwhile, and on one processor."""
    processors = os.sched_getaffinity(0)
    with ExitStack() as at_end:
        at_end.enter_context(own_namespace())
        at_end.callback(os.sched_setaffinity, 0, processors)
        os.sched_setaffinity(0, {min(processors)})
        host = fresh_node(at_end, "host", "/proc/thread-self/ns/net")
        nodes = {name: fresh_node(at_end, name) for name in LINK}
        _wire(host, nodes)
        for node in (host, *nodes.values()):
            wait_until(node.is_linked, f"the links of {node.name} carry frames")
        links = {name: at_end.enter_context(_link(node)) for name, node in nodes.items()}
        own = tuple((family, at_end.enter_context(_own(family, protocol))) for family, protocol in _RAW)
        macs = {link: host.run("ip", "-brief", "link", "show", "dev", link).split()[2] for link in set(LINK.values())}
        yield World(host, links, own, macs)


def _wire(host: Node, nodes: Mapping[str, Node]) -> None:
    host.sysctl("ipv4.ip_forward=1", "ipv6.conf.all.forwarding=1", "ipv4.icmp_ratelimit=0", "ipv6.icmp.ratelimit=0")
    # No sequence number here fits any other.
    host.sysctl("netfilter.nf_conntrack_tcp_be_liberal=1")
    host.ip("link set lo up", *(f"link add {bridge} type bridge" for bridge in BRIDGES))
    for name, node in nodes.items():
        node.sysctl("ipv6.conf.all.disable_ipv6=1", "ipv6.conf.default.disable_ipv6=1")
        link = LINK[name]
        port = name if link in BRIDGES else link
        host.ip(f"link add {port} type veth peer name eth0 address {MAC[name]} netns {node.namespace}")
        node.ip("link set eth0 up")
        host.ip(*([f"link set {port} master {link}"] if link in BRIDGES else []), f"link set {port} up")
        if link in BRIDGES:
            # A forged MAC address is not to lead frames astray.
            host.run("bridge", "link", "set", "dev", port, "learning", "off")
            host.run("bridge", "fdb", "replace", MAC[name], "dev", port, "master", "static")
    host.ip(*(f"link set {bridge} up" for bridge in BRIDGES))
    host.sysctl("bridge.bridge-nf-call-iptables=0", "bridge.bridge-nf-call-ip6tables=0")
    _settle(host)


def _settle(host: Node) -> None:
    """Give the host its addresses, its routes, and neighbours that it need not ask for."""
    firsts = {own_address(link, version) for link in set(LINK.values()) for version in (4, 6)}
    for item in OWN:
        # The host takes no other one for what it masquerades.
        second = " preferred_lft 0" if item.address.version == 6 and item.address not in firsts else ""
        host.ip(address_words(f"{item.address}/{item.subnet.prefixlen}", item.device) + second)
    host.ip(*(f"route add {subnet} dev {BRIDGES[1]}" for subnet in ROUTED))
    host.ip(
        *(
            f"route add default via {address} dev eth0"
            for address in HELD["outside"]
            if str(address).endswith(("100.2", ":2"))
        )
    )
    for name, held in HELD.items():
        host.ip(*(f"neighbour replace {item} dev {LINK[name]} lladdr {MAC[name]} nud permanent" for item in held))


def _link(node: Node) -> socket.socket:
    link = open_socket(node.namespace, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    link.bind(("eth0", _ETH_P_ALL))
    return _ready(link)


def _own(family: int, protocol: str) -> socket.socket:
    own = socket.socket(family, socket.SOCK_RAW, _PROTOCOLS[protocol])
    if family == socket.AF_INET6:
        own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    return _ready(own)


def _ready(link: socket.socket) -> socket.socket:
    link.setblocking(False)  # noqa: FBT003  it takes no name
    link.setsockopt(socket.SOL_SOCKET, 33, _BUFFER)  # SO_RCVBUFFORCE, asm-generic/socket.h
    return link


def same(expected: Fate | None, met: list[Arrival]) -> bool:
    """Whether a packet came where it should, once, and nowhere else."""
    found = [arrival.fate for arrival in met]
    return found == ([] if expected is None else [expected])
