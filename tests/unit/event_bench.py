"""A keeper of inventories at work on libvirt's `test` driver."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import libvirt
import pytest

from fwdaemon.config.model import Config, DaemonSettings
from fwdaemon.core.inventory import Inventory
from fwdaemon.core.report import Trigger
from fwdaemon.events import InventoryKeeper, Surroundings
from fwdaemon.hypervisor.connection import LibvirtConnection
from fwdaemon.hypervisor.link import Connect, LibvirtLink, growing_pauses
from fwdaemon.kernel.process import new_budgets
from fwdaemon.triggers import Budgets
from tests.unit.saying import said

URI = "test:///default"


async def holds(condition: Callable[[], bool]) -> None:
    """Wait until this is so."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)


@dataclass
class Bench:
    """A keeper under test, and the reasons it gave."""

    keeper: InventoryKeeper
    reasons: list[str] = field(default_factory=list)

    async def until(self, expected: str) -> None:
        """Wait for such a reason."""
        await holds(lambda: any(expected in reason for reason in self.reasons))
        self.reasons.clear()

    async def inventory(self) -> Inventory:
        """What it finds now."""
        inventory = await self.keeper.refresh()
        assert inventory is not None
        return inventory

    async def running(self) -> set[str]:
        """Which domains run now."""
        return {domain.name for domain in (await self.inventory()).domains if domain.running}


def watching(*uris: str) -> Config:
    """Give a configuration that has libvirt followed there."""
    return Config(DaemonSettings(libvirt=uris), ())


@dataclass
class Linking:
    """Makes links of such connections, and keeps them."""

    connect: Connect = LibvirtConnection
    pauses: Callable[[], Iterator[float]] = growing_pauses
    patience: float = 5.0
    made: list[LibvirtLink] = field(default_factory=list)

    def __call__(self, uri: str, trigger: Trigger) -> LibvirtLink:
        self.made.append(LibvirtLink(uri, self.connect, trigger, self.pauses, self.patience))
        return self.made[-1]


@asynccontextmanager
async def bench(
    tmp_path: Path, link: Linking | None = None, verify: float = 1.0, budgets: Budgets | None = None
) -> AsyncIterator[Bench]:
    """Have a keeper at work, of which nothing is left at the end."""
    reasons: list[str] = []
    around = Surroundings(link or Linking(), tmp_path, tmp_path, verify)
    budgets = budgets or new_budgets()
    keeper = InventoryKeeper(watching(URI), lambda reason: reasons.append(said(reason)), budgets, around)
    await keeper.start()
    try:
        yield Bench(keeper, reasons)
    finally:
        await keeper.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}


def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note whose XML is asked for from now on."""
    names: list[str] = []
    question = libvirt.virDomain.XMLDesc

    def noted(domain: libvirt.virDomain, flags: int = 0) -> str:
        names.append(domain.name())
        return question(domain, flags)

    monkeypatch.setattr(libvirt.virDomain, "XMLDesc", noted)
    return names


def lists(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note the lists that are asked for from now on."""
    asked: list[int] = []
    question = libvirt.virConnect.listAllDomains

    def noted(connection: libvirt.virConnect, flags: int = 0) -> list[libvirt.virDomain]:
        asked.append(flags)
        return question(connection, flags)

    monkeypatch.setattr(libvirt.virConnect, "listAllDomains", noted)
    return asked
