import asyncio

import pytest

from fwdaemon.core.report import Actor, ActorKind, Reason, ReasonKind
from fwdaemon.triggers import Origin, Pauses, TriggerQueue, Triggers

BY_GUEST = Reason(ReasonKind.NEIGHBOUR, "192.168.122.50", "answered")
FIRST, SECOND = (Reason(ReasonKind.DOMAIN, name, "started") for name in ("web1", "web2"))
LOADED = Reason(ReasonKind.CONFIGURATION, "/etc/portfwd.toml")


def nft(pid: int) -> Actor:
    return Actor(ActorKind.PROGRAM, "nft", pid)


def test_a_reason_counts_once_an_inventory_was_taken_after_it() -> None:
    trigger_queue = TriggerQueue()
    trigger_queue.inventory_changed(FIRST)
    trigger_queue.rules_changed(nft(812), full=False)
    assert trigger_queue.take().reasons == ()
    covered = trigger_queue.begin_inventory()
    trigger_queue.inventory_changed(SECOND)
    trigger_queue.end_inventory(covered)
    assert trigger_queue.take().reasons == (FIRST,)
    assert trigger_queue.wants_inventory


def test_actors_are_named_once_each() -> None:
    trigger_queue = TriggerQueue()
    for pid in (1, 2, 2, 3):
        trigger_queue.rules_changed(nft(pid), full=False)
    assert trigger_queue.take().actors == (nft(1), nft(2), nft(3))
    assert trigger_queue.take().actors == ()


def test_lost_messages_ask_for_a_full_pass() -> None:
    trigger_queue = TriggerQueue()
    trigger_queue.rules_changed(Actor(ActorKind.COMMITS_LOST), full=True)
    assert trigger_queue.take().full
    assert not trigger_queue.take().full


def test_a_new_configuration_asks_for_a_pass_now_and_for_an_inventory() -> None:
    trigger_queue = TriggerQueue()
    trigger_queue.end_inventory(trigger_queue.begin_inventory())
    trigger_queue.take()
    trigger_queue.configuration_changed(LOADED)
    assert trigger_queue.wants_pass
    assert trigger_queue.wants_inventory
    assert trigger_queue.take().reasons == (LOADED,)


def test_what_was_heard_for_a_pass_that_failed_is_known_for_the_next_one() -> None:
    trigger_queue = TriggerQueue()
    trigger_queue.rules_changed(nft(1), full=True)
    trigger_queue.configuration_changed(LOADED)
    failed = trigger_queue.take()
    trigger_queue.rules_changed(nft(2), full=False)
    trigger_queue.take_back(failed)
    triggers = trigger_queue.take()
    assert (triggers.reasons, triggers.actors, triggers.full) == ((LOADED,), (nft(1), nft(2)), True)


def test_looks_that_fail_for_ever_make_nothing_grow() -> None:
    trigger_queue = TriggerQueue()
    for pid in range(1000):
        trigger_queue.rules_changed(nft(pid), full=False)
        trigger_queue.end_inventory({Reason(ReasonKind.NEIGHBOUR, str(pid)): None})
        trigger_queue.take_back(trigger_queue.take())
    triggers = trigger_queue.take()
    assert (len(triggers.reasons), len(triggers.actors)) == (256, 256)


def test_a_pass_is_charged_to_guests_where_they_alone_asked_for_it() -> None:
    trigger_queue = TriggerQueue()
    trigger_queue.end_inventory({BY_GUEST: None})
    assert trigger_queue.take().origin is Origin.GUESTS
    trigger_queue.end_inventory({BY_GUEST: None, FIRST: None})
    assert trigger_queue.take().origin is Origin.USERS
    trigger_queue.end_inventory({BY_GUEST: None})
    trigger_queue.rules_changed(nft(1), full=False)
    assert trigger_queue.take().origin is Origin.OTHERS
    trigger_queue.end_inventory({BY_GUEST: None})
    trigger_queue.time_passed(full=True)
    assert trigger_queue.take().origin is Origin.OTHERS
    trigger_queue.end_inventory({BY_GUEST: None})
    assert trigger_queue.take().origin is Origin.GUESTS


@pytest.mark.parametrize("cause", [Origin.GUESTS, Origin.USERS])
def test_a_pass_that_follows_from_one_for_guests_or_users_is_charged_to_them_too(cause: Origin) -> None:
    trigger_queue = TriggerQueue()
    trigger_queue.time_passed(full=True, after=cause)
    assert trigger_queue.take() == Triggers((), (), full=True, origin=cause)
    trigger_queue.time_passed(full=True)
    failed = trigger_queue.take()
    trigger_queue.time_passed(full=False, after=cause)
    trigger_queue.take_back(failed)
    assert trigger_queue.take().origin is Origin.OTHERS


def test_commits_that_follow_one_another_ask_for_one_full_pass() -> None:
    async def act() -> list[bool]:
        trigger_queue = TriggerQueue(Pauses(verify=0.01))
        trigger_queue.take()
        for _ in range(3):
            trigger_queue.verify(Origin.USERS)
        while not trigger_queue.wants_pass:
            await trigger_queue.wait()
        first = trigger_queue.take()
        assert first.origin is Origin.USERS
        await asyncio.sleep(0.05)
        return [first.full, trigger_queue.wants_pass]

    assert asyncio.run(act()) == [True, False]
