"""What is heard of routes and links, on the real kernel."""

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from fwdaemon.ipv6_bridges import Ipv6Bridges
from fwdaemon.ledger import Ledger
from fwdaemon.route_watch import RouteWatch
from fwdaemon.routes import RouteKeeper
from tests.kernel.links import Links, linked
from tests.unit.forwards import route

OURS, OURS6 = "203.0.113.64/29", "2001:db8:1::/64"
BOTH = frozenset({route(OURS), route(OURS6)})
PATIENCE = 10
LAST = "somebody who took link last up"


@pytest.fixture
def links(lab: None) -> Iterator[Links]:
    del lab
    with linked() as links:
        links.host.ip("link add last type bridge")
        yield links


@pytest.fixture
def keeper(tmp_path: Path) -> RouteKeeper:
    return RouteKeeper(Ipv6Bridges(partial(Ledger, directory=tmp_path)))


def heard(links: Links, act: Callable[[], object]) -> list[str]:
    """What is heard while `act` is done, and before the link `last` comes up, as it does after it."""
    said: list[str] = []

    async def listen() -> None:
        last = asyncio.Event()

        def hear(meddler: str, *, thorough: bool) -> None:
            assert not thorough
            said.append(meddler)
            if meddler == LAST:
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
    keeper.keep(BOTH)
    (said,) = heard(links, lambda: links.host.ip(f"route del {subnet} dev virbr1"))
    assert said.startswith("somebody who removed a route (netlink port ")


def test_a_flush_is_heard(links: Links, keeper: RouteKeeper) -> None:
    keeper.keep(BOTH)
    assert len(heard(links, lambda: links.host.run("ip", "-4", "route", "flush", "proto", "107"))) == 1


def test_we_do_not_hear_ourselves(links: Links, keeper: RouteKeeper) -> None:
    def change() -> None:
        keeper.keep(BOTH)
        keeper.keep(frozenset())

    assert heard(links, change) == []


def test_routes_of_others_are_not_heard(links: Links) -> None:
    lines = [f"route {verb} 203.0.113.64/29 dev virbr1 proto bird" for verb in ("add", "replace", "del")]
    assert heard(links, lambda: links.host.ip(*lines)) == []


def test_a_link_that_goes_down_and_comes_up_is_heard(links: Links) -> None:
    said = heard(links, lambda: links.host.ip("link set virbr1 down", "link set virbr1 up"))
    assert said == ["somebody who took link virbr1 down", "somebody who took link virbr1 up"]


def test_other_changes_of_links_are_not_heard(links: Links) -> None:
    guest = ["link set vnet0 nomaster", "link set vnet0 master virbr1", "link set vnet0 down", "link set vnet0 up"]
    lines = ["link set virbr1 mtu 1400", "link set eth0 mtu 1400", *guest, "link del vnet0", "link del eth0"]
    assert heard(links, lambda: links.host.ip(*lines)) == ["somebody who took link eth0 down"]


def test_routes_that_go_with_their_link_are_put_back(links: Links, keeper: RouteKeeper) -> None:
    keeper.keep(BOTH)
    said = heard(links, lambda: links.host.ip("link set virbr1 down", "link set virbr1 up"))
    assert said[0].startswith("somebody who took link virbr1 down")
    assert keeper.keep(BOTH).damaged == BOTH


def test_what_could_not_be_followed_asks_for_a_thorough_look(links: Links) -> None:
    verbs = ("add", "del")
    lines = [f"route {verb} 203.0.{number}.0/24 dev virbr1 proto 107" for number in range(256) for verb in verbs]

    async def overflow() -> None:
        lost = asyncio.Event()

        def hear(meddler: str, *, thorough: bool) -> None:
            if thorough and meddler.startswith("somebody, in more changes"):
                lost.set()

        watch = RouteWatch(hear)
        watch.start()
        links.host.ip(*lines * 4)  # nobody reads meanwhile, as this is the loop's own thread
        await asyncio.wait_for(lost.wait(), PATIENCE)
        watch.close()

    asyncio.run(overflow())
