"""Guests that the host does not reach, or only by routes that name them: what is reported, and what becomes live."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator

import pytest

from tests.host.conftest import Scene, each_backend, each_libvirt
from tests.lab.domain import Link
from tests.lab.host import CLIENT4, PUBLIC4
from tests.lab.lxc import LxcGuest
from tests.lab.qemu import QemuGuest
from tests.lab.release import LibvirtFirewall

pytestmark = [each_backend, pytest.mark.turns_on(LibvirtFirewall.NFTABLES)]

ROUTED = "203.0.113.66"


class OnMacvtap(LxcGuest):
    """A guest whose interface is built on the host's eth0."""

    def _interface(self, link: Link, mac: str) -> ET.Element:
        interface = super()._interface(link, mac)
        interface.set("type", "direct")
        for source in interface.findall("source"):
            source.attrib.clear()
            source.attrib.update(dev="eth0", mode="bridge")
        return interface


class InUserMode(QemuGuest):
    """A guest whose network is made by the emulator."""

    def _interface(self, link: Link, mac: str) -> ET.Element:
        interface = super()._interface(link, mac)
        interface.set("type", "user")
        for source in interface.findall("source"):
            interface.remove(source)
        return interface


def explained(scene: Scene, port: int = 8000) -> dict[str, object]:
    told = scene.host.portfwd("explain", "--json", f"{PUBLIC4}:{port}", check=False).stdout
    found: dict[str, object] = json.loads(told)
    return found


def status(scene: Scene) -> str:
    return scene.host.portfwd("status").stdout


@pytest.mark.in_turn
@each_libvirt
@pytest.mark.parametrize("written", ["", 'address = "198.51.100.50"\n'])
def test_macvtap_is_not_reached_by_the_host(shared_scene: Scene, written: str) -> None:
    guest = OnMacvtap(shared_scene.host, "apart", Link("", ("198.51.100.50/24",)))
    try:
        guest.start()
        shared_scene.daemon(f'[[forward]]\ndomain = "apart"\nports = ["8000:80"]\n{written}')
        told = status(shared_scene)
        assert "waiting" in told
        assert "it is on macvtap of eth0, where every machine but this host reaches it" in told
        report = explained(shared_scene)
        assert report["cause"] == "not-reached"
        assert str(report["sentence"]).startswith("Connect to the guest's own address")
        assert report["commands"] == ["virsh -c lxc:///system attach-interface apart network default --live --config"]
        # As it says: the guest is a machine of that network itself.
        shared_scene.answers(lambda: shared_scene.host.outside.fetch("http://198.51.100.50/"), f"apart {CLIENT4}")
    finally:
        guest.remove()


@pytest.mark.in_turn
@each_libvirt
@pytest.mark.parametrize("written", ["", 'address = "10.0.2.15"\n'])
def test_user_mode_is_not_reached_by_the_host(shared_scene: Scene, written: str) -> None:
    guest = InUserMode(shared_scene.host, "apart", Link("", dhcp=True))
    try:
        guest.start()
        entry = f'[[forward]]\ndomain = "apart"\nports = ["8000:80"]\n{written}'
        shared_scene.start(f'[daemon]\nlibvirt = ["qemu:///system"]\n{entry}')
        assert "its network is user-mode (slirp or passt), which this host cannot reach" in status(shared_scene)
        report = explained(shared_scene)
        assert report["cause"] == "not-reached"
        assert report["commands"] == ["virsh -c qemu:///system attach-interface apart network default --live --config"]
    finally:
        guest.remove()


@pytest.fixture
def lonely_bridge(shared_scene: Scene) -> Iterator[LxcGuest]:
    """A bridge on which the host has a single address, and routes each guest's by itself."""
    host = shared_scene.host
    host.run("ip", "link", "add", "br0", "type", "bridge")
    host.run("ip", "address", "add", f"{PUBLIC4}/32", "dev", "br0")
    host.run("ip", "link", "set", "br0", "up")
    guest = LxcGuest(host, "lonely", Link("", (), bridge="br0"))
    guest.start()
    guest.run("ip", "address", "add", f"{ROUTED}/32", "dev", "eth0")
    guest.run("ip", "route", "add", f"{PUBLIC4}/32", "dev", "eth0")
    guest.run("ip", "route", "add", "default", "via", PUBLIC4)
    try:
        yield guest
    finally:
        guest.remove()
        host.run("ip", "link", "del", "br0")


@pytest.mark.in_turn
@pytest.mark.usefixtures("lonely_bridge")
@pytest.mark.parametrize("route", [f"{ROUTED}/32", "203.0.113.64/29"])
def test_an_address_that_is_routed_to_its_bridge(shared_scene: Scene, route: str) -> None:
    shared_scene.host.run("ip", "route", "add", route, "dev", "br0")
    shared_scene.daemon(f'[[forward]]\ndomain = "lonely"\naddress = "{ROUTED}"\nports = ["8000:80"]\n')
    shared_scene.answers(lambda: shared_scene.host.outside.fetch(f"http://{PUBLIC4}:8000/"), f"lonely {CLIENT4}")
    found = explained(shared_scene)
    # A client outside that has another address of the routed subnet would be refused, and none is named.
    assert found["works"] is True
    assert "it works" in str(found["sentence"]).lower()


@pytest.mark.in_turn
@each_libvirt
@pytest.mark.usefixtures("lonely_bridge")
def test_an_address_that_is_not_routed_there_is_told_how_to_be(shared_scene: Scene) -> None:
    shared_scene.daemon(f'[[forward]]\ndomain = "lonely"\naddress = "{ROUTED}"\nports = ["8000:80"]\n')
    report = explained(shared_scene)
    assert report["cause"] == "address-refused"
    (command, reload) = report["commands"] if isinstance(report["commands"], list) else []
    assert command == f"ip route add {ROUTED}/32 dev br0"
    shared_scene.host.run(*command.split())
    shared_scene.host.portfwd(*reload.split()[1:])
    shared_scene.answers(lambda: shared_scene.host.outside.fetch(f"http://{PUBLIC4}:8000/"), f"lonely {CLIENT4}")
    assert str(explained(shared_scene)["sentence"]).startswith("It works")
