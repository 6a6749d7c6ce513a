"""1:1 guests leave by uplinks only, which are where routes lead out; the host is followed while that changes."""

import json
from collections.abc import Iterator

import pytest

from tests.host.conftest import HEAD, Scene, filled
from tests.host.test_public_address import HELD, MAIL4
from tests.lab.host import Host
from tests.lab.place import wait_until

BEYOND, GATEWAY = "203.0.113.128/25", "198.51.101.2"


def uplinks(host: Host) -> list[str]:
    """What `status` says of them."""
    found: list[str] = json.loads(host.run(host.python, "-m", "fwdaemon", "status", "--json").stdout)["uplinks"]
    return found


def awaits(host: Host, *expected: str) -> None:
    wait_until(lambda: uplinks(host) == list(expected), f"the uplinks {expected}, not {uplinks(host)}")


@pytest.fixture
def links(host: Host) -> Iterator[None]:
    """A pod's link, and the TAP device of an overlay network."""
    host.run("ip", "link", "add", "cali0123", "type", "veth", "peer", "name", "inside")
    host.run("ip", "tuntap", "add", "overlay", "mode", "tap")
    for name in ("cali0123", "inside", "overlay"):
        host.run("ip", "link", "set", name, "up")
    yield
    for name in ("cali0123", "overlay"):
        host.run("ip", "link", "del", name)


def test_a_guest_leaves_by_a_link_as_soon_as_a_route_leads_out_there(shared_scene: Scene) -> None:
    scene, host = shared_scene, shared_scene.host
    server = host.outside.serve("outside", "tcp", 99)
    scene.daemon(HELD)
    try:
        awaits(host, "eth0")
        host.run("ip", "route", "add", BEYOND, "via", GATEWAY)
        awaits(host, "eth0", "eth1")
        host.outside.run(["ip", "route", "add", MAIL4, "via", "198.51.101.1"])
        scene.answers(lambda: scene.web.place.tcp(GATEWAY, 99), f"outside {MAIL4}")
        host.run("ip", "route", "del", BEYOND)
        awaits(host, "eth0")
    finally:
        host.outside.run(["ip", "route", "del", MAIL4], check=False)
        host.run("ip", "route", "del", BEYOND, check=False)
        server.stop()


@pytest.mark.usefixtures("links")
def test_a_pod_is_no_way_out_and_an_overlay_network_is_one(shared_scene: Scene) -> None:
    scene, host = shared_scene, shared_scene.host
    host.run("ip", "route", "add", "10.244.0.5", "dev", "cali0123")
    daemon = scene.daemon(HELD)
    awaits(host, "eth0")
    assert "eth0" in host.run(host.python, "-m", "fwdaemon", "status").stdout
    host.run("ip", "route", "add", "10.0.0.0/8", "dev", "overlay")
    host.run("ip", "route", "add", "10.147.0.0/16", "via", "10.0.0.9", "dev", "overlay")
    awaits(host, "eth0", "overlay")
    daemon.reload_with(HEAD + 'uplinks = ["cali0123"]\n' + filled(HELD))
    awaits(host, "cali0123")
