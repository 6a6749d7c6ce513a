"""Who has an address, and who answers for it, looked at every 20 ms."""

import select
import socket
import threading
import time
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Self

from fwdaemon.kernel import packets
from tests.lab.netns import open_socket
from tests.lab.pair import addresses_held, asking, mac_of
from tests.referee.stage import Stage

_EVERY_S = 0.02
_ARP = 0x0806
_CLIENT = IPv4Address("198.51.100.2")


@dataclass(slots=True)
class Seen:
    """What was seen: how often, and what must never be. `since` is when the present holder was seen first."""

    looks: int = 0
    held_twice: int = 0
    answered_twice: int = 0
    holder: int | None = None
    since: float = 0.0
    gap_began: float = field(default_factory=time.monotonic)
    gaps: list[float] = field(default_factory=list)


class Referee:
    """Looks; a context manager."""

    def __init__(self, stage: Stage, address: str) -> None:
        self.seen, self._address = Seen(), IPv4Address(address)
        self._asking = [asking(host) for host in stage.hosts]
        self._macs = {mac_of(host): number for number, host in enumerate(stage.hosts)}
        self._link = open_socket(stage.hosts[0].outside.namespace, socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._link.bind(("eth0", _ARP))
        self._mac: bytes = self._link.getsockname()[-1]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="referee", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        self._thread.join(30)
        for each in (*self._asking, self._link):
            each.close()

    @property
    def is_alive(self) -> bool:
        """Whether it still looks."""
        return self._thread.is_alive()

    def _watch(self) -> None:
        while not self._over.is_set():
            before = self._holders()
            # One that was there before and still is had it while the others were asked.
            both = before & self._holders()
            self.seen.looks += 1
            self.seen.held_twice += len(both) > 1
            self._note(min(before, default=None))
            self.seen.answered_twice += len(self._answering()) > 1

    def _holders(self) -> set[int]:
        return {number for number, each in enumerate(self._asking) if self._address in addresses_held(each)}

    def _note(self, holder: int | None) -> None:
        seen, now = self.seen, time.monotonic()
        if holder == seen.holder:
            return
        if holder is None:
            seen.gap_began = now
        elif seen.holder is None:
            seen.gaps.append(now - seen.gap_began)
        seen.holder, seen.since = holder, now

    def _answering(self) -> set[int]:
        """Ask by ARP, and tell which hosts answer until it is time to look again."""
        packet = packets.packed(packets.REQUEST, _CLIENT, self._mac, self._address)
        self._link.sendto(packet, ("eth0", _ARP, 0, 0, b"\xff" * 6))
        found, until = set[int](), time.monotonic() + _EVERY_S
        while select.select([self._link], [], [], max(0.0, until - time.monotonic()))[0]:
            answer, (*_, mac) = self._link.recvfrom(2048)
            reply = packets.read_reply(answer)
            if reply is not None and reply.sender == self._address and mac in self._macs:
                found.add(self._macs[mac])
        return found
