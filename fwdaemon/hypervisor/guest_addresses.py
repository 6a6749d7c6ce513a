"""Keeps asking guest agents, apart from everything else.

A guest agent is asked only while its domain has no address from a better source, one at a time, on a thread of its own:
an agent that hangs costs other agents some seconds, and nobody else anything. What it said stands while that run of its
domain lasts, even when the agent goes away, as it does at each of its updates.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeAlias
from uuid import UUID

import libvirt

from fwdaemon.audit.throttle import WarnOnce
from fwdaemon.core.inventory import AddressSource, LearnedAddress, MacClaim, ObservedDomain
from fwdaemon.core.pace import Backoff, Budget
from fwdaemon.core.report import Reason, ReasonKind, Trigger
from fwdaemon.core.text import shown
from fwdaemon.errors import LibvirtUnavailableError, PortfwdError, shortage
from fwdaemon.hypervisor.connection import open_with_keepalive
from fwdaemon.hypervisor.xml import guest_address, normal_mac
from fwdaemon.kernel.process import Worker

_log = logging.getLogger(__name__)

_SETTLED_S: Final = 30.0  # an address may change; nothing tells us when
_LAST_RETRY_S: Final = 120.0
_CLOSE_S: Final = 1.0


class Agents(Protocol):
    """Whoever can ask a guest agent; both block."""

    def addresses(self, domain: UUID) -> tuple[MacClaim, ...]:
        """Ask. Raises `LibvirtUnavailableError` when there is no answer."""

    def close(self) -> None:
        """Close whatever is open."""


Recall: TypeAlias = Callable[[ObservedDomain], tuple[MacClaim, ...]]


@dataclass(slots=True)
class _Record:
    """What one run of a domain told, and when to ask it next."""

    domain: ObservedDomain
    retries: Backoff
    due: float
    wanted: bool = False
    claims: tuple[MacClaim, ...] = ()


class AgentRounds:
    """Asks the agents of one connection. `trigger` is called with a reason when an answer differs from the last.

    To ask takes from `guests`, as answers may be long and agents come and go as they like. `recall` gives what an agent
    said to the daemon before: that counts until it answers. One that does not is asked again after `first_retry`
    seconds, and then ever more seldom.
    """

    def __init__(  # noqa: PLR0913, PLR0917  what it asks, whom it tells, and when
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
        self._worker, self._warning = Worker(f"agents of {name}"), WarnOnce()
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
            record = min((item for item in self._records.values() if item.wanted), key=_due, default=None)
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
        except PortfwdError as error:  # no thread is to be had, either
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
            self._trigger(Reason(ReasonKind.AGENT, domain.name, "reported its addresses"))

    def _answer(self, domain: UUID) -> tuple[MacClaim, ...]:
        with self._guests.charged(time.thread_time):
            return self._agents.addresses(domain)


def _due(record: _Record) -> float:
    return record.due


# Asks the agents inside guests for their addresses, on a connection of its own.
#
# An agent is a program of the guest and may never answer. Here that delays no one but other agents, each for 5 s at
# most.
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
    return tuple(
        sorted(claims, key=lambda claim: (claim.mac, claim.learned.address.version, claim.learned.address.packed))[
            :MAX_ADDRESSES
        ]
    )
