"""All that says "look again", and the inventory one finds by looking.

Sources: libvirt's events, the kernel's routes, addresses and neighbours, the DHCP servers' files, guest agents, answers
to what is asked on bridges. None of them carries a fact: what is triggered to look again asks for a fresh inventory.
Changes of firewall rules, signals and timers are not here.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from fwdaemon.audit import causes, lines
from fwdaemon.config.model import Config
from fwdaemon.core.inventory import HijackedAddress, HostObservation, Inventory, LibvirtObservation, Neighbour
from fwdaemon.core.report import Reason, ReasonKind, Trigger
from fwdaemon.core.state import Silent
from fwdaemon.core.types import Job
from fwdaemon.errors import LibvirtUnavailableError, PortfwdError, shortage
from fwdaemon.hostnet.owned_state import DIRECTORY, Learned
from fwdaemon.hostnet.public_addresses import with_lent
from fwdaemon.hypervisor.connection import LibvirtConnection
from fwdaemon.hypervisor.guest_addresses import AgentConnection, AgentRounds, LeaseWatch
from fwdaemon.hypervisor.link import ConnectionState, EventGuard, EventLoop, LibvirtLink
from fwdaemon.hypervisor.networks import DNSMASQ_DIRECTORY
from fwdaemon.kernel import probes
from fwdaemon.kernel.host_watch import NetlinkWatch, UplinkWatch
from fwdaemon.kernel.listeners import with_occupied
from fwdaemon.kernel.memory import begun
from fwdaemon.kernel.observe import ask_again, observe_host
from fwdaemon.kernel.probes import Probes
from fwdaemon.kernel.process import Worker, processor_time
from fwdaemon.resolve.guests import GuestFinder
from fwdaemon.resolve.neighbours import changed_hands, hijacked_addresses, outdated_neighbours, remembered
from fwdaemon.resolve.snapshot import (
    AgentAnswers,
    awaited_macs,
    devices_without_bridge,
    guest_macs,
    links_without_subnets,
    merge,
    wants_agent,
)
from fwdaemon.triggers import Backoff, Budgets, TriggerQueue

__all__ = ["ConnectionState", "Inventories", "InventoryKeeper", "Sources", "take_inventory"]

_log = logging.getLogger(__name__)

Bounded: TypeAlias = Callable[[str], AbstractContextManager[None]]
"""Guards a block that may hang, by what it does."""

_CLOSE_S: Final = 2.0
_ONCE_S: Final = 10.0


def _linked(uri: str, trigger: Trigger) -> LibvirtLink:
    return LibvirtLink(uri, LibvirtConnection, trigger)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is another in tests: what makes a link, where DHCP servers' files are, where what was learned is kept.

    An address that was put back is looked at again after `verify` seconds: where two changes come at once, the kernel
    may report the second only, twice.
    """

    link: Callable[[str, Trigger], LibvirtLink] = _linked
    leases: Path = DNSMASQ_DIRECTORY
    records: Path = DIRECTORY
    verify: float = 1.0


_THIS_HOST: Final = Surroundings()


