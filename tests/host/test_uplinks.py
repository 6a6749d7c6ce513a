"""1:1 guests leave by uplinks only, which are where routes lead out; the host is followed while that changes."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.host.conftest import HEAD, Scene, each_backend, filled
from tests.host.test_public_address import HELD, MAIL4
from tests.lab.host import CLIENT4, Host
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

pytestmark = each_backend

BEYOND, GATEWAY = "203.0.113.128/25", "198.51.101.2"


def uplinks(host: Host) -> list[str]:
    """What `status` says of them."""
    found: list[str] = json.loads(host.portfwd("status", "--json").stdout)["uplinks"]
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
        host.run("ip", "link", "del", name, check=False)


@pytest.mark.in_turn
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


OVERLAY, MEMBER = "10.147.17.1", "10.147.17.9"


@pytest.fixture
def overlay(host: Host, links: None) -> None:
    """Give that TAP device a subnet and a member, but no route that leads on; a pod and a bridge of pods have one too.

    Nothing reads what is sent to the member, so what is known of a connection there has no answer.
    """
    del links
    host.run("ip", "address", "add", f"{OVERLAY}/24", "dev", "overlay")
    member = ("to", MEMBER, "lladdr", "02:00:00:00:00:09", "nud", "permanent")
    host.run("ip", "neighbour", "add", *member, "dev", "overlay")
    host.run("ip", "address", "add", "10.244.0.1/24", "dev", "cali0123")


def under(host: Host, guest: LxcGuest) -> str:
    """Under which address a guest's packets go to that member."""
    host.run("conntrack", "-D", "--orig-dst", MEMBER, check=False)
    guest.place.tcp(MEMBER, 99, timeout=0.2)
    known = host.run("conntrack", "-L", "--orig-dst", MEMBER).stdout.split()
    return [word.removeprefix("dst=") for word in known if word.startswith("dst=")][-1]


@pytest.mark.in_turn
@pytest.mark.usefixtures("overlay")
def test_explain_tells_of_an_overlay_network_that_is_no_uplink_and_what_makes_it_one(shared_scene: Scene) -> None:
    scene, host = shared_scene, shared_scene.host
    daemon = scene.daemon(HELD)
    scene.answers(lambda: host.outside.fetch(f"http://{MAIL4}/"), f"web {CLIENT4}")
    awaits(host, "eth0")

    def explain(*source: str) -> dict[str, Any]:
        told = host.portfwd("explain", "--json", f"{MAIL4}:80", *source).stdout
        report: dict[str, Any] = json.loads(told)
        return report

    assert under(host, scene.web) == OVERLAY
    (step,) = (step for step in explain()["steps"] if step["step"] == "ways out")
    assert step["text"].startswith("overlay (10.147.17.0/24) is no uplink")
    sentence = explain("--from", MEMBER)["sentence"]
    (setting,) = re.findall(r"write (uplinks = .*?) under \[daemon\]", sentence)
    assert setting == 'uplinks = ["eth0", "overlay"]'
    daemon.reload_with(f"{HEAD}{setting}\n{filled(HELD)}")
    awaits(host, "eth0", "overlay")
    wait_until(lambda: under(host, scene.web) == MAIL4, "the guest leaves under its own address")
    assert not [step for step in explain()["steps"] if step["step"] == "ways out"]


@pytest.fixture
def pod(host: Host, links: None) -> Iterator[str]:
    """Have a server in that pod, which is wired as by Calico; gives its address."""
    del links
    address, gateway = "10.244.0.5", "10.244.0.1"
    host.run("ip", "address", "add", gateway, "dev", "cali0123")
    host.run("ip", "route", "add", address, "dev", "cali0123")
    host.run("sh", "-c", _IN_POD, "sh", address, gateway)
    inside = replace(host.place, namespace=Path(f"/proc/{host.init}/root/run/netns/pod"))
    server = inside.serve("pod", "tcp", 99)
    yield address
    server.stop()
    host.run("ip", "link", "del", "cali0123")
    host.run("ip", "netns", "del", "pod")


_IN_POD = """
set -e
ip netns add pod
ip link set inside netns pod
ip -n pod link set lo up
ip -n pod link set inside up
ip -n pod address add "$1" dev inside
ip -n pod route add default via "$2" dev inside onlink
"""
_POLICY = "table inet refusing { chain forward { type filter hook forward priority filter; %s; }; }"


@contextmanager
def policy(host: Host) -> Iterator[None]:
    """Refuse what guests open to pods, as an administrator does."""
    if host.flavour.firewall is LibvirtFirewall.LEGACY:
        rule = ["FORWARD", "-o", "cali0123", "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset"]
        host.run("iptables-legacy", "-w", "-I", *rule)
        yield
        host.run("iptables-legacy", "-w", "-D", *rule)
    else:
        host.run("nft", "-f", "-", stdin=_POLICY % 'oifname "cali0123" reject with tcp reset')
        yield
        host.run("nft", "delete", "table", "inet", "refusing")


def test_a_pod_is_no_way_out_and_an_overlay_network_is_one(shared_scene: Scene, pod: str) -> None:
    scene, host = shared_scene, shared_scene.host
    daemon = scene.daemon(HELD)
    awaits(host, "eth0")
    assert "eth0" in host.portfwd("status").stdout
    scene.answers(lambda: scene.web.place.tcp(pod, 99), "pod 10.244.0.1")
    host.run("ip", "route", "add", "10.0.0.0/8", "dev", "overlay")
    host.run("ip", "route", "add", "10.147.0.0/16", "via", "10.0.0.9", "dev", "overlay")
    awaits(host, "eth0", "overlay")
    with policy(host):
        assert scene.web.place.tcp(pod, 99).outcome == "refused"
    daemon.reload_with(HEAD + 'uplinks = ["cali0123"]\n' + filled(HELD))
    awaits(host, "cali0123")
    scene.answers(lambda: scene.web.place.tcp(pod, 99), f"pod {MAIL4}")
    with policy(host):
        assert scene.web.place.tcp(pod, 99).outcome == "refused"
