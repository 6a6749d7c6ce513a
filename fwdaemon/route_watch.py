"""Hears when somebody changes routes of ours, or takes a link up or down.

The kernel says nothing of IPv4 routes that go with their link, so links are listened to as well. A filter keeps the
rest from us: a router of the Internet changes thousands of routes a minute.
"""

import logging
import socket
import struct
from typing import Final

from fwdaemon.errors import KernelError
from fwdaemon.naming import shown
from fwdaemon.netlink import Message, attributes, messages
from fwdaemon.outcome import RulesChanged
from fwdaemon.rtnetlink.client import is_ours
from fwdaemon.rtnetlink.route import PROTOCOL
from fwdaemon.socket_filter import Field, attach, native
from fwdaemon.subscription import Subscription

_log = logging.getLogger(__name__)

_GROUPS: Final = 0x1 | 0x40 | 0x400  # RTMGRP_LINK, _IPV4_ROUTE, _IPV6_ROUTE
_BUFFER: Final = 1 << 16
_NEW_LINK, _NEW_ROUTE, _DELETED_ROUTE = 16, 24, 25  # RTM_NEWLINK, …
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, which of them changed
_NAME, _MASTER = 3, 10  # IFLA_IFNAME, IFLA_MASTER
_UP = 0x1  # IFF_UP
# Offsets in a message: its type, and of what follows the header, a route's protocol and a link's changes.
_TYPE_AT, _PROTOCOL_AT, _CHANGES_AT = 4, 16 + 5, 16 + 12

_OURS: Final = Field(1, _PROTOCOL_AT, PROTOCOL)
_FILTER: Final = (
    (native(2, _TYPE_AT, _NEW_ROUTE), _OURS),
    (native(2, _TYPE_AT, _DELETED_ROUTE), _OURS),
    (native(2, _TYPE_AT, _NEW_LINK), native(4, _CHANGES_AT, _UP, mask=_UP)),
)


class RouteWatch:
    """Calls `rules_changed` on the asyncio loop's thread with what changed, unless we did it ourselves."""

    def __init__(self, rules_changed: RulesChanged) -> None:
        self._rules_changed = rules_changed
        self._subscription = Subscription(_opened, self._read)

    def start(self) -> None:
        """Begin to listen, in the network namespace of this thread.

        Raises:
            KernelError: the kernel refused.

        """
        try:
            self._subscription.start()
        except OSError as error:
            raise KernelError(f"the kernel does not tell of changes to routes: {error}") from error

    def close(self) -> None:
        """Stop listening; does nothing if not listening."""
        self._subscription.close()

    def _read(self, source: socket.socket) -> None:
        try:
            datagram = source.recv(_BUFFER)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:  # ENOBUFS
            _log.debug("some changes of routes went unheard: %s", error)
            self._rules_changed("somebody, in more changes of routes than could be followed", thorough=True)
            return
        for message in messages(datagram):
            if not is_ours(message) and (meddler := _meddler(message)) is not None:
                self._rules_changed(meddler, thorough=False)


def _opened() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    hearing = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
    try:
        attach(hearing, _FILTER)
        hearing.bind((0, _GROUPS))
    except OSError:
        hearing.close()
        raise
    return hearing


def _meddler(message: Message) -> str | None:
    """Say who did what; the number of a netlink port is, as a rule, that of the process."""
    if message.kind == _NEW_LINK:
        return who_took_link(message.body)
    did = "added" if message.kind == _NEW_ROUTE else "removed"
    return f"somebody who {did} a route (netlink port {message.port})" if message.port else "the kernel itself"


def who_took_link(body: bytes) -> str | None:
    """Say who took a link up or down, unless it is the port of a bridge, as guests are, where there are no routes."""
    *_rest, flags, _changes = _LINK.unpack_from(body)
    found = attributes(body[_LINK.size :])
    if _MASTER in found:
        return None
    name = found.get(_NAME, b"").rstrip(b"\0").decode(errors="replace")
    return f"somebody who took link {shown(name)} {'up' if flags & _UP else 'down'}"
