"""A listening address that moves between hosts: while another machine has it, the host and its guests are led there."""

import json
from collections.abc import Iterator

import pytest

from tests.host.conftest import Scene, each_backend, entry
from tests.lab.host import CLIENT4, PUBLIC4
from tests.lab.place import wait_until

pytestmark = each_backend

SHARED = "198.51.100.77"
URL = f"http://{SHARED}:8000/"
FARTHER = "203.0.113.200"


@pytest.fixture
def other_machine(shared_scene: Scene) -> Iterator[None]:
    """The one outside has the address, and serves there."""
    outside = shared_scene.host.outside
    outside.run(["ip", "address", "add", f"{SHARED}/24", "dev", "eth0"])
    server = outside.serve("other", "tcp", 8000)
    try:
        yield
    finally:
        server.stop()
        outside.run(["ip", "address", "del", f"{SHARED}/24", "dev", "eth0"])


def move_here(scene: Scene) -> None:
    scene.host.outside.run(["ip", "address", "del", f"{SHARED}/24", "dev", "eth0"])
    scene.host.run("ip", "address", "add", f"{SHARED}/24", "dev", "eth0")
    scene.host.run("arping", "-c", "1", "-A", "-I", "eth0", SHARED, check=False)
    scene.host.outside.run(["ip", "neighbour", "flush", "dev", "eth0"])


def move_away(scene: Scene) -> None:
    scene.host.run("ip", "address", "del", f"{SHARED}/24", "dev", "eth0")
    scene.host.outside.run(["ip", "address", "add", f"{SHARED}/24", "dev", "eth0"])


def states(scene: Scene) -> set[tuple[str, str, str | None]]:
    """What `status` says of each exposure."""
    told = scene.host.portfwd("status", "--json").stdout
    return {(row["owner"], row["state"], row["reason"]) for row in json.loads(told)["openings"]}


@pytest.mark.in_turn
@pytest.mark.usefixtures("other_machine")
def test_a_standby_leads_nobody_to_its_own_guest(shared_scene: Scene) -> None:
    scene = shared_scene
    scene.daemon(entry("web", "8000:80", "WEB4", f'listen = "{SHARED}"') + entry("far", "8001:80", "FAR4"))
    scene.answers(lambda: scene.host.place.tcp(SHARED, 8000), f"other {PUBLIC4}")
    for guest in (scene.web, scene.neighbour, scene.far):
        assert guest.place.tcp(SHARED, 8000).text.startswith("other ")
    (link,) = json.loads(scene.host.outside.run(["ip", "-json", "link", "show", "eth0"]).stdout)
    reason = f"the machine at {link['address']} has {SHARED}, and clients come here once this host has it"
    wait_until(lambda: states(scene) == {("web", "waiting", reason), ("far", "active", None)}, "status tells of it")
    report = json.loads(scene.host.portfwd("explain", "--json", f"{SHARED}:8000", check=False).stdout)
    assert report["cause"] == "held-elsewhere"
    assert report["commands"] == []
    move_here(scene)
    try:
        scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
        for guest in (scene.web, scene.neighbour, scene.far):
            assert guest.place.fetch(URL).text.startswith("web ")
        assert scene.host.place.fetch(URL).text.startswith("web ")
        wait_until(lambda: states(scene) == {("web", "active", None), ("far", "active", None)}, "the status says so")
    finally:
        move_away(scene)
    scene.answers(lambda: scene.host.place.tcp(SHARED, 8000), f"other {PUBLIC4}")


@pytest.mark.in_turn
def test_what_is_routed_to_the_host_from_farther_off_is_its_own(shared_scene: Scene) -> None:
    scene = shared_scene
    scene.host.outside.run(["ip", "route", "replace", f"{FARTHER}/32", "via", PUBLIC4])
    try:
        scene.daemon(entry("web", "8000:80", "WEB4", f'listen = "{FARTHER}"'))
        url = f"http://{FARTHER}:8000/"
        scene.answers(lambda: scene.host.outside.fetch(url), f"web {CLIENT4}")
        assert scene.host.place.fetch(url).text.startswith("web ")
        for guest in (scene.web, scene.neighbour, scene.far):
            assert guest.place.fetch(url).text.startswith("web ")
    finally:
        scene.host.outside.run(["ip", "route", "del", f"{FARTHER}/32"])


@pytest.mark.in_turn
def test_an_address_of_the_link_that_only_the_router_sends_here(shared_scene: Scene) -> None:
    """No host holds it, and the upstream router sends it here: that goes on working from outside."""
    scene = shared_scene
    scene.host.outside.run(["ip", "route", "replace", f"{SHARED}/32", "via", PUBLIC4])
    try:
        scene.daemon(entry("web", "8000:80", "WEB4", f'listen = "{SHARED}"'))
        scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    finally:
        scene.host.outside.run(["ip", "route", "del", f"{SHARED}/32"])
