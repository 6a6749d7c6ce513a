"""Listens to the kernel: host addresses and neighbours that came, went or changed.

Only says that it is worth looking again; the facts are read by `fwdaemon.kernel.observe`. Links are not listened to:
libvirt tells of its own at a better moment, when the guest is really there. Most of what the kernel sends here is no
news (a neighbour that goes from reachable to stale, an IPv6 address whose lifetime was renewed, what a bridge learns),
so each message is compared with the last one on the same thing.

Messages are taken apart here and not by pyroute2: we need two attributes each of two fixed structures (rtnetlink(7)),
and decoding the whole of a message costs a hundred times as much.
"""

import errno
import logging
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from ipaddress import ip_address
from typing import Final

from fwdaemon.core.pace import Budget
from fwdaemon.core.report import Reason, ReasonKind, Trigger
from fwdaemon.core.types import Address
from fwdaemon.errors import KernelError
from fwdaemon.kernel.netlink import Subscription, attributes, messages, rtnetlink_socket
from fwdaemon.kernel.rtnl_links import USABLE_STATES

_log = logging.getLogger(__name__)

_GROUPS: Final = 0x4 | 0x10 | 0x100  # RTMGRP_NEIGH, _IPV4_IFADDR, _IPV6_IFADDR
_DATAGRAM_SIZE: Final = 65536
# Datagrams of one turn of the loop, each of which costs as much as reading some.
_AT_ONCE: Final = 64

_ADDRESS: Final = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, index
_NEIGHBOUR: Final = struct.Struct("=BxxxiHBB")  # ndmsg: family, index, state, flags, type

_ADDRESS_CAME, _ADDRESS_WENT = 20, 21  # RTM_NEWADDR, RTM_DELADDR
_NEIGHBOUR_CAME, _NEIGHBOUR_WENT = 28, 29
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NDA_DST, _NDA_LLADDR = 1, 2

_PERMANENT: Final = 0x80  # IFA_F_PERMANENT
_NUD_PROBE: Final = 0x10
_NUD_FAILED: Final = 0x20
_SCOPE_LINK: Final = 253  # RT_SCOPE_LINK
_AF_BRIDGE: Final = 7  # what a bridge says of its ports and of the MAC addresses behind them


class KernelChanges:
    """Tells news from repetition, purely; neighbour entries are news for the MAC addresses of guests only."""

    def __init__(self) -> None:
        self._macs: AbstractSet[str] = frozenset()
        self._configured: AbstractSet[bytes] = frozenset()
        # Configured addresses, each with the guest's MAC address that was asked and did not answer. The set is replaced
        # and never changed, as it is read on another thread.
        self._silent: frozenset[tuple[bytes, bytes]] = frozenset()
        self._addresses: set[tuple[int, bytes]] = set()
        self._neighbours: dict[tuple[int, bytes], bytes] = {}

    def watch_macs(self, macs: AbstractSet[str]) -> None:
        """Say which MAC addresses guests have."""
        self._macs = macs
        self._silent = frozenset(item for item in self._silent if item[1].hex(":") in macs)

    def watch_addresses(self, configured: Iterable[Address]) -> None:
        """Say which addresses the configuration gives to guests."""
        self._configured = {address.packed for address in configured}
        self._silent = frozenset()

    def answers(self, address: Address, mac: str) -> bool:
        """Tell whether a guest may be at its configured address: it has not failed to answer. From any thread."""
        return (address.packed, bytes.fromhex(mac.replace(":", ""))) not in self._silent

    def forget(self) -> None:
        """Messages were lost: anything may be news again."""
        self._addresses.clear()
        self._neighbours.clear()
        self._silent = frozenset()

    def news(self, datagram: bytes) -> Iterator[Reason]:
        """Give a reason for each message of a datagram that is news."""
        for message in messages(datagram):
            kind, body = message.kind, message.body
            if body[:1] == bytes([_AF_BRIDGE]):
                continue
            # What is too short to be either is no news.
            if kind in (_ADDRESS_CAME, _ADDRESS_WENT) and len(body) >= _ADDRESS.size:
                yield from self._address(body, came=kind == _ADDRESS_CAME)
            elif kind in (_NEIGHBOUR_CAME, _NEIGHBOUR_WENT) and len(body) >= _NEIGHBOUR.size:
                yield from self._neighbour(body, came=kind == _NEIGHBOUR_CAME)

    def _address(self, body: bytes, *, came: bool) -> Iterator[Reason]:
        """Link-local addresses are no news: every interface gets one, and nothing is ever forwarded to it.

        One with a lifetime is from a router advertisement or a DHCP server, which any machine on the link can be.
        """
        *_rest, flags, scope, index = _ADDRESS.unpack_from(body)
        found = attributes(body[_ADDRESS.size :])
        address = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS, b"")
        if scope == _SCOPE_LINK or (came and (index, address) in self._addresses):
            return
        if came:
            self._addresses.add((index, address))
        else:
            self._addresses.discard((index, address))
        detail = "appeared" if came else "disappeared"
        yield Reason(ReasonKind.HOST_ADDRESS, _written(address), detail, by_guest=not flags & _PERMANENT)

    def _neighbour(self, body: bytes, *, came: bool) -> Iterator[Reason]:
        """A vanished entry is no news: nobody answering for a while does not mean that the guest moved.

        One that failed, because nobody answered who was asked, is: the guest may have another address by now.
        """
        _family, index, state, _flags, _type = _NEIGHBOUR.unpack_from(body)
        found = attributes(body[_NEIGHBOUR.size :])
        address, mac = found.get(_NDA_DST, b""), found.get(_NDA_LLADDR, b"")
        before = self._neighbours.pop((index, address), b"")
        if came and state & USABLE_STATES:
            self._neighbours[index, address] = mac
            if state != _NUD_PROBE and (address, mac) in self._silent:  # while it is asked, it has not answered
                self._silent -= {(address, mac)}
            if mac != before and not self._macs.isdisjoint((mac.hex(":"), before.hex(":"))):
                yield Reason(ReasonKind.NEIGHBOUR, _written(address), f"answered from {mac.hex(':')}")
        elif came and state & _NUD_FAILED and before.hex(":") in self._macs:
            if address in self._configured:
                self._silent |= {(address, before)}
            yield Reason(ReasonKind.NEIGHBOUR, _written(address), "does not answer")


