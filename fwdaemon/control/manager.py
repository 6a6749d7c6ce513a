"""The methods of `kvm.portfwd.Manager`.

A status is made only on request, in a thread of its own, from references to what never changes: so neither the loop nor
a reconcile waits for it. Clients that ask at the same time share one. It always has the latest changes; its figures may
be a second old, or more where there is much to count.
"""

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from fwdaemon.audit import lines
from fwdaemon.audit.causes import format_cause
from fwdaemon.control.listener import Peer
from fwdaemon.control.protocol import (
    CONFIGURATION_REFUSED,
    MANAGER,
    METRICS_UNAVAILABLE,
    REFUSED,
    CallError,
    Method,
    Parameters,
    Send,
    Service,
    encoded,
    read_reply,
)
from fwdaemon.core.report import Change, Fault, FaultKind
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Job, Origin
from fwdaemon.errors import KernelError, PortfwdError
from fwdaemon.hypervisor.link import ConnectionState
from fwdaemon.kernel.memory import give_back
from fwdaemon.kernel.process import Companion, Worker
from fwdaemon.resolve.wishes import Unavailable
from fwdaemon.status.confirming import CONFIRM_S, Standing
from fwdaemon.status.model import LibvirtState, Row, Status, counts, problem_as_json, time_as_json
from fwdaemon.status.records import Feed, Records, Subscription
from fwdaemon.status.reloads import Reloaded, Reloads
from fwdaemon.status.rows import Facts, Readings, rows
from fwdaemon.status.temporary import DEFAULT_S, OPEN_S, DeclinedError, Wish

_log = logging.getLogger(__name__)

# How long a status is good for: a second, or so many times as long as it took to make it. So clients that ask all the
# time cost us a fifth of a processor at most.
_FRESH_S: Final = 1.0
_REST: Final = 4
# How long one is kept in any case.
_KEPT_S: Final = 5.0
# Changes within so many seconds are sent to watching clients together.
_BURST_S: Final = 0.1
_CLOSE_S: Final = 2.0

Connections = tuple[LibvirtState, ...]


@dataclass(frozen=True, slots=True)
class _Made:
    """A status that is being made or was, of what was known then."""

    known: tuple[int, Connections]
    at: float
    encoded: "asyncio.Future[bytes]"


