"""Asks bridges for guests whose address is not known otherwise."""

import asyncio
import logging
import select
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Final, TypeAlias

from fwdaemon.audit.throttle import WarnOnce
from fwdaemon.core.inventory import Inventory
from fwdaemon.core.state import Silent
from fwdaemon.core.text import shown
from fwdaemon.core.types import Family, Job, Subnet
from fwdaemon.errors import KernelError, PortfwdError, shortage
from fwdaemon.kernel import packets as arp
from fwdaemon.kernel import packets as kernel_packets
from fwdaemon.kernel.packets import ETHERNET, Field
from fwdaemon.kernel.process import Worker
from fwdaemon.kernel.rtnetlink import RefusedError, Rtnetlink, interface_index
from fwdaemon.kernel.rtnl_links import KernelNeighbour, introduce
from fwdaemon.resolve.neighbours import Answer, Question, credible, questions
from fwdaemon.triggers import Backoff, Budget

# Asks the nodes on a bridge for addresses, and takes in who answers, on raw sockets of its own.
#
# The kernel's neighbour table is not used for it: to ask for a thousand addresses would fill it with entries that fail.
# Those that answered are handed to the kernel, which asks them once more and knows them from then on.
_log = logging.getLogger(__name__)

_ETH_P_ARP, _ETH_P_IPV6 = 0x0806, 0x86DD
_EVERYBODY = b"\xff" * 6
_LONGEST = 2048
# Ten packets, then a pause: a /24 takes under three seconds, and no link or table of neighbours is filled.
_AT_ONCE: Final = 10
_PAUSE_S: Final = 0.1
# How long the last to be asked may take to answer.
_PATIENCE_S: Final = 1.0
# A flood of answers is not read for longer than this many.
_MOST_ANSWERS: Final = 5000
_FILTERS: Final = {
    _ETH_P_ARP: [[Field(2, arp.OPERATION_AT, arp.REPLY)]],
    _ETH_P_IPV6: [
        [Field(1, arp.NEXT_HEADER_AT, arp.NEXT_HEADER), Field(1, arp.KIND_AT, kind)]
        for kind in (arp.ADVERTISEMENT, arp.ECHO_REPLY)
    ],
}


def ask(guests: Budget, question: Question) -> tuple[Answer, ...]:
    """Ask, and have the kernel know those guests that answered; gives them. Blocks for some seconds.

    What it costs is taken from `guests`; while there is nothing left, no answer is read. Where the bridge is gone, or
    has no MAC addresses, no machine answers.
    """
    try:
        answers = tuple(credible(question, tuple(_answers(guests, question))))
        _introduce(question.bridge, answers)
    except (OSError, KernelError) as error:
        _log.debug("cannot probe guests on %s: %s", shown(question.bridge), error)
        return ()
    return answers


def _answers(guests: Budget, question: Question) -> Iterator[Answer]:
    protocol = _ETH_P_ARP if isinstance(question.source, IPv4Address) else _ETH_P_IPV6
    with ExitStack() as at_end:
        link = at_end.enter_context(_opened(question.bridge, protocol))
        *_rest, hardware, mac = link.getsockname()
        if hardware != ETHERNET:
            return
        packets = list(_packets(question, mac))
        for start in range(0, len(packets), _AT_ONCE):
            with guests.charged(time.thread_time):
                for destination, packet in packets[start : start + _AT_ONCE]:
                    link.sendto(packet, (question.bridge, protocol, 0, 0, destination))
            yield from heard(guests, link, _PAUSE_S)
        yield from heard(guests, link, _PATIENCE_S)


def _opened(bridge: str, protocol: int) -> socket.socket:
    """Open a socket that gets answers only, and nothing before it is filtered."""
    link = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        kernel_packets.attach(link, _FILTERS[protocol])
        link.bind((bridge, protocol))
    except OSError:
        link.close()
        raise
    return link