class NetlinkWatch:
    """Calls `trigger` with a reason, on the loop's thread, when the kernel has news.

    Guests can have it send as many as they like, so reading them takes from `guests`.
    """

    def __init__(self, trigger: Trigger, guests: Budget) -> None:
        self._trigger = trigger
        self._changes = KernelChanges()
        self._subscription = Subscription(lambda: rtnetlink_socket(_GROUPS), self._read)
        self._guests = guests

    def start(self) -> None:
        """Subscribe, in the network namespace of this thread.

        Raises:
            KernelError: the kernel refused.

        """
        try:
            self._subscription.start()
        except OSError as error:
            raise KernelError(f"the kernel does not report changes to addresses: {error}") from error

    def watch_macs(self, macs: AbstractSet[str]) -> None:
        """Say which MAC addresses guests have; those of everybody else are of no interest."""
        self._changes.watch_macs(macs)

    def watch_addresses(self, configured: Iterable[Address]) -> None:
        """Say which addresses the configuration gives to guests, so that `answers` can tell of them."""
        self._changes.watch_addresses(configured)

    def answers(self, address: Address, mac: str) -> bool:
        """Tell whether a guest may be at its configured address: it has not failed to answer. From any thread."""
        return self._changes.answers(address, mac)

    def close(self) -> None:
        """Unsubscribe; does nothing if not subscribed."""
        self._subscription.close()

    def _read(self, source: socket.socket) -> None:
        with self._guests.charged(time.thread_time):
            for _ in range(_AT_ONCE):
                if not self._take(source):
                    break
        if rest := self._guests.rest():
            self._subscription.pause(rest)

    def _take(self, source: socket.socket) -> bool:
        """Take one datagram, and tell whether there may be another."""
        try:
            datagram = source.recv(_DATAGRAM_SIZE)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            _log.debug("netlink messages were lost, so everything is compared")
            self._changes.forget()
            self._trigger(Reason(ReasonKind.ADDRESSES_LOST))
            return True
        for reason in self._changes.news(datagram):
            self._trigger(reason)
        return True


def _written(packed: bytes) -> str:
    """Write an address of 4 or 16 bytes."""
    try:
        return str(ip_address(packed))
    except ValueError:
        return "of an unknown kind"
