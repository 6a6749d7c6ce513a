"""Hears on an interface which routed addresses others ask for, and has the kernel ask for them on the guests' bridge.

Nobody is answered here. A guest that answers on its bridge becomes an entry of the neighbour table, of which the daemon
hears as of any other, and from which it follows that the host answers outside (`fwdaemon.resolve.neighbours`). One that
is known is asked too: the kernel finds out so that it has gone.
"""

import logging
import select
import socket
import struct
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from threading import Thread
from typing import Final

from fwdaemon.core.pace import Budget
from fwdaemon.core.text import shown
from fwdaemon.core.types import Address, Family, Subnet
from fwdaemon.errors import KernelError
from fwdaemon.kernel import packets
from fwdaemon.kernel.packets import ETHERNET, Field
from fwdaemon.kernel.rtnetlink import Rtnetlink
from fwdaemon.kernel.rtnl_links import resolve

_log = logging.getLogger(__name__)

_PROTOCOLS: Final = {Family.IPV4: 0x0806, Family.IPV6: 0x86DD}  # ETH_P_ARP, ETH_P_IPV6
_SOL_PACKET = 263
# linux/if_packet.h. The membership lets in groups that no socket of ours has joined; it ends with the socket.
_ADD_MEMBERSHIP, _ALLMULTI = 1, 2
_MEMBERSHIP = struct.Struct("=iHH8s")
# How a packet came that was meant for us, be it as one of many. Others are the host's own, which may probe for an
# address that it is about to take, and those of VLANs that are no links of the host.
_MEANT = (socket.PACKET_HOST, socket.PACKET_BROADCAST, socket.PACKET_MULTICAST)
_LONGEST = 2048
_WORD = 4
_WORD_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Duty:
    """What to listen for: each subnet, with the number of the bridge that its guests are on."""

    bridges: frozenset[tuple[Subnet, int]]

    def bridge(self, target: Address) -> int | None:
        """Give where to ask for an address."""
        for subnet, index in self.bridges:
            if target.version == subnet.version and target in subnet:
                return index
        return None

    @property
    def subnets(self) -> list[Subnet]:
        """All subnets, in an order of their own."""
        return sorted((subnet for subnet, _ in self.bridges), key=str)


class Turns:
    """Who may be asked for now. Pure; holds no more addresses than are asked for in one turn.

    Each is asked for once in so many `seconds`, and at `most` so many: the kernel's table has room for a thousand.
    """

    def __init__(self, seconds: float = 1.0, most: int = 50) -> None:
        self._seconds, self._most = seconds, most
        self._asked: set[Address] = set()
        self._until = 0.0

    def grants(self, target: Address, now: float) -> bool:
        """Tell whether to ask for an address, and hold that this is done."""
        if now >= self._until:
            self._asked.clear()
            self._until = now + self._seconds
        if target in self._asked or len(self._asked) >= self._most:
            return False
        self._asked.add(target)
        return True


