"""Opening sockets in another network namespace, without a process there.

A network namespace belongs to a thread. A thread made for nothing else enters the namespace, opens the socket, and
ends; the socket stays where it was opened, and no other thread of this program ever leaves its own namespace.
"""

import ctypes
import os
import socket
from concurrent.futures import Future
from pathlib import Path
from threading import Thread

_CLONE_NEWNET = 0x40000000


def open_socket(namespace: Path, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket inside `namespace`, which is a file such as `/proc/PID/ns/net`."""
    result: Future[socket.socket] = Future()
    thread = Thread(target=_open, args=(result, namespace, family, kind, protocol), name="lab-netns")
    thread.start()
    thread.join()
    return result.result()


def _open(result: "Future[socket.socket]", namespace: Path, family: int, kind: int, protocol: int) -> None:
    try:
        _enter(namespace)
        result.set_result(socket.socket(family, kind, protocol))
    except BaseException as error:  # noqa: BLE001  handed to the thread that waits
        result.set_exception(error)


def _enter(namespace: Path) -> None:
    # os.setns came with Python 3.12.
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(namespace))
    finally:
        os.close(descriptor)
