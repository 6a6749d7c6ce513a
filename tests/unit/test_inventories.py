"""Inventories are taken one at a time, and for guests alone only as often as their budget allows."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fwdaemon.core.report import Actor, ActorKind, Reason, ReasonKind
from fwdaemon.events import Inventories
from fwdaemon.kernel.process import new_budgets
from fwdaemon.triggers import SHARE_OF_USERS, STOCK_OF_USERS_S, STOCK_S, Backoff, Origin, TriggerQueue
from tests.unit.daemon_scene import Libvirt

BY_GUEST = Reason(ReasonKind.NEIGHBOUR, "192.168.122.50", "answered")
BY_USER = Reason(ReasonKind.DOMAIN, "web1", "started")


@contextmanager
def bounded(_what: str) -> Iterator[None]:
    yield


def test_guests_wait_once_they_have_spent_their_budget_and_others_do_not() -> None:
    async def scene() -> None:
        libvirt, trigger_queue = Libvirt(), TriggerQueue()
        budgets = new_budgets()
        inventories = Inventories(libvirt, trigger_queue, budgets, bounded, Backoff(1.0, 2.0))
        inventories.begin()
        inventories.begin()
        await asyncio.sleep(0.01)
        assert libvirt.refreshed == 1
        budgets.guests.spent(2 * STOCK_S)
        trigger_queue.inventory_changed(BY_GUEST)
        inventories.begin()
        inventories.begin()
        await asyncio.sleep(0.01)
        assert libvirt.refreshed == 1
        trigger_queue.inventory_changed(BY_USER)
        inventories.begin()
        await asyncio.sleep(0.01)
        assert libvirt.refreshed == 2
        inventories.cancel()

    asyncio.run(scene())


def test_users_of_libvirt_wait_once_they_have_spent_theirs_and_the_administrator_does_not() -> None:
    async def scene() -> None:
        libvirt, trigger_queue = Libvirt(), TriggerQueue()
        budgets = new_budgets()
        inventories = Inventories(libvirt, trigger_queue, budgets, bounded, Backoff(1.0, 2.0))
        inventories.begin()
        await asyncio.sleep(0.01)
        budgets.users.spent(STOCK_OF_USERS_S + 100.0)
        for reason in (BY_USER, BY_GUEST):
            trigger_queue.inventory_changed(reason)
            inventories.begin()
            await asyncio.sleep(0.01)
        assert libvirt.refreshed == 1
        trigger_queue.inventory_changed(Reason(ReasonKind.HOST_ADDRESS, "198.51.100.7", "appeared"))
        inventories.begin()
        await asyncio.sleep(0.01)
        assert libvirt.refreshed == 2
        assert budgets.users.wait() == pytest.approx(100.0 / SHARE_OF_USERS, abs=10), "nothing was charged"
        inventories.cancel()

    asyncio.run(scene())


def test_a_look_counts_as_a_users_where_nothing_else_asks_for_it() -> None:
    async def looked(*reasons: Reason, wiped: bool = False) -> Origin:
        trigger_queue = TriggerQueue()
        trigger_queue.begin_inventory()
        for reason in reasons:
            trigger_queue.inventory_changed(reason)
        trigger_queue.end_inventory(trigger_queue.begin_inventory())
        if wiped:
            trigger_queue.rules_changed(Actor(ActorKind.PROGRAM, "nft", 9), full=False)
        return trigger_queue.take().origin

    async def scene() -> None:
        assert await looked(BY_GUEST) is Origin.GUESTS
        assert await looked(BY_GUEST, BY_USER) is Origin.USERS
        assert await looked(BY_USER, wiped=True) is Origin.OTHERS
        assert await looked(BY_USER, Reason(ReasonKind.ROUTE, "eth0")) is Origin.OTHERS

    asyncio.run(scene())


def test_pauses_grow_until_it_goes_well() -> None:
    backoff = Backoff(1.0, 3.0)
    assert [backoff.next() for _ in range(4)] == [1.0, 2.0, 3.0, 3.0]
    backoff.settle()
    assert backoff.next() == 1.0
