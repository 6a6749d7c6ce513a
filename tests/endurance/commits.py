"""Hears when anything was committed to nftables on a host, so that a healed wipe is seen at once."""

import errno
import select
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.chaos.listing import NFT
from tests.lab.host import Host
from tests.lab.netns import open_socket
from tests.lab.release import LibvirtFirewall

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
_NETLINK_NETFILTER = 12
_NFNLGRP_NFTABLES = 7
_NEWGEN = 10 << 8 | 15
_OWN_PROGRAM = Path(NFT).name.encode()
_BUFFER = 1 << 16
# News may be lost; and the legacy tables send none.
_PATIENCE_S, _PATIENCE_LEGACY_S = 0.2, 0.01


class Commits:
    """A socket in the host's network namespace."""

    def __init__(self, host: Host) -> None:
        self._socket = open_socket(host.place.namespace, socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        self._socket.settimeout(0)
        legacy = host.flavour.firewall is LibvirtFirewall.LEGACY
        self._patience_s = _PATIENCE_LEGACY_S if legacy else _PATIENCE_S
        self._socket.bind((0, 1 << (_NFNLGRP_NFTABLES - 1)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def wait(self) -> float:
        """Wait for a commit that is none of the lab's own, or for a moment; when that was, by `time.monotonic`."""
        deadline = time.monotonic() + self._patience_s
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self._socket], [], [], left)[0] and any(map(_is_of_others, self._waiting())):
                break
        return time.monotonic()

    def forget(self) -> None:
        """Drop what was heard so far."""
        for _ in self._waiting():
            pass

    def _waiting(self) -> Iterator[bytes]:
        while True:
            try:
                yield self._socket.recv(_BUFFER)
            except BlockingIOError:
                return
            except OSError as error:
                # More was committed than fits; the last is still to come.
                if error.errno != errno.ENOBUFS:
                    raise


def _is_of_others(datagram: bytes) -> bool:
    """Whether it reports a new generation, which comes with the name of the process."""
    kind = int.from_bytes(datagram[4:6], sys.byteorder)
    return kind == _NEWGEN and _OWN_PROGRAM not in datagram
