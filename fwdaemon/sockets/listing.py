"""Asks the kernel for the sockets that wait, in this thread's network namespace."""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from itertools import count
from typing import Final

from fwdaemon.errors import KernelError
from fwdaemon.model import Family, Protocol
from fwdaemon.netlink import Message, messages, packed
from fwdaemon.sockets import diag
from fwdaemon.sockets.model import Listener

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG, linux/netlink.h, as are these:
_ERROR, _DONE = 2, 3
_REQUEST_DUMP = 0x301
_NUMBER = struct.Struct("=i")
_BUFFER: Final = 1 << 16
_TIMEOUT: Final = 5.0


def listeners() -> list[Listener]:
    """List the sockets that wait for TCP, UDP or SCTP; a kernel without one of these has none of it.

    Raises:
        KernelError: the kernel does not tell.

    """
    devices, sequences = dict(socket.if_nameindex()), count(1)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG) as asking:
            asking.settimeout(_TIMEOUT)
            return [
                diag.read(protocol, message.body, devices)
                for protocol in Protocol
                for family in Family
                for message in _answers(asking, diag.request(protocol, family), next(sequences))
            ]
    except OSError as error:
        raise KernelError(f"the kernel does not tell which sockets listen: {error}") from error


def _answers(asking: socket.socket, body: bytes, sequence: int) -> Iterator[Message]:
    asking.send(packed(diag.BY_FAMILY, _REQUEST_DUMP, sequence, body))
    while True:
        for message in messages(asking.recv(_BUFFER)):
            if message.kind in (_ERROR, _DONE):
                _raise_if_refused(message)
                return
            yield message


def _raise_if_refused(final: Message) -> None:
    number = -_NUMBER.unpack_from(final.body)[0]
    if number not in (0, errno.ENOENT):  # ENOENT: the kernel knows no such protocol
        raise OSError(number, os.strerror(number))
