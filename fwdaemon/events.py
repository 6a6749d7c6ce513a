"""All that says "look again", and the inventory one finds by looking.

Sources: libvirt's events, the kernel's links, addresses and neighbours, the DHCP servers' files, guest agents. None of
them carries a fact: whoever is told to look again asks for a fresh inventory. Changes of firewall rules, signals and
timers are not here.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from fwdaemon import audit
from fwdaemon.agents import AgentRounds
from fwdaemon.config.model import Config
from fwdaemon.errors import LibvirtUnavailableError
from fwdaemon.guests import GuestEntry, GuestFinder
from fwdaemon.host import ask_again, observe_host
from fwdaemon.hypervisor.agent import AgentConnection
from fwdaemon.hypervisor.connection import LibvirtConnection
from fwdaemon.hypervisor.event_loop import EventLoop
from fwdaemon.inventory import Inventory
from fwdaemon.lease_watch import DNSMASQ_DIRECTORY, LeaseWatch
from fwdaemon.libvirt_link import Connect, ConnectionState, LibvirtLink
from fwdaemon.neighbours import Usurped, changed_hands, in_doubt, remembered, usurped
from fwdaemon.netlink_watch import NetlinkWatch
from fwdaemon.observation import LibvirtObservation, Neighbour
from fwdaemon.snapshot import AgentAnswers, devices_without_bridge, guest_macs, merge, wants_agent
from fwdaemon.worker import Worker

__all__ = ["ConnectionState", "InventoryKeeper", "take_inventory"]

_CLOSE_S: Final = 2.0
_ONCE_S: Final = 10.0
# How soon after an address was put back its entry is looked at again: where two changes come at once, the kernel may
# tell of the second only, twice.
_VERIFY_S: Final = 1.0


class InventoryKeeper:
    """Watches the sources and takes inventories. `look_again` is called with a reason, on the asyncio loop's thread.

    The URIs of a configuration hold for good; the addresses it gives to guests may be told anew with `configure`.
    `connect` and `leases` are for tests: how a connection is made, and where the DHCP servers' files are.
    """

    def __init__(
        self,
        config: Config,
        look_again: Callable[[str], None],
        *,
        connect: Connect = LibvirtConnection,
        leases: Path = DNSMASQ_DIRECTORY,
    ) -> None:
        self._event_loop, uris = EventLoop(), config.daemon.libvirt
        self._look_again = look_again
        self._links = tuple(LibvirtLink(uri, connect, look_again) for uri in uris)
        self._agents = tuple(AgentRounds(uri, AgentConnection(uri), look_again) for uri in uris)
        self._netlink = NetlinkWatch(look_again)
        self._leases = LeaseWatch(look_again, leases)
        self._kernel = Worker("kernel observer")
        self._neighbours: tuple[Neighbour, ...] = ()
        self._stories: frozenset[str] = frozenset()
        self._put_back = False
        self._verifying: asyncio.TimerHandle | None = None
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Say which addresses the configuration gives to guests: whoever takes one over is to give it back."""
        entries: tuple[GuestEntry, ...] = (*config.forwards, *config.nats)
        self._given = tuple(entry for entry in entries if entry.address is not None)
        self._netlink.watch_addresses({entry.address for entry in entries if entry.address is not None})

    async def start(self) -> None:
        """Begin to watch; connections are opened in the background.

        Raises:
            KernelError: the kernel does not let us watch links and addresses.

        """
        self._netlink.start()
        self._leases.start()
        self._event_loop.start()
        for link in self._links:
            link.start()

    async def refresh(self) -> Inventory | None:
        """Take a fresh inventory; `None` until every URI has answered once.

        A URI that does not answer now is represented by what it said last. Takes 5 s at most for that, and only once
        for each time libvirt freezes. Call it again only after it returned.

        Raises:
            KernelError: the kernel did not tell its addresses.

        """
        answers = await asyncio.gather(*(link.observe() for link in self._links))
        observations = [answer for answer in answers if answer is not None]
        if len(observations) < len(self._links):
            return None
        self._netlink.watch_macs(guest_macs(observations))
        for agents, observation in zip(self._agents, observations, strict=True):
            agents.update(observation.domains)
        said = {uuid: claims for agents in self._agents for uuid, claims in agents.answers().items()}
        inventory = await self._kernel.submit(partial(self._with_kernel, observations, said))
        for agents, observation in zip(self._agents, observations, strict=True):
            agents.want(wants_agent(inventory, observation))
        if self._put_back:
            self._verify()
        return inventory

    def doubt(self) -> None:
        """Have the next inventory ask for everything, also for what no event was about."""
        for link in self._links:
            link.doubt()

    def connections(self) -> tuple[ConnectionState, ...]:
        """Tell how each connection is, in the order of the URIs."""
        return tuple(link.state for link in self._links)

    async def close(self) -> None:
        """Stop watching and close everything, also after a `start` that failed."""
        if self._verifying is not None:
            self._verifying.cancel()
        self._netlink.close()
        self._leases.close()
        await asyncio.gather(*(agents.close() for agents in self._agents), *(link.close() for link in self._links))
        await self._kernel.close(_CLOSE_S)
        self._event_loop.stop()

    def _with_kernel(self, observations: Sequence[LibvirtObservation], said: AgentAnswers) -> Inventory:
        """Add what the kernel knows; on the kernel's worker, as it takes a while with many guests."""
        host, macs = observe_host(devices_without_bridge(observations)), guest_macs(observations)
        before, self._neighbours = self._neighbours, remembered(self._neighbours, host.neighbours, macs)
        inventory = merge(observations, replace(host, neighbours=self._neighbours), said)
        wrong = self._usurped(inventory, before, host.neighbours)
        ask_again([*in_doubt(before, host.neighbours, macs), *(item.rightful for item in wrong)])
        self._put_back = bool(wrong)
        # What is put back counts as seen, or who took it twice between two looks could keep it.
        self._neighbours += tuple({item.rightful for item in wrong}.difference(self._neighbours))
        audit.problems(item.story for item in wrong if item.story not in self._stories)
        self._stories |= {item.story for item in wrong}
        return inventory

    def _verify(self) -> None:
        if self._verifying is not None:
            self._verifying.cancel()
        loop = asyncio.get_running_loop()
        self._verifying = loop.call_later(_VERIFY_S, self._look_again, "an address that was taken over was put back")

    def _usurped(
        self, inventory: Inventory, before: Sequence[Neighbour], now: Sequence[Neighbour]
    ) -> tuple[Usurped, ...]:
        """Give the addresses to be put back.

        One of the configuration is not, where its guest did not answer: it may have handed the address over.
        """
        if not changed_hands(before, now):
            return ()
        # To find these takes a look at all guests.
        configured = GuestFinder(inventory, self._given).settled()
        held = [item for item in configured if self._netlink.answers(item.address, item.interface.mac)]
        return usurped(inventory, before, now, held)


async def take_inventory(uris: Sequence[str]) -> Inventory:
    """Take one inventory, for who looks only once. Guest agents, who may take long, are not asked.

    Raises:
        LibvirtUnavailableError: one of the URIs did not answer.
        KernelError: the kernel did not tell its addresses.

    """
    event_loop, worker = EventLoop(), Worker("inventory")
    event_loop.start()
    try:
        return await asyncio.wait_for(worker.submit(partial(_look_once, uris)), _ONCE_S)
    except TimeoutError as error:
        raise LibvirtUnavailableError(f"libvirt did not answer within {_ONCE_S:.0f} s") from error
    finally:
        await worker.close(_CLOSE_S)
        event_loop.stop()


def _look_once(uris: Sequence[str]) -> Inventory:
    observations = [_observe_once(uri) for uri in uris]
    return merge(observations, observe_host(devices_without_bridge(observations)), {})


def _observe_once(uri: str) -> LibvirtObservation:
    connection = LibvirtConnection(uri, _ignore, _ignore)
    connection.open()
    try:
        return connection.observe()
    finally:
        connection.close()


def _ignore(_reason: str) -> None:
    """Take no notice: who looks once need not look again."""
