"""A socket on which the kernel sends news, read by the asyncio loop."""

import asyncio
import socket
from collections.abc import Callable


class Subscription:
    """Opens a non-blocking socket, and has it read on the loop's thread whenever something is there."""

    def __init__(self, opened: Callable[[], socket.socket], read: Callable[[socket.socket], None]) -> None:
        self._opened = opened
        self._read = read
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Begin to listen, in the network namespace of this thread.

        Raises:
            OSError: the kernel refused.

        """
        self._socket = self._opened()
        asyncio.get_running_loop().add_reader(self._socket, self._read, self._socket)

    def close(self) -> None:
        """Stop listening; does nothing if not listening."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
