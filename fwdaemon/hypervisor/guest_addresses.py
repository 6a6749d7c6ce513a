"""What libvirt does not say of guests' addresses: their agents are asked, and its DHCP servers' files are watched.

A guest agent is asked only while its domain has no address from a better source, one at a time, on a thread of its own:
an agent that hangs costs other agents some seconds, and no one else anything. What it said stands while that run of its
domain lasts, even when the agent goes away, as it does at each of its updates.

dnsmasq's helper replaces /var/lib/libvirt/dnsmasq/BRIDGE.status by rename when a lease comes or goes, and libvirt
writes NETWORK.hostsfile when reservations change. What is in them is libvirt's to tell; here they only say "look
again", where they are news at all. libvirt's *reading* them must not, or every pass would cause the next. The directory
may not be there yet: then the nearest one above it is watched, until it is.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias
from uuid import UUID

import libvirt

from fwdaemon.audit.throttle import WarnOnce
from fwdaemon.core.inventory import AddressSource, LearnedAddress, MacClaim, ObservedDomain
from fwdaemon.core.report import Reason, ReasonKind, Trigger
from fwdaemon.core.text import shown
from fwdaemon.core.types import Job
from fwdaemon.errors import LibvirtUnavailableError, PortfwdError, shortage
from fwdaemon.hypervisor.connection import open_with_keepalive
from fwdaemon.hypervisor.networks import DNSMASQ_DIRECTORY
from fwdaemon.hypervisor.xml import guest_address, normal_mac
from fwdaemon.kernel.memory import have_threads
from fwdaemon.kernel.process import Worker
from fwdaemon.resolve.snapshot import LARGEST, LeaseNews, Leases, read_leases
from fwdaemon.triggers import Backoff, Budget

if TYPE_CHECKING:
    from watchdog.events import FileSystemEvent

_log = logging.getLogger(__name__)

_SETTLED_S: Final = 30.0  # an address may change, and no event says so
_LAST_RETRY_S: Final = 120.0
_CLOSE_S: Final = 1.0


class Agents(Protocol):
    """What can ask a guest agent; both block."""

    def addresses(self, domain: UUID) -> tuple[MacClaim, ...]:
        """Ask. Raises `LibvirtUnavailableError` when there is no answer."""

    def close(self) -> None:
        """Close whatever is open."""


Recall: TypeAlias = Callable[[ObservedDomain], tuple[MacClaim, ...]]


@dataclass(slots=True)
class _Record:
    """What one run of a domain answered, and when to ask it next."""

    domain: ObservedDomain
    retries: Backoff
    due: float
    wanted: bool = False
    claims: tuple[MacClaim, ...] = ()


class AgentRounds:
    """Asks the agents of one connection. `trigger` is called with a reason when an answer differs from the last.

    To ask takes from `guests`, as answers may be long and agents come and go as they like. `recall` gives what an agent
    said to the daemon before: that counts until it answers. One that does not is asked again after `first_retry`
    seconds, and then less and less often.
    """

    def __init__(  # noqa: PLR0913, PLR0917  what it asks, what it calls, and when
        self,
        name: str,
        agents: Agents,
        trigger: Trigger,
        guests: Budget,
        recall: Recall = lambda _seen: (),
        first_retry: float = 2.0,
    ) -> None:
        self._name = name
        self._first_retry = first_retry
        self._recall = recall
        self._agents, self._guests = agents, guests
        self._trigger = trigger
        self._records: dict[UUID, _Record] = {}
        self._changed = asyncio.Event()
        self._worker, self._warning = Worker(f"agents of {name}", Job.AGENTS, name), WarnOnce()
        self._task: asyncio.Task[None] | None = None

    def answers(self) -> dict[UUID, tuple[MacClaim, ...]]:
        """Give what the agents said, by domain."""
        return {uuid: record.claims for uuid, record in self._records.items()}

    def update(self, domains: Iterable[ObservedDomain]) -> None:
        """Learn of the present domains; what those that ended or began anew said is forgotten."""
        before, self._records = self._records, {}
        now = asyncio.get_running_loop().time()
        for seen in domains:
            if seen.instance < 0:
                continue
            record = before.get(seen.domain.uuid)
            if record is None or record.domain.instance != seen.instance:
                retries = Backoff(self._first_retry, _LAST_RETRY_S)
                record = _Record(seen, retries, now, claims=self._recall(seen))
            elif seen.agent_connected and not record.domain.agent_connected:
                # Not ahead of those that wait, or two that hang and return by turns would be the only ones asked.
                record.due = min(record.due, now)
                record.retries.settle()
            record.domain = seen
            self._records[seen.domain.uuid] = record

    def want(self, domains: Iterable[ObservedDomain]) -> None:
        """Ask these from now on, and no others, in the background."""
        wanted = {seen.domain.uuid for seen in domains}
        for uuid, record in self._records.items():
            record.wanted = uuid in wanted
        self._changed.set()
        if wanted and self._task is None:
            self._task = asyncio.create_task(self._ask_forever(), name=f"agents of {self._name}")

    async def close(self) -> None:
        """Stop asking. An agent that hangs at this moment may keep its thread for its last 5 s."""
        if self._task is None:
            return
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        closed = self._worker.submit(self._agents.close)
        await self._worker.close(_CLOSE_S)
        closed.cancel()

    async def _ask_forever(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            self._changed.clear()
            record = min((item for item in self._records.values() if item.wanted), key=attrgetter("due"), default=None)
            pause = float("inf") if record is None else max(record.due - clock(), self._guests.rest())
            if record is not None and pause <= 0:
                await self._ask(record)
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), None if record is None else pause)

    async def _ask(self, record: _Record) -> None:
        domain = record.domain.domain
        claims: tuple[MacClaim, ...] = ()
        try:
            claims = await self._worker.submit(partial(self._answer, domain.uuid))
        except PortfwdError as error:  # no thread is available, either
            if (short := shortage(error)) is not None:
                self._warning.warn(f"guest agents are not asked: {short}; trying again, less and less often")
            _log.debug("domain %s: %s", shown(domain.name), error)
        now = asyncio.get_running_loop().time()
        if not claims:
            record.due = now + record.retries.next()
            return
        self._warning.settle("guest agents are asked again")
        record.due = now + _SETTLED_S
        record.retries.settle()
        # What was known first comes first: of addresses as good, a guest is reached at the one it has had for longer.
        claims = tuple(dict.fromkeys([*(claim for claim in record.claims if claim in claims), *claims]))
        if claims != record.claims:
            record.claims = claims
            self._trigger(Reason(ReasonKind.AGENT, domain.name))

    def _answer(self, domain: UUID) -> tuple[MacClaim, ...]:
        with self._guests.charged(time.thread_time):
            return self._agents.addresses(domain)


# Asks the agents inside guests for their addresses, on a connection of its own.
#
# An agent is a program of the guest and may never answer. Here that delays other agents alone, each for 5 s at most.
#
# The time limit is libvirt's own (virDomainAgentSetResponseTimeout). It is a property of the domain, seen by every
# client, so it is set back to libvirt's default, no limit, right after the question: a backup that freezes file systems
# through the agent may take its time. libvirt cannot tell what the limit was before.
_TIMEOUT_S = 5
MAX_ADDRESSES = 64


class AgentConnection:
    """Use it from one thread at a time; it opens itself at the first question."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._connection: libvirt.virConnect | None = None

    def addresses(self, domain: UUID) -> tuple[MacClaim, ...]:
        """Ask a domain's agent.

        Raises:
            LibvirtUnavailableError: the agent, or libvirt, did not answer.

        """
        try:
            return self._ask(self._open().lookupByUUID(domain.bytes))
        except libvirt.libvirtError as error:
            if self._connection is not None and not self._connection.isAlive():
                self.close()
            raise LibvirtUnavailableError(f"the guest agent did not answer: {error}") from error

    def close(self) -> None:
        """Close; does nothing if it is closed already."""
        if self._connection is not None:
            with suppress(libvirt.libvirtError):
                self._connection.close()
        self._connection = None

    def _open(self) -> libvirt.virConnect:
        if self._connection is None:
            self._connection = open_with_keepalive(self._uri)
        return self._connection

    def _ask(self, domain: libvirt.virDomain) -> tuple[MacClaim, ...]:
        domain.agentSetResponseTimeout(_TIMEOUT_S)
        try:
            answer: Any = domain.interfaceAddresses(libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT)
        finally:
            with suppress(libvirt.libvirtError):
                domain.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK)
        return agent_claims(answer)


