"""Two hosts that guests migrate between: side by side on one link to the outside, and with a link for the copies."""

import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Self

from fwdaemon.core.types import Address
from fwdaemon.kernel import packets
from fwdaemon.kernel.netlink import attributes, messages, packed
from tests.lab.host import CLIENT4, CLIENT6, Host
from tests.lab.netns import open_socket
from tests.lab.release import Flavour

SECOND4, SECOND6 = "198.51.100.3", "2001:db8::3"
COPIES = ("198.51.102.1", "198.51.102.2")
_OUTSIDE = """
link set eth0 down
address flush dev eth0
link set eth0 name port0
link add eth0 type bridge
link set port0 master eth0
link set port1 master eth0
link set port0 up
link set port1 up
link set eth0 up
address add 198.51.100.2/24 dev eth0
address add 203.0.113.9/32 dev eth0
address add 2001:db8::2/64 dev eth0 nodad
address add 2001:db8:9::9/128 dev eth0 nodad
"""
_SAMPLE_S = 0.02
_GET_ADDRESSES, _DUMP, _DONE = 22, 0x301, 3  # RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP
_FIXED = struct.Struct("=BBBBI")  # ifaddrmsg
_LOCAL, _ADDRESS = 2, 1  # IFA_LOCAL, IFA_ADDRESS
_ERROR = 2  # NLMSG_ERROR: a table that is made with its first entry
_GET_NEIGHBOURS, _PROXY, _DESTINATION = 30, 0x08, 1  # RTM_GETNEIGH, NTF_PROXY, NDA_DST
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # ndmsg
_ARP, _IPV6 = 0x0806, 0x86DD  # ETH_P_ARP, ETH_P_IPV6
_SIX = 6


@dataclass(frozen=True, slots=True)
class Pair:
    """`first` is a host like any other; `second` has SECOND4 and SECOND6, and its own `outside` leads nowhere."""

    first: Host
    second: Host

    def other(self, host: Host) -> Host:
        """The one that is not this."""
        return self.second if host is self.first else self.first

    def copies_to(self, host: Host) -> str:
        """The address at which a host takes copies of guests."""
        return COPIES[0] if host is self.first else COPIES[1]


@contextmanager
def two_hosts(flavour: Flavour) -> Iterator[Pair]:
    """Boot both, with libvirtd running."""
    with Host.boot(flavour) as first, Host.boot(flavour) as second:
        # libvirt refuses to migrate to a host of its own name.
        second.run("hostname", "second")
        for host in (first, second):
            host.libvirt.start()
        _join_outside(first, second)
        _join_for_copies(first, second)
        yield Pair(first, second)


def _join_outside(first: Host, second: Host) -> None:
    second.run("ip", "link", "delete", "eth0")
    _ip(str(first.outside.namespace), f"link add port1 type veth peer name eth0 netns {second.init}")
    for line in _OUTSIDE.strip().splitlines():
        _ip(str(first.outside.namespace), line)
    second.run("ip", "link", "set", "eth0", "up")
    second.run("ip", "address", "add", f"{SECOND4}/24", "dev", "eth0")
    second.run("ip", "address", "add", f"{SECOND6}/64", "dev", "eth0", "nodad")
    # The routes that went with the link, without which it leads nowhere.
    for router in ("198.51.100.2", "2001:db8::2"):
        second.run("ip", "route", "add", "default", "via", router)


def _join_for_copies(first: Host, second: Host) -> None:
    _ip(f"/proc/{first.init}/ns/net", f"link add move type veth peer name move netns {second.init}")
    for host, address in zip((first, second), COPIES, strict=True):
        host.run("ip", "address", "add", f"{address}/24", "dev", "move")
        host.run("ip", "link", "set", "move", "up")


def _ip(namespace: str, line: str) -> None:
    enter = ["nsenter", f"--net={namespace}"]
    subprocess.run([*enter, "ip", *line.split()], check=True)  # noqa: S603  own words


class _Watcher:
    """A thread that watches in the background; a context manager that ends it."""

    def __init__(self, name: str, *sockets: socket.socket) -> None:
        self._sockets = sockets
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        self._thread.join(10)
        for each in self._sockets:
            each.close()

    def _watch(self) -> None:
        """Watch until `_over` is set."""
        raise NotImplementedError