@dataclass(frozen=True, slots=True)
class Inquiries:
    """What a manager asks: how libvirt is, to have the configuration read again or changed, and for figures.

    `count` reads those of what the kernel holds; it may take its time, in a thread of its own, and is waited for so
    many seconds: the counters of ten thousand forwards take less, and without them a status is still worth having.
    Watching clients see a change of a connection to libvirt within `libvirt_period` seconds: it is polled.
    """

    connections: Callable[[], tuple[ConnectionState, ...]]
    reload: Callable[[int | None], Awaitable[Reloaded]]
    count: Callable[[Desired], Readings]
    count_patience: float = 5.0
    libvirt_period: float = 1.0
    changes: "Changes | None" = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What clients change besides the files: what is open for a while, and which configuration is confirmed.

    `unavailable` gives what may not be opened.
    """

    standing: Standing
    records: Records
    reloads: Reloads
    wake: Callable[[], None]
    unavailable: Callable[[], Unavailable]

    async def open(self, wish: Wish) -> tuple[tuple[Origin, ...], str]:
        """Open something, and give where it is said to stand, and why the kernel does not hold it yet."""
        origins = await self.standing.openings.open(wish, self.unavailable())
        return origins, await self._applied()

    async def close(self, domain: str, ports: Sequence[str], by: str) -> tuple[str, ...]:
        """Close something, and return what."""
        closed = await self.standing.openings.shut(domain, ports, by)
        await self._applied()
        return closed

    def confirm(self, by: str) -> None:
        """Keep the configuration in force. Raises DeclinedError."""
        confirmation = self.standing.confirmation
        if not confirmation.waits:
            is_over = confirmation.is_over
            raise DeclinedError(Fault(FaultKind.CONFIRMED_TOO_LATE if is_over else FaultKind.NOTHING_TO_CONFIRM))
        try:
            confirmation.drop()
        except OSError as error:
            raise DeclinedError(Fault(FaultKind.CONFIRMATION_NOT_KEPT, detail=str(error))) from error
        self.standing.keep()
        lines.confirmed(self.records.header(()).configuration.file, by)
        self.records.to_confirm(None)

    async def _applied(self) -> str:
        self.wake()
        return (await self.reloads.applied()).failure


class Manager:
    """Answers from `records`, and with what it asks for.

    `metrics`, to be set once there is a reporter, gives them as text; `ImportError` says that their library is not
    there.
    """

    def __init__(self, records: Records, feed: Feed, ask: Inquiries) -> None:
        self._records = records
        self._feed = feed
        self._ask = ask
        self.metrics: Callable[[], Awaitable[bytes]] = _no_metrics
        self._counter, self._writer = Worker("status counters", Job.COUNTERS), Worker("status", Job.STATUS)
        self._questions = Questions(lambda: records.header(()).configuration.file)
        self._made: _Made | None = None
        self._counting: asyncio.Future[Readings] | None = None
        self._readings, self._readings_at = Readings(), -_FRESH_S
        self._fresh_s = _FRESH_S

    def service(self) -> Service:
        """Give what can be called."""
        methods = {
            "Status": Method(self._status),
            "Metrics": Method(self._metrics_text),
            "Reload": Method(self._reloaded, for_root=True, numbers={"confirm_seconds": CONFIRM_S}),
            "Watch": Method(stream=self._watch),
            **self._questions.methods(),
        }
        if (changes := self._ask.changes) is not None:
            of = Changing(changes, self._rows)
            methods["Confirm"] = Method(to=of.confirm, for_root=True)
            methods["Open"] = Method(
                to=of.open, for_root=True, takes=("domain",), lists=("ports", "sources"), numbers={"seconds": OPEN_S}
            )
            methods["Close"] = Method(to=of.close, for_root=True, takes=("domain",), lists=("ports",))
        return Service({MANAGER: methods})

    async def status(self) -> Status:
        """Say how things are; the figures may be a second old, or more where there is much to count."""
        facts, header = self._records.facts(), self._records.header(self._libvirt())
        readings = await self._count(facts)
        return await self._writer.submit(lambda: Status(header, rows(facts, readings), readings.dropped.by_set))

    async def close(self) -> None:
        """End the threads."""
        await asyncio.gather(*(each.close(_CLOSE_S) for each in (self._counter, self._writer, self._questions)))

    async def _status(self, _parameters: Parameters) -> bytes:
        known, now = (self._feed.revision, self._libvirt()), asyncio.get_running_loop().time()
        if self._made is None or self._made.known != known or now >= self._made.at + self._fresh_s:
            self._made = _Made(known, now, asyncio.ensure_future(self._make()))
            asyncio.get_running_loop().call_later(_KEPT_S, self._forget, self._made)
        # Others may wait for the same.
        return await asyncio.shield(self._made.encoded)

    def _forget(self, made: _Made) -> None:
        """Forget a status that is not asked for any more; that of many forwards is megabytes long."""
        if self._made is made and made.encoded.done():
            self._made = None
        self._writer.submit(give_back)

    async def _make(self) -> bytes:
        clock = asyncio.get_running_loop().time
        began = clock()
        written = await self._writer.submit((await self.status()).encode)
        self._fresh_s = max(_FRESH_S, _REST * (clock() - began))
        return written

    async def _count(self, facts: Facts) -> Readings:
        """Give figures that are fresh enough, or what there is where it takes too long to get them."""
        now = asyncio.get_running_loop().time()
        if self._counting is None and now >= self._readings_at + self._fresh_s and facts.held:
            self._readings_at = now
            self._counting = self._counter.submit(partial(self._ask.count, facts.held))
            self._counting.add_done_callback(self._take_count)
        if self._counting is not None:
            await asyncio.wait({self._counting}, timeout=self._ask.count_patience)
        return self._readings

    def _take_count(self, counting: "asyncio.Future[Readings]") -> None:
        self._counting = None
        if counting.cancelled():
            return
        if (error := counting.exception()) is None:
            self._readings = counting.result()
        else:
            _log.debug("no new figures: %s", error)

    async def _metrics_text(self, _parameters: Parameters) -> bytes:
        try:
            text = await self.metrics()
        except ImportError as error:
            raise CallError(METRICS_UNAVAILABLE, {"reason": str(error)}) from error
        return encoded(text=text.decode())

    async def _rows(self) -> tuple[Row, ...]:
        facts = self._records.facts()
        return await self._writer.submit(lambda: rows(facts, self._readings))

    async def _reloaded(self, parameters: Parameters) -> bytes:
        result = await self._ask.reload(parameters.get("confirm_seconds"))
        if result.refusal is not None:
            raise CallError(REFUSED, {"reasons": [lines.format_fault(result.refusal)]})
        if result.problems:
            problems = [problem_as_json(problem) for problem in result.problems]
            raise CallError(CONFIGURATION_REFUSED, {"problems": problems})
        found, at = counts(await self._rows()), self._records.header(()).configuration
        until = time_as_json(at.unless_by)
        return encoded(file=str(at.file), counts=found, failure=result.failure or None, confirm_by=until)

    async def _watch(self, send: Send) -> None:
        subscription = self._feed.subscribe()
        try:
            while True:
                changes, missed = subscription.take()
                libvirt = self._libvirt()
                await send(encoded(changes=[_change(*change) for change in changes], missed=missed))
                await asyncio.sleep(_BURST_S)
                await self._news(subscription, libvirt)
        finally:
            self._feed.leave(subscription)

    async def _news(self, subscription: Subscription, libvirt: Connections) -> None:
        """Wait until something is other than it was."""
        while self._libvirt() == libvirt:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._ask.libvirt_period):
                    await subscription.wait()
                    return

    def _libvirt(self) -> Connections:
        return tuple(
            LibvirtState(state.uri, state.connected, state.since, state.last_error) for state in self._ask.connections()
        )


class Changing:
    """The methods with which clients change something; `rows` gives what is reachable."""

    def __init__(self, changes: Changes, rows: Callable[[], Awaitable[tuple[Row, ...]]]) -> None:
        self._changes, self._rows = changes, rows

    async def open(self, parameters: Parameters, peer: Peer) -> bytes:
        """Answer `Open`."""
        ports, sources = (tuple(parameters[name]) for name in ("ports", "sources"))
        wish = Wish(parameters["domain"], ports, sources, parameters.get("seconds") or DEFAULT_S, str(peer))
        with _refusals():
            origins, failure = await self._changes.open(wish)
        found = [row.as_json() for row in await self._rows() if row.origin in origins]
        warnings = [*map(lines.format_fault, self._changes.records.faults_of(FaultKind.ONE_CLOCK))]
        return encoded(openings=found, failure=failure or None, warnings=warnings)

    async def close(self, parameters: Parameters, peer: Peer) -> bytes:
        """Answer `Close`."""
        with _refusals():
            closed = await self._changes.close(parameters["domain"], parameters["ports"], str(peer))
        return encoded(closed=closed)

    async def confirm(self, _parameters: Parameters, peer: Peer) -> bytes:
        """Answer `Confirm`."""
        with _refusals():
            self._changes.confirm(str(peer))
        return encoded(file=str(self._changes.records.header(()).configuration.file))


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except DeclinedError as error:
        raise CallError(REFUSED, {"reasons": [*map(lines.format_fault, error.faults)]}) from error


async def _no_metrics() -> bytes:
    return b""


def _change(at: datetime, change: Change) -> dict[str, Any]:
    exposure = change.exposure
    return {
        "at": time_as_json(at),
        "action": change.action,
        "owner": exposure.owner.name,
        "owner_kind": exposure.owner.kind,
        "listens": exposure.listens_at(),
        "leads_to": exposure.leads_to(),
        "cause": format_cause(change.cause),
    }


# The methods that look at the whole host: `Explain`, `Check`, `Plan` and `Inventory`.
#
# Each is answered by a process of its own, `fwdaemon.commands.answer`, and one at a time: they list all rules and
# domains, for which no pass is to wait. They change nothing.
# `_MOST_WAITING` may wait for that; root always finds room beside the members of the group.
_ANSWER: Final = "fwdaemon.commands.answer"
_MOST_WAITING: Final = 8
_DROP_IN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.toml", re.ASCII)
_TEXT: Final = re.compile(r".*", re.DOTALL)


class Questions:
    """The methods, for the configuration whose file `main` gives."""

    def __init__(self, main: Callable[[], Path]) -> None:
        self._main, self._worker, self._waiting = main, Worker("questions", Job.ANSWERS), 0

    def methods(self) -> dict[str, Method]:
        """Give them."""
        draft = {"drop_in": _DROP_IN, "text": _TEXT}
        check, plan = (Method(to=partial(self._ask, name), texts=draft) for name in ("Check", "Plan"))
        explain = Method(to=partial(self._ask, "Explain"), takes=("connection",), texts={"source": _TEXT})
        return {
            "Explain": explain,
            "Check": check,
            "Plan": plan,
            "Inventory": Method(to=partial(self._ask, "Inventory")),
        }

    async def close(self, patience: float) -> bool:
        """End the thread, or leave it where it waits for an answer."""
        return await self._worker.close(patience)

    async def _ask(self, name: str, parameters: Parameters, peer: Peer) -> bytes:
        if self._waiting >= (_MOST_WAITING if peer.is_root else _MOST_WAITING // 2):
            raise CallError(REFUSED, {"reasons": ["others wait for an answer of this kind already; ask again soon"]})
        self._waiting += 1
        try:
            line = json.dumps([name, parameters])
            answered = await self._worker.submit(partial(_asked, str(self._main()), line))
        except (PortfwdError, OSError) as error:  # it hung, or no process or descriptor is available
            raise CallError(REFUSED, {"reasons": [str(error)]}) from error
        finally:
            self._waiting -= 1
        return encoded(**read_reply(answered.encode()).parameters)


def _asked(main: str, line: str) -> str:
    # What a client asks is no work for guests, and takes nothing of their share.
    answering = Companion(_ANSWER, main, {}, counted=False)
    try:
        if not (answered := answering.exchange(line)):
            raise KernelError("the process that looks at the host ended without an answer; see the journal")
    finally:
        answering.close()
    return answered
