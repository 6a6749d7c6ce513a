"""Who has an address, who answers for it and who announces it, looked at again and again.

A look takes 20 ms, in which hosts answer by ARP, and what the questions to all others take.
"""

import re
import select
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, Self

from fwdaemon.core.types import Address
from fwdaemon.kernel import packets
from tests.lab.computer import CLIENT4
from tests.lab.netns import open_socket
from tests.lab.pair import addresses_assigned, asking, mac_of
from tests.referee.stage import Stage

_ANSWERS_S: Final = 0.02
_ARP: Final = 0x0806
# How BIRD ends an answer: `0000`, or an error as `8001 Network not found`.
_LAST = re.compile(rb"^(?:0000|[89]\d\d\d) .*\n", re.MULTILINE)
_WAY = re.compile(rb"\[host(\d+) ")


@dataclass(slots=True)
class Seen:
    """What was seen of one address: who had it from when on, as (time, host or None), and what must never be."""

    held: list[tuple[float, int | None]] = field(default_factory=list)
    held_twice: int = 0
    answered_twice: int = 0
    announced_twice: int = 0

    @property
    def holder(self) -> int | None:
        """Who has it now."""
        return self.held[-1][1] if self.held else None

    def unheld(self, since: float) -> float:
        """Give the longest time, of those that have ended since then, for which no host had it."""
        times = zip(self.held, self.held[1:], strict=False)
        return max(
            (end - max(begin, since) for (begin, who), (end, _) in times if who is None and end > since), default=0
        )

    def taken(self, host: int, since: float) -> float | None:
        """Give how many seconds after that this host took it, where it did."""
        return next((at - since for at, who in self.held if who == host and at > since), None)


class Referee:
    """Looks; a context manager. `looks` says how often, `watched` for how long, and `seen` what, by address.

    `gap` is the longest time from one look at who has the addresses to the next. Both times are in seconds.
    """

    def __init__(self, stage: Stage, addresses: Iterable[str]) -> None:
        self.looks, self.watched, self.gap = 0, 0.0, 0.0
        self._names = {IPv4Address(address): address for address in addresses}
        self.seen = {address: Seen() for address in self._names.values()}
        self._asking = [asking(host) for host in stage.hosts]
        self._macs = {mac_of(host): number for number, host in enumerate(stage.hosts)}
        self._link = open_socket(stage.hosts[0].outside.namespace, socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._link.bind(("eth0", _ARP))
        self._mac: bytes = self._link.getsockname()[-1]
        self._router = _Router(stage.place / "router/bird.ctl")
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
        self._router.close()

    @property
    def is_alive(self) -> bool:
        """Whether it still looks."""
        return self._thread.is_alive()

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._over.is_set():
            held, now = self._held(), time.monotonic()
            self.looks, self.watched = self.looks + 1, self.watched + now - last
            self.gap, last = max(self.gap, now - last), now
            for address, name in self._names.items():
                seen, holders = self.seen[name], held[address]
                # One that was there before and still is had it while the others were asked.
                seen.held_twice += len(holders) > 1 and len(holders & self._held()[address]) > 1
                if not seen.held or min(holders, default=None) != seen.holder:
                    seen.held.append((time.monotonic(), min(holders, default=None)))
                seen.announced_twice += len(self._router.ways(name)) > 1
            for address, answered in self._answering().items():
                self.seen[self._names[address]].answered_twice += len(answered) > 1

    def _held(self) -> dict[Address, set[int]]:
        found: dict[Address, set[int]] = {address: set() for address in self._names}
        for number, each in enumerate(self._asking):
            for address in addresses_assigned(each) & found.keys():
                found[address].add(number)
        return found

    def _answering(self) -> dict[IPv4Address, set[int]]:
        """Ask by ARP, and tell which hosts answer until it is time to look again."""
        for address in self._names:
            packet = packets.packed(packets.REQUEST, IPv4Address(CLIENT4), self._mac, address)
            self._link.sendto(packet, ("eth0", _ARP, 0, 0, b"\xff" * 6))
        found: dict[IPv4Address, set[int]] = {address: set() for address in self._names}
        until = time.monotonic() + _ANSWERS_S
        while select.select([self._link], [], [], max(0.0, until - time.monotonic()))[0]:
            answer, (*_, mac) = self._link.recvfrom(2048)
            reply = packets.read_reply(answer)
            if reply is not None and reply.sender in found and mac in self._macs:
                found[reply.sender].add(self._macs[mac])
        return found


class _Router:
    """What the router has heard from hosts, not only what it uses of that; by BIRD's socket for questions."""

    def __init__(self, control: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(str(control))
        self._answer(_LAST_OF_GREETING)

    def ways(self, address: str) -> set[int]:
        """Tell which hosts announce an address."""
        self._socket.sendall(f"show route {address}/32\n".encode())
        return {int(host) for host in _WAY.findall(self._answer(_LAST))}

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _answer(self, last: re.Pattern[bytes]) -> bytes:
        answer = b""
        while not last.search(answer):
            if not (more := self._socket.recv(1 << 16)):
                raise OSError("the router has ended")
            answer += more
        return answer


_LAST_OF_GREETING = re.compile(rb"^0001 .*\n", re.MULTILINE)
