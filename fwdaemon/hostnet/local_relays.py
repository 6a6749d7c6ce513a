"""Relays connections and datagrams of this host to guests, for the loopback addresses."""

import asyncio
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, TypeAlias

from fwdaemon.audit.throttle import WarnOnce
from fwdaemon.core.admission import Gatekeeper
from fwdaemon.core.exposures import Forward
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Address, Family, Protocol, Subnet
from fwdaemon.errors import shortage
from fwdaemon.triggers import Backoff, Budget

# How many connections may be open at once, over all places.


class Allowance:
    """Counts them."""

    def __init__(self, most: int) -> None:
        self._left = most

    def take(self) -> bool:
        """Take one, unless there are none left."""
        if self._left <= 0:
            return False
        self._left -= 1
        return True

    def give_back(self) -> None:
        """Give one back."""
        self._left += 1


class Want:
    """Reports that no descriptor is left for who connects: once what comes of it, and once when it is over."""

    def __init__(self, comes_of_it: str) -> None:
        self._comes_of_it = comes_of_it
        self._warning = WarnOnce()

    def felt(self, error: OSError) -> None:
        """Note that something failed; only where that is for want of something."""
        if (short := shortage(error)) is not None:
            self._warning.warn(f"{self._comes_of_it}: {short}")

    def over(self) -> None:
        """Note that there is room again."""
        self._warning.settle(f"over: {self._comes_of_it}")