class InventoryKeeper:
    """Watches the sources and takes inventories. `trigger` is called with a reason, on the asyncio loop's thread.

    What it does because of guests and users takes from `budgets`. The URIs of a configuration hold for good; the
    addresses it gives to guests may be given anew with `configure`.
    """

    def __init__(self, config: Config, trigger: Trigger, budgets: Budgets, around: Surroundings = _THIS_HOST) -> None:
        uris, guests = config.daemon.libvirt, budgets.guests
        self._trigger = trigger
        self._links = tuple(around.link(uri, trigger) for uri in uris)
        self._guard = EventGuard(self._links, trigger, budgets.events)
        self._event_loop = EventLoop(self._guard.received)
        self._learned, self._records = Learned(around.records), around.records
        recall = self._learned.said
        self._agents = tuple(AgentRounds(uri, AgentConnection(uri), trigger, guests, recall) for uri in uris)
        self._netlink = NetlinkWatch(trigger, guests)
        self._uplinks = UplinkWatch(trigger, guests)
        self._leases = LeaseWatch(trigger, guests, around.leases)
        self._probes = Probes(partial(probes.ask, guests), guests)
        self._kernel = Worker("kernel observer", Job.INVENTORY)
        self._neighbours: tuple[Neighbour, ...] | None = None
        self._reported: frozenset[HijackedAddress] = frozenset()
        self._put_back, self._verify_after = False, around.verify
        self._verifying: asyncio.TimerHandle | None = None
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Say which addresses the configuration gives to guests: a machine that takes one over is to give it back."""
        entries = config.guest_entries
        self._given = tuple(entry for entry in entries if entry.address is not None)
        self._netlink.watch_addresses({entry.address for entry in entries if entry.address is not None})

    async def start(self) -> None:
        """Begin to watch; connections are opened in the background.

        Raises:
            KernelError: the kernel does not let us watch links and addresses.

        """
        for begin in (self._netlink.start, self._uplinks.start, self._leases.start, self._event_loop.start):
            await begun(begin)
        for link in self._links:
            link.start()

    async def refresh(self) -> Inventory | None:
        """Take a fresh inventory; `None` until every URI has answered once.

        A URI that does not answer now is represented by what it said last. Takes 5 s at most for that, and only once
        for each time libvirt freezes. Call it again only after it returned.

        Raises:
            KernelError: the kernel did not give its addresses.

        """
        self._leases.news.inventory_begins()
        answers = await asyncio.gather(*(link.observe() for link in self._links))
        observations = [answer for answer in answers if answer is not None]
        if len(observations) < len(self._links):
            return None
        self._netlink.watch_macs(guest_macs(observations))
        for agents, observation in zip(self._agents, observations, strict=True):
            agents.update(observation.domains)
        said = {uuid: claims for agents in reversed(self._agents) for uuid, claims in agents.answers().items()}
        inventory = await self._kernel.submit(partial(self._with_kernel, observations, said))
        self._leases.follow(guest_macs(observations), awaited_macs(inventory))
        for agents, observation in zip(self._agents, observations, strict=True):
            agents.want(wants_agent(inventory, observation))
        if self._put_back:
            self._verify()
        return inventory

    def search(self, silent: Collection[Silent], inventory: Inventory) -> None:
        """Have the network asked for guests that nothing names an address of; what answers is heard of as usual."""
        self._probes.want(silent, inventory)

    def invalidate(self) -> None:
        """Have the next inventory ask for everything, also for what no event was about."""
        for link in self._links:
            link.invalidate()

    def connections(self) -> tuple[ConnectionState, ...]:
        """Say how each connection is, in the order of the URIs."""
        return tuple(link.state for link in self._links)

    @property
    def listens(self) -> bool:
        """Whether libvirt sends events, or too many of them came."""
        return self._guard.listens

    async def close(self) -> None:
        """Stop watching and close everything, also after a `start` that failed."""
        if self._verifying is not None:
            self._verifying.cancel()
        for watch in (self._guard, self._netlink, self._uplinks, self._leases):
            watch.close()
        await self._probes.close()
        await asyncio.gather(*(agents.close() for agents in self._agents), *(link.close() for link in self._links))
        await self._kernel.close(_CLOSE_S)
        self._event_loop.stop()

    def _with_kernel(self, observations: Sequence[LibvirtObservation], said: AgentAnswers) -> Inventory:
        """Add what the kernel knows; on the kernel's worker, as it takes a while with many guests."""
        host, macs = _observed_host(observations), guest_macs(observations)
        domains = [seen for observation in observations for seen in observation.domains]
        before = self._learned.neighbours(domains) if self._neighbours is None else self._neighbours
        self._neighbours = remembered(before, host.neighbours, macs)
        inventory = merge(observations, replace(host, neighbours=self._neighbours), said)
        inventory = with_lent(with_occupied(inventory), self._records)
        wrong = self._hijacked_addresses(inventory, before, host.neighbours)
        ask_again([*outdated_neighbours(before, host.neighbours, macs), *(item.rightful for item in wrong)])
        self._put_back = bool(wrong)
        # What is put back counts as seen, or who took it twice between two passes could keep it.
        self._neighbours += tuple({item.rightful for item in wrong}.difference(self._neighbours))
        self._learned.keep(domains, said, self._neighbours)
        lines.problems(item for item in wrong if item not in self._reported)
        self._reported |= frozenset(wrong)
        return inventory

    def _verify(self) -> None:
        if self._verifying is not None:
            self._verifying.cancel()
        loop = asyncio.get_running_loop()
        self._verifying = loop.call_later(self._verify_after, self._trigger, Reason(ReasonKind.ADDRESS_PUT_BACK))

    def _hijacked_addresses(
        self, inventory: Inventory, before: Sequence[Neighbour], now: Sequence[Neighbour]
    ) -> tuple[HijackedAddress, ...]:
        """Give the addresses to be put back.

        One of the configuration is not, where its guest did not answer: it may have handed the address over.
        """
        if not changed_hands(before, now):
            return ()
        # To find these takes a look at all guests.
        configured = GuestFinder(inventory, self._given).settled()
        held = [item for item in configured if self._netlink.answers(item.address, item.interface.mac)]
        return hijacked_addresses(inventory, before, now, held)