class Holders(_Watcher):
    """Watches every 20 ms which of two hosts holds addresses, or would answer for them by proxy; a context manager.

    `both` are the addresses that were seen on both at one time, `seen` the order in which hosts held each.
    """

    def __init__(self, pair: Pair, *watched: str) -> None:
        self.both: set[Address] = set()
        self.seen: dict[Address, list[int]] = {ip_address(address): [] for address in watched}
        super().__init__("lab-holders", *(asking(host) for host in (pair.first, pair.second)))

    def _watch(self) -> None:
        first, second = self._sockets
        while not self._over.is_set():
            # The first host is asked before and after, so that an address on its way either way is not counted twice.
            on_first, on_second = addresses_held(first), addresses_held(second)
            on_first_still = addresses_held(first)
            for address, order in self.seen.items():
                if address in on_first & on_second & on_first_still:
                    self.both.add(address)
                for number, held in enumerate((on_first, on_second), 1):
                    if address in held and order[-1:] != [number]:
                        order.append(number)
            time.sleep(_SAMPLE_S)


def asking(host: Host) -> socket.socket:
    asking = open_socket(host.place.namespace, socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    asking.settimeout(10)
    return asking


def addresses_assigned(asking: socket.socket) -> set[Address]:
    """Give the addresses that a host's interfaces have."""
    held: set[Address] = set()
    for body in _listed(asking, _GET_ADDRESSES, _FIXED.pack(0, 0, 0, 0, 0)):
        found = attributes(body[_FIXED.size :])
        held.add(ip_address(found.get(_LOCAL) or found[_ADDRESS]))
    return held


def addresses_held(asking: socket.socket) -> set[Address]:
    """Give these, and those for which it would answer by proxy."""
    held = addresses_assigned(asking)
    for family in (socket.AF_INET, socket.AF_INET6):
        for body in _listed(asking, _GET_NEIGHBOURS, _NEIGHBOUR.pack(family, 0, 0, _PROXY, 0)):
            held.add(ip_address(attributes(body[_NEIGHBOUR.size :])[_DESTINATION]))
    return held


def _listed(asking: socket.socket, kind: int, fixed: bytes) -> list[bytes]:
    asking.send(packed(kind, _DUMP, 1, fixed))
    bodies: list[bytes] = []
    while True:
        for message in messages(asking.recv(1 << 16)):
            if message.kind in (_DONE, _ERROR):
                return bodies
            bodies.append(message.body)


class Answerers(_Watcher):
    """Asks every 20 ms outside who has addresses, and notes who answers; a context manager.

    `seen` is the order in which hosts answered for each. A host that answers once more after the other one did is in it
    twice.
    """

    def __init__(self, pair: Pair, *watched: str) -> None:
        self.seen: dict[Address, list[int]] = {ip_address(address): [] for address in watched}
        self._hosts = {mac_of(host): number for number, host in enumerate((pair.first, pair.second), 1)}
        namespace = pair.first.outside.namespace
        self._links = [open_socket(namespace, socket.AF_PACKET, socket.SOCK_DGRAM, 0) for _ in range(2)]
        for link, protocol in zip(self._links, (_ARP, _IPV6), strict=True):
            link.bind(("eth0", protocol))
        self._mac: bytes = self._links[0].getsockname()[-1]
        super().__init__("lab-answerers", *self._links)

    def _watch(self) -> None:
        while not self._over.is_set():
            for address in self.seen:
                self._ask(address)
            until = time.monotonic() + _SAMPLE_S
            while readable := select.select(self._links, [], [], max(0.0, until - time.monotonic()))[0]:
                for link in readable:
                    self._hear(*link.recvfrom(2048))

    def _ask(self, address: Address) -> None:
        link, protocol = self._links[address.version == _SIX], _IPV6 if address.version == _SIX else _ARP
        if isinstance(address, IPv4Address):
            packet, to = packets.packed(packets.REQUEST, IPv4Address(CLIENT4), self._mac, address), b"\xff" * 6
        else:
            group, packet = packets.solicitation(IPv6Address(CLIENT6), self._mac, address)
            to = packets.multicast_mac(group)
        link.sendto(packet, ("eth0", protocol, 0, 0, to))

    def _hear(self, packet: bytes, sender: tuple[str, int, int, int, bytes]) -> None:
        _name, protocol, _kind, _hardware, mac = sender
        if protocol == _ARP:
            answer = packets.read_reply(packet)
            address: Address | None = None if answer is None else answer.sender
        else:
            is_advertisement = packet[6:7] == b"\x3a" and packet[packets.KIND_AT] == packets.ADVERTISEMENT
            address = ip_address(packet[packets.ND_TARGET_AT : packets.ND_TARGET_AT + 16]) if is_advertisement else None
        order, number = self.seen.get(address) if address is not None else None, self._hosts.get(mac)
        if order is not None and number is not None and order[-1:] != [number]:
            order.append(number)


def mac_of(host: Host) -> bytes:
    return bytes.fromhex(host.read("/sys/class/net/eth0/address").strip().replace(":", ""))
