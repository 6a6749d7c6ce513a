"""What is heard of routes and links, on the real kernel."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fwdaemon.core.report import Actor, ActorKind, Reason, ReasonKind
from fwdaemon.hostnet.owned_state import Ipv6Bridges, OwnedStateFile
from fwdaemon.hostnet.routing import RouteKeeper
from fwdaemon.kernel.host_watch import RouteWatch, UplinkWatch
from fwdaemon.kernel.process import budget_of_guests
from fwdaemon.triggers import Origin, origin
from tests.kernel.links import Links
from tests.unit.forwards import route

OURS, OURS6 = "203.0.113.64/29", "2001:db8:1::/64"
BOTH = frozenset({route(OURS), route(OURS6)})
PATIENCE = 10
LAST = Actor(ActorKind.LINK_UP, link="last")


@pytest.fixture
def links(links: Links) -> Links:
    links.host.ip("link add last type bridge")
    return links


@pytest.fixture
def keeper(tmp_path: Path) -> RouteKeeper:
    return RouteKeeper(Ipv6Bridges(partial(OwnedStateFile, directory=tmp_path)))


def heard(links: Links, act: Callable[[], object]) -> list[Actor]:
    """What is heard while `act` is done, and before the link `last` comes up, as it does after it."""
    said: list[Actor] = []

    async def listen() -> None:
        last = asyncio.Event()

        def hear(actor: Actor, *, full: bool) -> None:
            assert not full
            said.append(actor)
            if actor == LAST:
                last.set()

        watch = RouteWatch(hear)
        watch.start()
        await asyncio.to_thread(act)
        links.host.ip("link set last up")
        await asyncio.wait_for(last.wait(), PATIENCE)
        watch.close()
        watch.close()

    asyncio.run(listen())
    assert said.pop() == LAST
    return said


@pytest.mark.parametrize("subnet", [OURS, OURS6])
def test_whoever_takes_a_route_of_ours_away_is_heard(links: Links, keeper: RouteKeeper, subnet: str) -> None:
    keeper.apply(BOTH)
    (said,) = heard(links, lambda: links.host.ip(f"route del {subnet} dev virbr1"))
    assert said.kind is ActorKind.ROUTE_REMOVED
    assert said.pid


def test_a_flush_is_heard(links: Links, keeper: RouteKeeper) -> None:
    keeper.apply(BOTH)
    assert len(heard(links, lambda: links.host.run("ip", "-4", "route", "flush", "proto", "107"))) == 1


def test_we_do_not_hear_ourselves(links: Links, keeper: RouteKeeper) -> None:
    def change() -> None:
        keeper.apply(BOTH)
        keeper.apply(frozenset())

    assert heard(links, change) == []


def test_routes_of_others_are_not_heard(links: Links) -> None:
    lines = [f"route {verb} 203.0.113.64/29 dev virbr1 proto bird" for verb in ("add", "replace", "del")]
    assert heard(links, lambda: links.host.ip(*lines)) == []


def test_a_link_that_goes_down_and_comes_up_is_heard(links: Links) -> None:
    said = heard(links, lambda: links.host.ip("link set virbr1 down", "link set virbr1 up"))
    assert said == [Actor(kind, link="virbr1") for kind in (ActorKind.LINK_DOWN, ActorKind.LINK_UP)]


def test_other_changes_of_links_are_not_heard(links: Links) -> None:
    guest = ["link set vnet0 nomaster", "link set vnet0 master virbr1", "link set vnet0 down", "link set vnet0 up"]
    lines = ["link set virbr1 mtu 1400", "link set eth0 mtu 1400", *guest, "link del vnet0", "link del eth0"]
    assert heard(links, lambda: links.host.ip(*lines)) == [Actor(ActorKind.LINK_DOWN, link="eth0")]


def test_routes_that_go_with_their_link_are_put_back(links: Links, keeper: RouteKeeper) -> None:
    keeper.apply(BOTH)
    said = heard(links, lambda: links.host.ip("link set virbr1 down", "link set virbr1 up"))
    assert said[0] == Actor(ActorKind.LINK_DOWN, link="virbr1")
    assert keeper.apply(BOTH).damaged == BOTH


def test_what_could_not_be_followed_asks_for_a_full_pass(links: Links) -> None:
    verbs = ("add", "del")
    lines = [f"route {verb} 203.0.{number}.0/24 dev virbr1 proto 107" for number in range(256) for verb in verbs]

    async def overflow() -> None:
        lost = asyncio.Event()

        def hear(actor: Actor, *, full: bool) -> None:
            if full and actor.kind is ActorKind.ROUTES_LOST:
                lost.set()

        watch = RouteWatch(hear)
        watch.start()
        links.host.ip(*lines * 4)  # nothing reads meanwhile, as this is the loop's own thread
        await asyncio.wait_for(lost.wait(), PATIENCE)
        watch.close()

    asyncio.run(overflow())


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("route add ::/0 via fe80::1 dev virbr1 proto ra", Origin.GUESTS),
        ("route add 2001:db8:77::/64 dev virbr1 proto kernel expires 60", Origin.GUESTS),
        ("route add ::/0 via fe80::1 dev virbr1", Origin.OTHERS),
        ("route add 2001:db8:77::/48 via fe80::1 dev virbr1 proto bird", Origin.OTHERS),
        ("route add 203.0.113.128/25 dev virbr1 proto kernel", Origin.OTHERS),
    ],
)
def test_what_an_advertisement_can_change_is_charged_to_guests_and_nothing_else(
    links: Links, line: str, cause: Origin
) -> None:
    said: list[Reason] = []

    async def listen() -> None:
        heard = asyncio.Event()

        def hear(reason: Reason) -> None:
            said.append(reason)
            heard.set()

        watch = UplinkWatch(hear, budget_of_guests())
        watch.start()
        await asyncio.to_thread(links.host.ip, line)
        await asyncio.wait_for(heard.wait(), PATIENCE)
        watch.close()

    asyncio.run(listen())
    assert [(reason.kind, reason.subject, origin(reason)) for reason in said] == [(ReasonKind.ROUTE, "virbr1", cause)]