def agent_claims(answer: dict[str, dict[str, Any]]) -> tuple[MacClaim, ...]:
    """Read the answer, of which every word is the guest's: at most 64 addresses, and nothing that is none."""
    claims = {
        MacClaim(mac, LearnedAddress(address, AddressSource.AGENT))
        for interface in answer.values()
        if (mac := normal_mac(interface.get("hwaddr"))) is not None
        for entry in interface.get("addrs") or ()
        if (address := guest_address(entry.get("addr"))) is not None
    }
    ordered = sorted(claims, key=lambda claim: (claim.mac, claim.learned.address.version, claim.learned.address.packed))
    return tuple(ordered[:MAX_ADDRESSES])


# The files of libvirt's DHCP servers.

_CHANGES: Final = frozenset({"created", "modified", "moved", "deleted"})
_LEASES: Final = ".status"
_REASONS: Final = {".hostsfile": ReasonKind.RESERVATIONS}
# Up to its version 6, watchdog remembers each rename for as long as it watches: it starts over after so many changes.
_RENEWED_AFTER: Final = 256
# What one event takes, at most, in watchdog's threads and in ours. Guests can ask for as many leases as they like, and
# each is several events.
_COSTS_S: Final = 0.00015
# To watch anew costs as much as some events.
_REST_S: Final = 1.0
# How soon it is tried again where nothing can be watched, doubled each time up to the second figure.
_AGAIN_S, _AGAIN_AT_MOST_S = 1.0, 30.0
# What an emitter logs as an error when it is stopped between two reads, as each is that we unschedule.
_STOPPED: Final = "called when the thread is inactive"