class Sources(Protocol):
    """What says "look again", and takes inventories; see `InventoryKeeper`, which explains each method."""

    def configure(self, config: Config) -> None:
        """Follow another configuration of the same URIs."""
        ...

    async def start(self) -> None:
        """Begin to watch."""
        ...

    async def refresh(self) -> Inventory | None:
        """Take a fresh inventory; `None` until every URI has answered once."""
        ...

    def search(self, silent: Collection[Silent], inventory: Inventory) -> None:
        """Have the network asked for silent guests."""
        ...

    def invalidate(self) -> None:
        """Have the next inventory ask for everything."""
        ...

    def connections(self) -> tuple[ConnectionState, ...]:
        """Say how each connection is."""
        ...

    async def close(self) -> None:
        """Stop watching and close everything."""
        ...


class Inventories:
    """Takes inventories on request, one at a time, and as often as the budgets allow.

    `latest` is the last inventory, and `missed` why there is no newer one. `bounded` guards against one that hangs.
    """

    def __init__(
        self,
        sources: Sources,
        trigger_queue: TriggerQueue,
        budgets: Budgets,
        bounded: Bounded,
        backoff: Backoff,
    ) -> None:
        self.sources = sources
        self.latest: Inventory | None = None
        self.missed = ""
        self._trigger_queue = trigger_queue
        self._bounded = bounded
        self._backoff = backoff
        self._budgets = budgets
        self._put_off: asyncio.TimerHandle | None = None
        self._refreshing: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Take an inventory if one is wanted: now, or once the budget that it is charged to allows it."""
        if not self._trigger_queue.wants_inventory or self._refreshing is not None:
            return
        budget = self._budgets.of(self._trigger_queue.inventory_for)
        wait = 0.0 if budget is None else budget.wait()
        if self._put_off is not None:
            self._put_off.cancel()
        if wait:
            self._put_off = asyncio.get_running_loop().call_later(wait, self._trigger_queue.wake)
        else:
            self._refreshing = asyncio.create_task(self._refresh())

    def missing(self) -> str:
        """Say why there is none yet; nothing where there is."""
        return "" if self.latest is not None else self.missed or causes.UNANSWERED

    def cancel(self) -> None:
        """Take none any more."""
        for pending in (self._refreshing, self._put_off):
            if pending is not None:
                pending.cancel()

    async def _refresh(self) -> None:
        """Take an inventory; what is heard meanwhile asks for another."""
        cause = self._trigger_queue.inventory_for
        covered = self._trigger_queue.begin_inventory()
        try:
            # Several threads take part.
            with self._budgets.charged(cause, processor_time), self._bounded("an inventory"):
                self.latest = await self.sources.refresh() or self.latest
            self.missed = ""
            self._backoff.settle()
        except (PortfwdError, OSError, RuntimeError) as error:  # no thread or descriptor is available, either
            self._later(shortage(error) or str(error))
        finally:
            self._refreshing = None
            self._trigger_queue.end_inventory(covered)

    def _later(self, failure: str) -> None:
        """Retry after a growing pause; log each failure once."""
        if failure != self.missed:
            _log.error("no new inventory: %s; trying again, less and less often", failure)
        self.missed = failure
        asyncio.get_running_loop().call_later(self._backoff.next(), self._want)

    def _want(self) -> None:
        self._trigger_queue.wants_inventory = True
        self._trigger_queue.time_passed(full=False)


async def take_inventory(uris: Sequence[str], patience: float = _ONCE_S) -> Inventory:
    """Take one inventory, for a single pass. Guest agents may take long: what they answered the daemon counts.

    Raises:
        LibvirtUnavailableError: one of the URIs did not answer.
        KernelError: the kernel did not give its addresses.

    """
    event_loop, worker = EventLoop(), Worker("inventory", Job.INVENTORY)
    try:
        event_loop.start()
        return await asyncio.wait_for(worker.submit(partial(_inventory_once, uris)), patience)
    except TimeoutError as error:
        raise LibvirtUnavailableError(f"libvirt did not answer within {patience:.0f} s") from error
    finally:
        await worker.close(_CLOSE_S)
        event_loop.stop()


def _inventory_once(uris: Sequence[str]) -> Inventory:
    observations, learned = [_observe_once(uri) for uri in uris], Learned()
    domains = [seen for observation in reversed(observations) for seen in observation.domains]
    host = _observed_host(observations)
    near = remembered(learned.neighbours(domains), host.neighbours, guest_macs(observations))
    said = {seen.domain.uuid: learned.said(seen) for seen in domains}
    return with_lent(with_occupied(merge(observations, replace(host, neighbours=near), said)))


def _observed_host(observations: Sequence[LibvirtObservation]) -> HostObservation:
    return observe_host(devices_without_bridge(observations), links_without_subnets(observations))


def _observe_once(uri: str) -> LibvirtObservation:
    connection = LibvirtConnection(uri, _ignore, _ignore)
    connection.open()
    try:
        return connection.observe()
    finally:
        connection.close()


def _ignore(_reason: Reason | str) -> None:
    """Take no notice: who looks once need not look again."""
