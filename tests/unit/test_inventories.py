"""Inventories are taken one at a time, and for guests alone only as often as their budget allows."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from fwdaemon.core.pace import STOCK_S, Backoff
from fwdaemon.core.report import Reason, ReasonKind
from fwdaemon.events import Inventories
from fwdaemon.kernel.process import budget_of_guests
from fwdaemon.triggers import TriggerQueue
from tests.unit.daemon_scene import Libvirt

BY_GUEST = Reason(ReasonKind.NEIGHBOUR, "192.168.122.50", "answered")
BY_ADMIN = Reason(ReasonKind.DOMAIN, "web1", "started")


@contextmanager
def bounded(_what: str) -> Iterator[None]:
    yield


def test_guests_wait_once_they_have_spent_their_budget_and_others_do_not() -> None:
    async def scene() -> None:
        libvirt, trigger_queue = Libvirt(), TriggerQueue()
        guests = budget_of_guests()
        inventories = Inventories(libvirt, trigger_queue, guests, bounded, Backoff(1.0, 2.0))
        inventories.begin()
        inventories.begin()
        await asyncio.sleep(0.01)
        assert libvirt.refreshed == 1
        guests.spent(2 * STOCK_S)
        trigger_queue.inventory_changed(BY_GUEST)
        inventories.begin()
        inventories.begin()
        await asyncio.sleep(0.01)
        assert libvirt.refreshed == 1
        trigger_queue.inventory_changed(BY_ADMIN)
        inventories.begin()
        await asyncio.sleep(0.01)
        assert libvirt.refreshed == 2
        inventories.cancel()

    asyncio.run(scene())


def test_pauses_grow_until_it_goes_well() -> None:
    backoff = Backoff(1.0, 3.0)
    assert [backoff.next() for _ in range(4)] == [1.0, 2.0, 3.0, 3.0]
    backoff.settle()
    assert backoff.next() == 1.0