class Listener:
    """Listens on one interface, in a thread of its own; what that costs is taken from `guests`.

    Raises:
        KernelError: the interface has no MAC addresses, or no thread is to be had.
        OSError: there is no such interface, no descriptor is left, or the kernel refuses the filter: too many subnets.

    """

    def __init__(self, interface: str, index: int, duty: Duty, guests: Budget, turns: Turns | None = None) -> None:
        self._interface = interface
        self._at = index, duty
        self._duty, self._guests = duty, guests
        self._turns = turns or Turns()
        with ExitStack() as undo:
            families = sorted({Family.of(subnet) for subnet in duty.subnets})
            self._links = [undo.enter_context(_opened(interface, index, duty, family)) for family in families]
            self._waker, self._woken = map(undo.enter_context, socket.socketpair())
            self._thread = Thread(target=self._run, name=f"neighbours of {shown(interface)}", daemon=True)
            self._begin()
            undo.pop_all()

    def _begin(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:
            raise KernelError(f"no thread is to be had: {error}") from error

    def serves(self, index: int, duty: Duty) -> bool:
        """Whether it is still at work, with this duty, and on the interface that has this number now."""
        return self._at == (index, duty) and self._thread.is_alive()

    def close(self) -> None:
        """End the thread; the interface is then as it was before."""
        self._waker.close()
        self._thread.join()
        self._woken.close()
        for link in self._links:
            link.close()

    def _run(self) -> None:
        while (ready := self._ready(*self._links)) is not None:
            with self._guests.charged(time.thread_time):
                for link in ready:
                    self._receive(link)
            while rest := self._guests.rest():  # others may spend meanwhile
                if self._ready(timeout=rest) is None:
                    return

    def _ready(self, *links: socket.socket, timeout: float | None = None) -> list[socket.socket] | None:
        """Wait for packets, or for the time given; `None` when it is time to end."""
        waiting = select.poll()
        for source in (self._woken, *links):
            waiting.register(source, select.POLLIN)
        ready = dict(waiting.poll(None if timeout is None else timeout * 1000))
        return None if self._woken.fileno() in ready else [link for link in links if link.fileno() in ready]

    def _receive(self, link: socket.socket) -> None:
        """Read one packet, and ask on the bridge if it is worth it."""
        try:
            packet, (_name, protocol, kind, *_rest) = link.recvfrom(_LONGEST)
            target = _target(packet, protocol) if kind in _MEANT else None
            bridge = None if target is None else self._duty.bridge(target)
            if target is not None and bridge is not None and self._turns.grants(target, time.monotonic()):
                with Rtnetlink() as kernel:
                    resolve(kernel, target, bridge)
        except (OSError, KernelError) as error:  # the link went down, or the bridge has gone
            _log.debug("what %s asks for is not asked for: %s", shown(self._interface), error)


def _target(packet: bytes, protocol: int) -> Address | None:
    """Give the address that is asked for."""
    if protocol == _PROTOCOLS[Family.IPV4]:
        return packets.read_request(packet)
    asked = packets.read_solicitation(packet)
    return None if asked is None else asked.target


def _opened(interface: str, index: int, duty: Duty, family: Family) -> socket.socket:
    """Open a socket that gets what is asked in one family, and nothing before it is filtered."""
    link = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        packets.attach(link, _filter(index, duty, family))
        if family is Family.IPV6:
            link.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, _MEMBERSHIP.pack(index, _ALLMULTI, 0, bytes(8)))
        link.bind((interface, _PROTOCOLS[family]))
        _require_macs(link)
    except (OSError, KernelError):
        with suppress(OSError):
            link.close()
        raise
    return link


def _require_macs(link: socket.socket) -> None:
    *_rest, hardware, _mac = link.getsockname()
    if hardware != ETHERNET:
        raise KernelError("the link has no MAC addresses")


def _filter(index: int, duty: Duty, family: Family) -> list[list[Field]]:
    """Let questions for the subnets through that came by the interface itself, and not by one that is on it."""
    by_it = Field(4, packets.INTERFACE_INDEX, index)
    if family is Family.IPV4:
        question = [by_it, Field(2, packets.OPERATION_AT, packets.REQUEST)]
    else:
        question = [
            by_it,
            Field(1, packets.NEXT_HEADER_AT, packets.NEXT_HEADER),
            Field(1, packets.HOP_LIMIT_AT, packets.HOP_LIMIT),
            Field(1, packets.KIND_AT, packets.SOLICITATION),
        ]
    return [question + _target_in(subnet) for subnet in duty.subnets if Family.of(subnet) is family]


def _target_in(subnet: Subnet) -> list[Field]:
    """Compare the target with a subnet, in words of four bytes."""
    at = packets.ARP_TARGET_AT if isinstance(subnet.network_address, IPv4Address) else packets.ND_TARGET_AT
    values, masks = _words(subnet.network_address), _words(subnet.netmask)
    return [
        Field(_WORD, at + _WORD * number, value, None if mask == _WORD_MASK else mask)
        for number, (value, mask) in enumerate(zip(values, masks, strict=True))
        if mask
    ]


def _words(address: Address) -> tuple[int, ...]:
    return struct.unpack(f"!{len(address.packed) // _WORD}I", address.packed)
