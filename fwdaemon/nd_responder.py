"""Answers neighbour solicitations for whole prefixes, which the kernel can only do address by address.

The answers are those of the kernel's own proxies (RFC 4861, section 7.2.8): without the override flag, so that they
never displace what somebody says of an address of its own. One who probes whether an address is free is answered too,
so that it takes none of a prefix which is routed elsewhere.
"""

import logging
import select
import socket
import struct
import time
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network
from threading import Thread
from typing import Final

from fwdaemon import ndp, socket_filter
from fwdaemon.errors import KernelError
from fwdaemon.naming import shown
from fwdaemon.ndp import ETHERNET, Advertisement, Solicitation
from fwdaemon.socket_filter import Field

_log = logging.getLogger(__name__)

_ETH_P_IPV6 = 0x86DD
_SOL_PACKET = 263
# linux/if_packet.h. The membership lets in groups that no socket of ours has joined; it ends with the socket.
_ADD_MEMBERSHIP, _ALLMULTI = 1, 2
_MEMBERSHIP = struct.Struct("=iHH8s")
# How a packet came that was meant for us, be it as one of many. Others are the host's own, which may probe for an
# address in the prefix that it is about to take, and those of VLANs that are no links of the host.
_MEANT = (socket.PACKET_HOST, socket.PACKET_BROADCAST, socket.PACKET_MULTICAST)
_LONGEST = 2048
_WORD_MASK = 0xFFFFFFFF

# Who floods the link gets no more of our time than this; what is left unread, the kernel drops.
_MOST_PER_SECOND: Final = 1000


@dataclass(frozen=True, slots=True)
class Duty:
    """Whom to answer for: all of `prefixes` but `own`, the interface's addresses; answers come from `source`."""

    prefixes: frozenset[IPv6Network]
    own: frozenset[IPv6Address]
    source: IPv6Address

    def covers(self, target: IPv6Address) -> bool:
        """Whether to answer for this address."""
        return target not in self.own and any(target in prefix for prefix in self.prefixes)


class Responder:
    """Answers on one interface, in a thread of its own.

    Raises:
        KernelError: the interface has no MAC addresses.
        OSError: there is no such interface, or the kernel refuses the filter: too many prefixes.

    """

    def __init__(self, interface: str, index: int, duty: Duty) -> None:
        self._interface = interface
        self._index = index
        self._duty = duty
        self._socket = _opened(interface, index, duty)
        self._waker, self._woken = socket.socketpair()
        self._thread = Thread(target=self._run, name=f"neighbours of {shown(interface)}", daemon=True)
        self._thread.start()

    def serves(self, index: int) -> bool:
        """Whether it is still at work, and on the interface that has this number now."""
        return self._index == index and self._thread.is_alive()

    def assign(self, duty: Duty) -> None:
        """Change whom it answers for."""
        if duty.prefixes != self._duty.prefixes:
            socket_filter.attach(self._socket, _filter(self._index, duty))
        self._duty = duty

    def close(self) -> None:
        """End the thread; the interface is then as it was before."""
        self._waker.close()
        self._thread.join()
        self._woken.close()
        self._socket.close()

    def _run(self) -> None:
        left, until = 0, 0.0
        while self._is_ready(self._socket):
            now = time.monotonic()
            if now >= until:
                left, until = _MOST_PER_SECOND, now + 1
            if left:
                left -= 1
                self._answer()
            else:
                self._is_ready(timeout=until - now)

    def _is_ready(self, *sources: socket.socket, timeout: float | None = None) -> bool:
        """Wait for a packet, or for the time given; `False` when it is time to end."""
        waiting = select.poll()
        for source in (self._woken, *sources):
            waiting.register(source, select.POLLIN)
        ready = waiting.poll(None if timeout is None else timeout * 1000)
        return self._woken.fileno() not in dict(ready)

    def _answer(self) -> None:
        """Read one packet, and answer it if it is worth it."""
        try:
            packet, (*_rest, kind, _hardware, sender) = self._socket.recvfrom(_LONGEST)
            asked = ndp.read_solicitation(packet)
            if kind in _MEANT and asked is not None and self._duty.covers(asked.target):
                self._send(asked, sender)
        except OSError as error:  # the link went down
            _log.debug("cannot answer a neighbour on %s: %s", shown(self._interface), error)

    def _send(self, asked: Solicitation, sender: bytes) -> None:
        """Send the answer to whoever asked, or to everybody if that one has no address yet (section 7.2.4)."""
        destination = ndp.ALL_NODES if asked.is_probe else asked.source
        answer = Advertisement(
            source=self._duty.source,
            destination=destination,
            target=asked.target,
            mac=self._socket.getsockname()[-1],
            router=True,
            solicited=not asked.is_probe,
            override=False,
        )
        mac = ndp.multicast_mac(destination) if asked.is_probe else sender
        self._socket.sendto(answer.packed(), (self._interface, _ETH_P_IPV6, 0, 0, mac))


def _opened(interface: str, index: int, duty: Duty) -> socket.socket:
    """Open a socket that gets the solicitations of a duty, and nothing before it is filtered."""
    link = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        socket_filter.attach(link, _filter(index, duty))
        link.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, _MEMBERSHIP.pack(index, _ALLMULTI, 0, bytes(8)))
        link.bind((interface, _ETH_P_IPV6))
        _require_macs(link)
    except (OSError, KernelError):
        link.close()
        raise
    return link


def _require_macs(link: socket.socket) -> None:
    *_rest, hardware, _mac = link.getsockname()
    if hardware != ETHERNET:
        raise KernelError("nobody there has a MAC address")


def _filter(index: int, duty: Duty) -> list[list[Field]]:
    """Let solicitations for the prefixes through that came by the interface itself, and not by one that is on it."""
    solicitation = [
        Field(1, ndp.NEXT_HEADER_AT, ndp.NEXT_HEADER),
        Field(1, ndp.HOP_LIMIT_AT, ndp.HOP_LIMIT),
        Field(1, ndp.KIND_AT, ndp.SOLICITATION),
        Field(4, socket_filter.INTERFACE_INDEX, index),
    ]
    return [solicitation + _target_in(prefix) for prefix in sorted(duty.prefixes)]


def _target_in(prefix: IPv6Network) -> list[Field]:
    """Compare the target with a prefix, in words of four bytes."""
    words = struct.Struct("!IIII")
    pairs = zip(words.unpack(prefix.network_address.packed), words.unpack(prefix.netmask.packed), strict=True)
    return [
        Field(words.size // 4, ndp.TARGET_AT + 4 * number, value, None if mask == _WORD_MASK else mask)
        for number, (value, mask) in enumerate(pairs)
        if mask
    ]