def _packets(question: Question, mac: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Give each packet with the MAC address it goes to."""
    source = question.source
    match source:
        case IPv4Address():
            for target in question.targets:
                if isinstance(target, IPv4Address):
                    yield _EVERYBODY, arp.packed(arp.REQUEST, source, mac, target)
        case IPv6Address():
            for target in question.targets:
                if isinstance(target, IPv6Address):
                    group, packet = arp.solicitation(source, mac, target)
                    yield arp.multicast_mac(group), packet
            if question.everybody:
                yield arp.multicast_mac(arp.ALL_NODES), arp.echo_to_all(source)


def heard(
    guests: Budget,
    link: socket.socket,
    seconds: float,
    receive: Callable[[socket.socket], Answer | None] | None = None,
) -> Iterator[Answer]:
    """Give what is answered within a time, as far as guests have some left; the rest stays in the kernel."""
    waiting = select.poll()
    waiting.register(link, select.POLLIN)
    until = time.monotonic() + seconds
    for _ in range(_MOST_ANSWERS):
        with guests.charged(time.thread_time):
            there = waiting.poll(max(until - time.monotonic(), 0) * 1000)
            answer = (receive or _received)(link) if there else None
        if answer is not None:
            yield answer
        if not there:
            return
        if rest := guests.rest():
            left = max(until - time.monotonic(), 0)
            time.sleep(min(rest, left))
            if rest > left:
                return


def _received(link: socket.socket) -> Answer | None:
    try:
        packet, (_interface, protocol, _kind, _hardware, sender) = link.recvfrom(_LONGEST)
    except BlockingIOError:
        return None
    return _read(packet, protocol, sender)


def _read(packet: bytes, protocol: int, sender: bytes) -> Answer | None:
    """Read an answer; one by ARP has to name the MAC address that it comes from."""
    if protocol == _ETH_P_IPV6:
        source = arp.source_of(packet)
        return None if source is None else Answer(sender.hex(":"), source)
    reply = arp.read_reply(packet)
    return Answer(sender.hex(":"), reply.sender) if reply is not None and reply.mac == sender else None


def _introduce(bridge: str, answers: Iterable[Answer]) -> None:
    index = interface_index(bridge)
    if index is None:
        return
    with Rtnetlink() as kernel:
        for answer in answers:
            with suppress(RefusedError):  # the bridge went meanwhile
                introduce(kernel, KernelNeighbour(answer.address, answer.mac, index))


# Has bridges asked, now and then, for guests whose address is not known otherwise; on a thread of its own, one at a
# time.
#
# An entry waits for each of these guests. The pauses grow: a guest that is off the network, or does not answer, costs a
# subnet's worth of packets every quarter of an hour in the end.

_LAST_S: Final = 900.0
_CLOSE_S: Final = 1.0
_UNSEARCHED: Final = "guests that no one names an address of are not searched for"

_Place: TypeAlias = tuple[str, Family, Subnet | None]
Ask = Callable[[Question], tuple[Answer, ...]]


@dataclass(slots=True)
class _Search:
    """The silent guests of one place, and when to ask there next."""

    silent: frozenset[Silent]
    due: float
    pauses: Backoff


class Probes:
    """Used on the asyncio loop's thread; `ask` blocks, and is called on another, once `guests` has some time left.

    `first` is how long a new guest is waited for, in seconds, and the first pause: one that has just started may be
    about to take an address by DHCP.
    """

    def __init__(self, ask: Ask, guests: Budget, first: float = 4.0) -> None:
        self._ask, self._guests = ask, guests
        self._first = first
        self._searches: dict[_Place, _Search] = {}
        self._inventory = Inventory()
        self._changed = asyncio.Event()
        self._worker = Worker("address probes", Job.PROBES)
        self._warning = WarnOnce()
        self._task: asyncio.Task[None] | None = None

    def want(self, silent: Collection[Silent], inventory: Inventory) -> None:
        """Search for these guests from now on, and no others; one that is new at its place is asked for soon."""
        places: defaultdict[_Place, set[Silent]] = defaultdict(set)
        for item in silent:
            places[item.bridge, item.family, item.subnet].add(item)
        before, now = self._searches, asyncio.get_running_loop().time()
        self._searches = {
            place: self._search(before.get(place), frozenset(found), now + self._wait(place))
            for place, found in places.items()
        }
        self._inventory = inventory
        self._changed.set()
        if self._searches and self._task is None:
            self._task = asyncio.create_task(self._ask_forever(), name="address probes")

    async def close(self) -> None:
        """Stop asking; a question that is under way may keep its thread for some seconds."""
        if self._task is None:
            return
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        await self._worker.close(_CLOSE_S)

    async def _ask_forever(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            self._changed.clear()
            search = min(self._searches.values(), key=_due, default=None)
            pause = float("inf") if search is None else max(search.due - clock(), self._guests.rest())
            if search is not None and pause <= 0:
                await self._ask_for(search)
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), None if search is None else pause)

    async def _ask_for(self, search: _Search) -> None:
        try:
            for question in questions(search.silent, self._inventory):
                await self._worker.submit(partial(self._ask, question))
            self._warning.settle(f"over: {_UNSEARCHED}")
        except (PortfwdError, OSError) as error:  # no thread or descriptor is available
            if (short := shortage(error)) is not None:
                self._warning.warn(f"{_UNSEARCHED}: {short}; trying again, less and less often")
            _log.debug("guests are not searched for now: %s", error)
        search.due = asyncio.get_running_loop().time() + search.pauses.next()

    def _wait(self, place: _Place) -> float:
        """Give how long to wait for a guest: not at all where it may have moved here with an address no server gave."""
        _bridge, _family, routed = place
        return self._first if routed is None else 0.0

    def _search(self, before: _Search | None, silent: frozenset[Silent], due: float) -> _Search:
        """Go on with what is known of a place; a guest that is new there is asked for as at first."""
        if before is None:
            return _Search(silent, due, Backoff(self._first, _LAST_S))
        if not silent <= before.silent:
            before.due = min(before.due, due)
            before.pauses.settle()
        before.silent = silent
        return before


def _due(search: _Search) -> float:
    return search.due