class LeaseWatch:
    """Calls `trigger` with a reason, on the loop's thread, when leases or reservations change.

    watchdog's threads live from `start` to `close`. What they take is taken from `guests`; `news` tells what is news.
    """

    def __init__(self, trigger: Trigger, guests: Budget, directory: Path = DNSMASQ_DIRECTORY) -> None:
        self._trigger, self._guests = trigger, guests
        self._directory = directory
        self._observer: Any = None  # watchdog's Observer is a variable, not a type
        self._watched: Path | None = None
        self.news = LeaseNews(time.monotonic)
        self._received = 0
        self._resting: asyncio.TimerHandle | None = None
        self._warning, self._pauses = WarnOnce(), Backoff(_AGAIN_S, _AGAIN_AT_MOST_S)

    def start(self) -> None:
        """Watch. Where that cannot be done, it says so once, and tries again, less and less often."""
        logging.getLogger("watchdog.observers.inotify").addFilter(_is_news)
        self._loop = asyncio.get_running_loop()
        self._begin()

    def close(self) -> None:
        """Stop watchdog's threads and wait for their end."""
        if self._resting is not None:
            self._resting.cancel()
        if self._observer is not None and self._observer.is_alive():
            self._observer.stop()
            self._observer.join()
        self._observer = None

    def follow(self, guests: AbstractSet[str], awaited: AbstractSet[str]) -> None:
        """Take what an inventory found, and tell of what changed meanwhile for guests that it was the first to see."""
        for bridge, kind in self.news.follow(guests, awaited):
            self._trigger(Reason(kind, bridge))

    def dispatch(self, event: "FileSystemEvent") -> None:
        """Take an event on watchdog's thread; this is all that watchdog asks of a handler."""
        if event.event_type in _CHANGES:
            # Only a move had a destination before watchdog 4.
            path, began = Path(os.fsdecode(getattr(event, "dest_path", "") or event.src_path)), time.thread_time()
            leases = read_leases(_content(path)) if path.suffix == _LEASES else None
            self._loop.call_soon_threadsafe(self._changed, path, leases, time.thread_time() - began)

    def _changed(self, path: Path, leases: Leases | None, cost: float) -> None:
        self._guests.spent(_COSTS_S + cost)
        if self._observer is None or self._resting is not None:
            return
        if path.parent == self._directory:
            kind = self.news.kind(path.stem, leases) if path.suffix == _LEASES else _REASONS.get(path.suffix)
            if kind is not None:
                self._trigger(Reason(kind, path.stem))
        elif self._aim() and self._watched == self._directory:
            self._trigger(Reason(ReasonKind.LEASE_DIRECTORY, str(self._directory)))
        self._received += 1
        if rest := self._guests.rest():
            self._rest(max(rest, _REST_S))
        elif self._received >= _RENEWED_AFTER:
            self._renew()

    def _rest(self, seconds: float) -> None:
        self._observer.unschedule_all()
        self._resting = self._loop.call_later(seconds, self._renew)

    def _renew(self) -> None:
        """Watch anew. What changes between the two watches is heard by neither."""
        with self._guests.charged(time.thread_time):
            begun = self._begin()
        if begun:
            self._trigger(Reason(ReasonKind.LEASES_WATCHED))

    def _begin(self) -> bool:
        self._resting = None
        self._received, self._watched = 0, None
        return self._aim()

    def _aim(self) -> bool:
        """Watch the directory, or the nearest above it; whether that changed."""
        try:
            if self._observer is None:
                self._observer = _started_observer()
            moved = self._aimed()
        except (OSError, RuntimeError) as error:  # no watch, descriptor or thread is available
            self._later(error)
            return False
        self._warning.settle(f"{self._directory} is watched again")
        self._pauses.settle()
        return moved

    def _later(self, error: OSError | RuntimeError) -> None:
        self._warning.warn(
            f"DHCP leases are noticed with delay, as {self._directory} cannot be watched, trying again: {error}"
        )
        if self._observer is not None:
            self._observer.unschedule_all()
        self._resting = self._loop.call_later(self._pauses.next(), self._renew)

    def _aimed(self) -> bool:
        """Repeat until nothing more appears."""
        moved = False
        while (nearest := self._nearest()) != self._watched:
            self._observer.unschedule_all()
            have_threads(2)  # which a watch takes; where one cannot start, watchdog 6.0 loses its descriptors
            self._observer.schedule(self, str(nearest), recursive=False)
            self._watched, moved = nearest, True
        return moved

    def _nearest(self) -> Path:
        return next(path for path in (self._directory, *self._directory.parents) if path.is_dir())


def _content(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST + 1)
    except OSError:  # it has gone
        return None


def _started_observer() -> Any:
    """Make one and start it: from Python 3.13 on, one that could not be started never can."""
    from watchdog.observers import Observer  # noqa: PLC0415 - only `run` needs it

    observer = Observer()  # from watchdog 6 on, this starts a thread already
    observer.start()
    return observer


def _is_news(record: logging.LogRecord) -> bool:
    """Whether something that watchdog logs is worth a line."""
    return _STOPPED not in record.getMessage()
