"""Asks the kernel for the sockets that wait, in this thread's network namespace."""

import errno
import socket
from collections.abc import Iterable
from typing import Final

from fwdaemon.errors import KernelError
from fwdaemon.model import Family, Protocol
from fwdaemon.netlink import Message
from fwdaemon.netlink_socket import NetlinkSocket, RefusalError
from fwdaemon.sockets import diag
from fwdaemon.sockets.model import Listener

_SOCK_DIAG: Final = 4  # NETLINK_SOCK_DIAG, linux/netlink.h


def listeners() -> list[Listener]:
    """List the sockets that wait for TCP, UDP or SCTP; a kernel without one of these has none of it.

    Raises:
        KernelError: the kernel does not tell.

    """
    devices = dict(socket.if_nameindex())
    try:
        with NetlinkSocket(_SOCK_DIAG) as asking:
            return [
                diag.read(protocol, message.body, devices)
                for protocol in Protocol
                for family in Family
                for message in _answers(asking, diag.request(protocol, family))
            ]
    except OSError as error:
        raise KernelError(f"the kernel does not tell which sockets listen: {error}") from error


def _answers(asking: NetlinkSocket, body: bytes) -> Iterable[Message]:
    try:
        return asking.listing(diag.BY_FAMILY, body).messages
    except RefusalError as error:
        if error.errno != errno.ENOENT:  # the kernel knows no such protocol
            raise
        return ()