# Which ports of 127.0.0.1 and ::1 lead to which guest. Pure.
LOOPBACK: Final[Mapping[Family, Address]] = {Family.IPV4: IPv4Address("127.0.0.1"), Family.IPV6: IPv6Address("::1")}
# SCTP has associations with several addresses, which a relay of bytes cannot carry.
_CARRIED: Final = (Protocol.TCP, Protocol.UDP)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to listen, on the loopback address of a family."""

    protocol: Protocol
    family: Family
    port: int

    @property
    def address(self) -> str:
        """The address to listen on."""
        return str(LOOPBACK[self.family])


@dataclass(frozen=True, slots=True)
class Duty:
    """Where what comes to a place goes, and the forward that says so."""

    target: str
    port: int
    forward: Forward = field(compare=False)
    sources: tuple[Subnet, ...] = ()

    def admits(self, client: str) -> bool:
        """Whether a program of the host that connects from this address may."""
        return not self.sources or any(ip_address(client) in source for source in self.sources)


def duties(desired: Desired) -> dict[Endpoint, Duty]:
    """Give what is to be answered: forwards on every address and by every interface whose sources hold the host."""
    if not desired.localhost:
        return {}
    refusal = (desired.gatekeeper() or Gatekeeper()).refusal  # it is not counted how often the host itself connects
    every = filter(answers, desired.forwards)
    answering = [forward for forward in every if not refusal(forward.admission, LOOPBACK[forward.family])]
    # Those for some sources go before those for anyone, of which no two claim one place.
    narrow = sorted((forward for forward in answering if forward.sources), key=_by_owner)
    ordered = (*(forward for forward in answering if not forward.sources), *narrow)
    return dict(duty for forward in ordered for duty in _duties_of(forward))


def answers(forward: Forward) -> bool:
    """Whether a forward is for what the host itself sends to its loopback address."""
    if forward.listen is not None or forward.interface is not None or forward.protocol not in _CARRIED:
        return False
    return not forward.sources or any(LOOPBACK[forward.family] in source for source in forward.sources)


def _by_owner(forward: Forward) -> tuple[str, str]:
    return forward.domain, str(forward.target)


def _duties_of(forward: Forward) -> Iterator[tuple[Endpoint, Duty]]:
    target = str(forward.target)
    for port in forward.ports:
        duty = Duty(target, port + forward.shift, forward, forward.sources)
        yield Endpoint(forward.protocol, forward.family, port), duty


# Carries TCP connections from a loopback address to a guest.
_BACKLOG: Final = 128
_AT_ONCE: Final = 64 * 1024
_CONNECT_S: Final = 10.0
# Where descriptors run out, clients wait this long in the kernel's queue, and twice as long each time.
_PAUSE_S, _PAUSE_AT_MOST_S = 0.5, 8.0
_RESET: Final = struct.pack("ii", 1, 0)  # struct linger: the other end sees a reset, and not an end


class TcpRelay:
    """Listens at one place, and carries what comes there until it is closed. Make it on the loop's thread.

    Raises:
        OSError: the place is taken, or there is no such address.

    """

    def __init__(self, endpoint: Endpoint, duty: Duty, allowance: Allowance, want: Want) -> None:
        self._duty, self._want = duty, want
        self._pauses = Backoff(_PAUSE_S, _PAUSE_AT_MOST_S)
        self._allowance = allowance
        self._loop = asyncio.get_running_loop()
        self._open: set[asyncio.Task[None]] = set()
        self._listening = bound(endpoint, socket.SOCK_STREAM)
        try:
            self._listening.listen(_BACKLOG)
        except OSError:
            self._listening.close()
            raise
        self._resume()

    def close(self) -> list[asyncio.Task[None]]:
        """Stop listening and end all connections; those that are still ending are given."""
        self._loop.remove_reader(self._listening)
        self._listening.close()
        for task in self._open:
            task.cancel()
        return list(self._open)

    def _resume(self) -> None:
        if self._listening.fileno() >= 0:
            self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        try:
            client, address = self._listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:  # no descriptor is left
            self._want.felt(error)
            self._loop.remove_reader(self._listening)
            self._loop.call_later(self._pauses.next(), self._resume)
            return
        self._pauses.settle()
        if not self._duty.admits(address[0]) or not self._allowance.take():
            _reset(client)
            return
        task = self._loop.create_task(self._carry(client))
        self._open.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        self._allowance.give_back()

    async def _carry(self, client: socket.socket) -> None:
        """Carry one connection; an error on either side, or our own end, is a reset for both."""
        guest: socket.socket | None = None
        try:
            guest = await self._connected()
            self._want.over()
            client.setblocking(False)  # noqa: FBT003  the method takes no keyword
            for end in (client, guest):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(client, guest))
                both.create_task(self._pump(guest, client))
        except OSError as error:  # of the guest, which refuses or is silent
            self._want.felt(error)
            _reset(client, guest)
        except ExceptionGroup as group:
            _reset(client, guest)
            if (mistakes := group.split(OSError)[1]) is not None:
                raise mistakes from group
        except asyncio.CancelledError:
            _reset(client, guest)
            raise
        else:
            client.close()
            guest.close()

    async def _connected(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._duty.target else socket.AF_INET
        guest = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            async with asyncio.timeout(_CONNECT_S):
                await self._loop.sock_connect(guest, (self._duty.target, self._duty.port))
        except BaseException:
            guest.close()
            raise
        return guest

    async def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        while data := await self._loop.sock_recv(source, _AT_ONCE):
            await self._loop.sock_sendall(sink, data)
        with suppress(OSError):  # it has ended already
            sink.shutdown(socket.SHUT_WR)


def bound(endpoint: Endpoint, kind: int) -> socket.socket:
    """Open a socket at a place; only what the host itself sends gets there, whatever is routed."""
    family = endpoint.family.domain
    opened = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        if kind == socket.SOCK_STREAM:  # what is left of connections that ended does not listen
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind((endpoint.address, endpoint.port))
    except OSError:
        opened.close()
        raise
    return opened


def _reset(*ends: socket.socket | None) -> None:
    for end in ends:
        if end is not None:
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.close()


# Carries UDP datagrams from a loopback address to a guest, and back.
_LONGEST: Final = 65_535
_UDP_AT_ONCE: Final = 64
# As long as the kernel remembers a stream of datagrams (nf_conntrack_udp_timeout_stream). Only the client's count: what
# a guest sends would keep a conversation for ever.
_IDLE_S: Final = 120.0
# What a guest sends to a client that has been silent for longer takes from the budget of all that guests cause.
_ASKED_FOR_S: Final = 2.0

_Client: TypeAlias = tuple[str, int]


class UdpRelay:
    """Listens at one place; each client has a socket of its own towards the guest, until it is silent for a while.

    What `guests` send unasked takes from their budget.

    Raises:
        OSError: the place is taken, or there is no such address.

    """

    def __init__(self, endpoint: Endpoint, duty: Duty, allowance: Allowance, guests: Budget, want: Want) -> None:
        self.guests = guests
        self._duty, self._want = duty, want
        self._allowance = allowance
        self._loop = asyncio.get_running_loop()
        self._clients: dict[_Client, _Conversation] = {}
        self._listening = bound(endpoint, socket.SOCK_DGRAM)
        self._loop.add_reader(self._listening, self._read)

    def close(self) -> list[asyncio.Task[None]]:
        """Stop listening and forget all clients, at once."""
        self._loop.remove_reader(self._listening)
        for client in list(self._clients):
            self._forget(client)
        self._listening.close()
        return []

    def _read(self) -> None:
        with _what_is_there():
            for _ in range(_UDP_AT_ONCE):
                data, sender = self._listening.recvfrom(_LONGEST)
                client = sender[:2]
                conversation = self._clients.get(client) or self._begun(client)
                if conversation is not None:
                    conversation.send(data)

    def _begun(self, client: _Client) -> "_Conversation | None":
        if not self._duty.admits(client[0]) or not self._allowance.take():
            return None
        try:
            begun = _Conversation(self, client, self._duty)
        except OSError as error:
            self._want.felt(error)
            self._allowance.give_back()
            return None
        self._want.over()
        self._clients[client] = begun
        self._watch(client)
        return begun

    def _watch(self, client: _Client) -> None:
        """Forget a client once it has been silent for long enough."""
        conversation = self._clients.get(client)
        if conversation is None:
            return
        if (left := conversation.active_at + _IDLE_S - self._loop.time()) <= 0:
            self._forget(client)
        else:
            conversation.timer = self._loop.call_later(left, self._watch, client)

    def _forget(self, client: _Client) -> None:
        self._clients.pop(client).close()
        self._allowance.give_back()

    def answer(self, client: _Client, data: bytes) -> None:
        """Send a client what the guest said."""
        with _what_is_there():
            self._listening.sendto(data, client)


class _Conversation:
    """One client's socket towards the guest."""

    def __init__(self, relay: UdpRelay, client: _Client, duty: Duty) -> None:
        self._relay = relay
        self._client = client
        self._loop = asyncio.get_running_loop()
        self.active_at = self._loop.time()
        self.timer: asyncio.TimerHandle | None = None
        self._rest: asyncio.TimerHandle | None = None
        family = socket.AF_INET6 if ":" in duty.target else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect((duty.target, duty.port))
        except OSError:
            self._socket.close()
            raise
        self._resume()

    def send(self, data: bytes) -> None:
        self.active_at = self._loop.time()
        if self._rest is not None:  # the answer is asked for
            self._rest.cancel()
            self._resume()
        with _what_is_there():
            self._socket.send(data)

    def close(self) -> None:
        for timer in (self.timer, self._rest):
            if timer is not None:
                timer.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _resume(self) -> None:
        self._rest = None
        self._loop.add_reader(self._socket, self._receive)

    def _receive(self) -> None:
        """Pass on what the guest says; without a request, no more than the budget allows. The kernel drops the rest."""
        unasked = self._loop.time() > self.active_at + _ASKED_FOR_S
        with self._relay.guests.charged(time.thread_time, enabled=unasked):
            self._pass_on()
        if unasked and (rest := self._relay.guests.rest()):
            self._loop.remove_reader(self._socket)
            self._rest = self._loop.call_later(rest, self._resume)

    def _pass_on(self) -> None:
        with _what_is_there():
            for _ in range(_UDP_AT_ONCE):
                self._relay.answer(self._client, self._socket.recv(_LONGEST))


@contextmanager
def _what_is_there() -> Iterator[None]:
    """Take what there is: a datagram may be lost, and an error is one that the other end sent."""
    try:
        yield
    except OSError:
        return
