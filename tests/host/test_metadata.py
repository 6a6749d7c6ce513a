"""Domains open ports by their own definitions as far as a policy covers that; whatever else is there opens nothing."""

import re
import struct
import time
import xml.etree.ElementTree as ET
from contextlib import suppress
from pathlib import Path
from typing import Self

import libvirt
import pytest

from fwdaemon.triggers import SHARE, SHARE_OF_EVENTS, STOCK_OF_EVENTS_S, STOCK_S
from tests.conftest import MakeNetwork, StartDaemon
from tests.host.conftest import HEAD, Scene, each_backend
from tests.host.test_conflicts import OFTEN
from tests.host.test_hostile_floods import UNDER_WAY_S, UNSEEN, processor_time
from tests.host.test_public_address import MAIL4, holds
from tests.host.test_reach import url
from tests.lab.daemon import Daemon
from tests.lab.domain import Guest, Link
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until
from tests.lab.qemu import QemuGuest

pytestmark = each_backend

NAMESPACE = "urn:kvm-portfwd:1"
ALLOW = '[[allow]]\ndomains = ["we*", "neigh*"]\nnetworks = ["default"]\nports = ["8000-8099"]\nmax = 3\n'
# Of other ports than those that tests ask for by number: what is assigned once is kept for its guest.
AUTO = HEAD + 'auto_ports = "8090-8099"\n'
HOSTILE = (
    '<!DOCTYPE forwards [<!ENTITY a "8010:80">]><forwards><forward ports="&a;"/></forwards>',
    '<!DOCTYPE forwards [<!ENTITY a SYSTEM "file:///etc/passwd">]><forwards>&a;</forwards>',
    f'<!DOCTYPE forwards [<!ENTITY a "{"x" * 4096}">]><forwards x="{"&a;" * 1000}"/>',
    f"<forwards>{'<a>' * 200}{'</a>' * 200}</forwards>",
    f"<forwards>{'<a>' * 5000}{'</a>' * 5000}</forwards>",
    "<forwards xmlns='urn:other'><forward ports='8010:80'/></forwards>",
    "<forwards><o:forward xmlns:o='urn:other' ports='8010:80'/></forwards>",
    "<forwards><o:x xmlns:o='urn:other'><forward ports='8010:80'/></o:x></forwards>",
    "<forwards>&lt;forward ports='8010:80'/&gt;<![CDATA[<forward ports='8010:80'/>]]></forwards>",
    "<forwards><forward xmlns:o='urn:other' o:ports='8010:80'/><!-- <forward ports='8010:80'/> --></forwards>",
    "<forwards><forward ports='8010:80' network='&#10;&#13;&#9;\x7f\u2028\u202e'/></forwards>",
    "<forwards><forward ports='8010:80' sources='203.0.113.0/24; } flush ruleset'/></forwards>",
)


@pytest.fixture
def scene(mended_scene: Scene) -> Scene:
    """The guests of the module, which are put back after each test."""
    return mended_scene


def ask(scene: Scene, guest: LxcGuest, elements: str, *, live: bool = True) -> None:
    """Write what a domain asks for into its definition, as who owns it would."""
    scene.host.run(
        *("virsh", "-c", "lxc:///system", "metadata", guest.name, NAMESPACE, "--key", "portfwd"),
        *("--set", f"<forwards>{elements}</forwards>", "--live" if live else "--config"),
    )


def set_metadata(guest: Guest, namespace: str, text: str, *, live: bool = True) -> None:
    """Write it as who calls libvirt's API can: no argument of a program is so long."""
    where = libvirt.VIR_DOMAIN_AFFECT_LIVE if live else libvirt.VIR_DOMAIN_AFFECT_CONFIG
    with guest.domain() as domain:
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, "k", namespace, where)


def withdraw(scene: Scene, guest: LxcGuest) -> None:
    scene.host.run(
        *("virsh", "-c", "lxc:///system", "metadata", guest.name, NAMESPACE, "--remove", "--live"), check=False
    )


def page(scene: Scene, port: int) -> str:
    return scene.host.outside.fetch(f"http://{PUBLIC4}:{port}/").text


@pytest.mark.in_turn
def test_hostile_metadata_costs_its_own_domain_and_no_other(scene: Scene) -> None:
    # More than libvirt itself can tell of a domain in one answer; then as much as it can, and too much of ours.
    set_metadata(scene.neighbour, "urn:other", "<x>" + "<y/>" * 700_000 + "</x>")
    ask(scene, scene.web, '<forward ports="8000:80" sources="0.0.0.0/0"/>')
    daemon = scene.daemon(ALLOW)
    daemon.wait_log(r"does not report the devices of neighbour: Unable to encode message payload")
    scene.answers(lambda: scene.host.outside.fetch(f"http://{PUBLIC4}:8000/"), f"web {CLIENT4}")
    set_metadata(scene.neighbour, "urn:other", "<x>" + "<y/>" * 100_000 + "</x>")
    set_metadata(scene.neighbour, NAMESPACE, "<forwards>" + "<forward ports='8000:80'/>" * 5_000 + "</forwards>")
    daemon.wait_log(
        r"^declined neighbour: domain neighbour, metadata: is larger than 64 KiB; nothing of it is in force$"
    )
    used, lasted = flood(scene, daemon)
    # What was saved up may go first, then what came in; all that was begun is paid for once another domain is served.
    share = SHARE + SHARE_OF_EVENTS
    assert used <= STOCK_S + STOCK_OF_EVENTS_S + share * lasted * (1 + UNSEEN) + UNDER_WAY_S
    assert len([line for line in daemon.log_lines() if line.text.startswith("declined neighbour")]) <= 7


def flood(scene: Scene, daemon: Daemon) -> tuple[float, float]:
    """Change what one domain asks for 200 times, until another is served; what the daemon uses, and for how long."""
    before, began = processor_time(daemon.pid), time.monotonic()
    for number in range(200):
        set_metadata(
            scene.neighbour, NAMESPACE, f"<forwards><forward ports='{number + 1}:80' x='&#10;\u202e'/></forwards>"
        )
    ask(scene, scene.web, '<forward ports="8001:80" sources="0.0.0.0/0"/>')
    scene.answers(lambda: scene.host.outside.fetch(f"http://{PUBLIC4}:8001/"), f"web {CLIENT4}")
    return processor_time(daemon.pid) - before, time.monotonic() - began


@pytest.mark.in_turn
def test_hostile_metadata_opens_nothing_and_ends_what_was_open(scene: Scene) -> None:
    """Most of it has a port in it that the policy covers, so that whatever gets it wrong would open that."""
    scene.daemon(ALLOW)
    taken = 0
    for text in HOSTILE:
        ask(scene, scene.neighbour, '<forward ports="8010:80"/>')
        scene.answers(lambda: scene.host.outside.fetch(url(PUBLIC4, 8010)), f"neighbour {CLIENT4}")
        with suppress(libvirt.libvirtError):  # libvirt refuses some of them itself
            set_metadata(scene.neighbour, NAMESPACE, text)
            taken += 1
            scene.refused(lambda: scene.host.outside.fetch(url(PUBLIC4, 8010)), f"8010 is closed by {text[:80]}")
    assert taken >= len(HOSTILE) - 4  # entities, and what is too deep
    # An element without a namespace is put into ours by libvirt, so it is a wish like any other.
    set_metadata(scene.neighbour, NAMESPACE, "<forwards><forward xmlns='' ports='8010:80'/></forwards>")
    scene.answers(lambda: scene.host.outside.fetch(url(PUBLIC4, 8010)), f"neighbour {CLIENT4}")


@pytest.mark.in_turn
def test_a_definition_opens_what_is_allowed_and_is_followed_at_once(scene: Scene) -> None:
    ask(scene, scene.web, '<forward ports="8000:80 22:80" sources="0.0.0.0/0"/>')
    daemon = scene.daemon(ALLOW, AUTO)
    scene.answers(lambda: scene.host.outside.fetch(f"http://{PUBLIC4}:8000/"), f"web {CLIENT4}")
    daemon.wait_log(r"^added web: tcp \*:8000 -> 192\.168\.122\.10:80 \(.*; allowed by /\S+:4\)")
    daemon.wait_log(r"^declined web: tcp \*:22, .* does not cover ports tcp 22 \(domain web, metadata: forward 1\)$")
    assert not scene.host.outside.fetch(f"http://{PUBLIC4}:22/").answered
    ask(scene, scene.web, '<forward ports="8001:80" sources="0.0.0.0/0"/>')
    scene.answers(lambda: scene.host.outside.fetch(f"http://{PUBLIC4}:8001/"), f"web {CLIENT4}")
    scene.refused(lambda: scene.host.outside.fetch(f"http://{PUBLIC4}:8000/"))
    daemon.wait_log(r"^removed web: tcp \*:8000 -> \S+ \(metadata of domain web changed")
    ask(scene, scene.neighbour, '<forward ports="8001:80 8002:80 auto:80" sources="0.0.0.0/0"/>')
    scene.answers(lambda: scene.host.outside.fetch(f"http://{PUBLIC4}:8002/"), f"neighbour {CLIENT4}")
    daemon.wait_log(r"^declined neighbour: tcp \*:8001, web has it already \(domain web, metadata: forward 1\)")
    assert page(scene, 8001) == f"web {CLIENT4}"
    allowed = r"\(domain neighbour, metadata: forward 1; allowed by /\S+:4\)$"
    assigned = daemon.wait_log(rf"^assigned 809\d to neighbour: tcp 80 {allowed}").text.split()[1]
    scene.answers(lambda: scene.host.outside.fetch(f"http://{PUBLIC4}:{assigned}/"), f"neighbour {CLIENT4}")
    withdraw(scene, scene.web)
    scene.answers(lambda: scene.host.outside.fetch(f"http://{PUBLIC4}:8001/"), f"neighbour {CLIENT4}")
    daemon.reload_with(HEAD)
    scene.refused(lambda: scene.host.outside.fetch(f"http://{PUBLIC4}:8001/"))
    wait_until(lambda: "no [[allow]] is for this domain" in daemon.process.text(), "it says why")


LIMITED = f"""
[[forward]]
domain = "neighbour"
ports = ["8005:80"]

[[allow]]
domains = ["WEB"]
networks = ["default"]
listen = ["{PUBLIC4}"]
ports = ["8000-8009"]
max = 2

[[allow]]
domains = ["neigh*"]
networks = ["other"]
ports = ["8000-8009"]
"""
BY_UUID, BY_NAME = "/etc/portfwd.toml:8", "/etc/portfwd.toml:15"


def test_each_limit_of_a_policy_holds_and_what_it_refuses_is_told_with_its_place(scene: Scene) -> None:
    at_public = f'listen="{PUBLIC4}"'
    ports = (*(f'ports="{port}:80" {at_public}' for port in (8000, 22, 8005)), f'ports="8003:80 8004:80" {at_public}')
    wide = ('ports="8001:80"', 'ports="8002:80" listen="192.168.122.1"')
    ask(scene, scene.web, "".join(f"<forward {item}/>" for item in (*ports, *wide)))
    ask(scene, scene.neighbour, f'<forward ports="8006:80" {at_public}/>')
    ask(scene, scene.far, f'<forward ports="8007:80" {at_public}/>')
    config = LIMITED.replace("WEB", scene.web.uuid)
    daemon = scene.daemon(config)
    for port in (8000, 8003):
        scene.answers(lambda port=port: scene.host.outside.fetch(url(PUBLIC4, port)), f"web {CLIENT4}")  # type: ignore[misc]
        daemon.wait_log(rf"^added web: tcp \S+:{port} -> .*; allowed by {BY_UUID}\)")
    for claim, reason in (
        (f"web: tcp {PUBLIC4}:22", f"the closest, {BY_UUID}, does not cover ports tcp 22"),
        (f"web: tcp {PUBLIC4}:8004", f"the closest, {BY_UUID}, does not cover max 2"),
        ("web: tcp *:8001", f"the closest, {BY_UUID}, does not cover listen *"),
        ("web: tcp 192.168.122.1:8002", f"the closest, {BY_UUID}, does not cover listen 192.168.122.1"),
        (f"neighbour: tcp {PUBLIC4}:8006", f"the closest, {BY_NAME}, does not cover networks default"),
        (f"far: tcp {PUBLIC4}:8007", "no [[allow]] is for this domain"),
        (f"web: tcp {PUBLIC4}:8005", "neighbour has it already (/etc/portfwd.toml:4)"),
    ):
        daemon.wait_log(rf"^declined {re.escape(claim)}, (no \[\[allow\]\] covers it; )?{re.escape(reason)} \(domain ")
    assert page(scene, 8005) == f"neighbour {CLIENT4}"
    assert not any(scene.host.outside.fetch(url(PUBLIC4, port)).answered for port in (8001, 8002, 8004, 8006, 8007))
    # A file may name later what is given already, which then counts for no policy any more.
    daemon.reload_with(HEAD + config.replace("8005:80", "8000:80"))
    daemon.wait_log(r"^removed neighbour: tcp \*:8005 -> \S+ \(configuration /etc/portfwd\.toml loaded again\)")
    daemon.wait_log(rf"^removed web: tcp {PUBLIC4}:8000 -> \S+ \(neighbour has it already \(/etc/portfwd\.toml:4\)\)")
    scene.answers(lambda: scene.host.outside.fetch(url(PUBLIC4, 8000)), f"neighbour {CLIENT4}")


@pytest.mark.in_turn
def test_who_claimed_a_port_first_keeps_it_from_older_guests_from_processes_and_over_a_start(scene: Scene) -> None:
    host, outside = scene.host, scene.host.outside
    daemon = scene.daemon(ALLOW, OFTEN)
    ask(scene, scene.neighbour, '<forward ports="8001:80" sources="0.0.0.0/0"/>')
    scene.answers(lambda: outside.fetch(url(PUBLIC4, 8001)), f"neighbour {CLIENT4}")
    ask(scene, scene.web, '<forward ports="8001:80 8002:80" sources="0.0.0.0/0"/>')
    scene.answers(lambda: outside.fetch(url(PUBLIC4, 8002)), f"web {CLIENT4}")
    ask(scene, scene.neighbour, '<forward ports="8001:80 8002:80" sources="0.0.0.0/0"/>')
    # One of the two has run for longer.
    daemon.wait_log(r"^declined web: tcp \*:8001, neighbour has it already")
    daemon.wait_log(r"^declined neighbour: tcp \*:8002, web has it already")
    listens = [host.place.serve("host", "tcp", port) for port in (8001, 8003)]
    try:
        daemon.wait_log(r"port 8001/tcp: python\S* \(pid \d+\) of the host listens there; .* will reach neighbour")
        ask(scene, scene.web, '<forward ports="8002:80 8003:80" sources="0.0.0.0/0"/>')
        daemon.wait_log(r"^declined web: tcp \*:8003, the host has it already")
        daemon.kill()
        again = scene.daemon(ALLOW, OFTEN)
        again.wait_log(r"^adopted 2 forwards")
        again.wait_log(r"^declined web: tcp \*:8003, the host has it already")
        assert page(scene, 8001) == f"neighbour {CLIENT4}"
        assert page(scene, 8002) == f"web {CLIENT4}"
    finally:
        for server in listens:
            server.stop()


@pytest.mark.in_turn
def test_what_is_asked_for_on_every_address_is_not_on_one_that_is_another_guests(scene: Scene) -> None:
    host, outside = scene.host, scene.host.outside
    ask(scene, scene.neighbour, '<forward ports="8080:80"/>')
    public = f'{ALLOW.replace("8099", "8080")}public = ["{MAIL4}"]\nassign = "eth0"\n'
    daemon = scene.daemon(public)
    scene.answers(lambda: outside.fetch(url(PUBLIC4, 8080)), f"neighbour {CLIENT4}")
    ask(scene, scene.web, f'<nat public="{MAIL4}"/>')
    scene.answers(lambda: outside.fetch(url(MAIL4, 8080)), f"web {CLIENT4}")
    daemon.wait_log(rf"^added web: all of {MAIL4} -> \S+ \(.*; allowed by /\S+:3\)")
    daemon.reload_with(HEAD + public)
    assert page(scene, 8080) == f"neighbour {CLIENT4}"
    assert outside.fetch(url(MAIL4, 8080)).text == f"web {CLIENT4}"
    # Held by the host for its own reasons, the address leads nowhere else while its guest is off.
    withdraw(scene, scene.web)
    wait_until(lambda: not holds(host, MAIL4), "the address goes")
    daemon.reload_with(f'{HEAD}{public}[[nat]]\ndomain = "nobody"\npublic = "{MAIL4}"\n')
    host.run("ip", "address", "add", f"{MAIL4}/32", "dev", "eth0")
    try:
        daemon.reload()
        scene.answers(lambda: outside.fetch(url(PUBLIC4, 8080)), f"neighbour {CLIENT4}")
        assert not outside.fetch(url(MAIL4, 8080)).answered
    finally:
        host.run("ip", "address", "del", f"{MAIL4}/32", "dev", "eth0")


@pytest.mark.in_turn
def test_a_new_definition_counts_from_the_next_start_and_a_clone_gets_what_is_left(scene: Scene) -> None:
    ask(scene, scene.web, '<forward ports="8000:80"/>')
    daemon = scene.daemon(ALLOW)
    scene.answers(lambda: scene.host.outside.fetch(f"http://{PUBLIC4}:8000/"), f"web {CLIENT4}")
    redefined(scene, scene.web, '<forward ports="8001:80"/>')
    assert page(scene, 8000) == f"web {CLIENT4}"
    assert not scene.host.outside.fetch(f"http://{PUBLIC4}:8001/").answered
    scene.web.stop()
    scene.web.start()
    scene.answers(lambda: scene.host.outside.fetch(f"http://{PUBLIC4}:8001/"), f"web {CLIENT4}")
    scene.refused(lambda: scene.host.outside.fetch(f"http://{PUBLIC4}:8000/"))
    clone = LxcGuest(scene.host, "web-clone", Link("default", ("192.168.122.20/24",)))
    try:
        cloned(scene.web, clone).start()
        daemon.wait_log(r"^declined web-clone: tcp \*:8001, web has it already \(domain web, metadata: forward 1\)")
        assert page(scene, 8001) == f"web {CLIENT4}"
        scene.web.stop()
        scene.answers(lambda: scene.host.outside.fetch(f"http://{PUBLIC4}:8001/"), f"web-clone {CLIENT4}")
    finally:
        clone.remove()


def redefined(scene: Scene, guest: LxcGuest, elements: str) -> None:
    """Define a domain that runs anew, as `virsh edit` does; what it asks for is all that differs."""
    with scene.host.libvirt.connection() as connection:
        domain = ET.fromstring(connection.lookupByName(guest.name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))  # noqa: S314  libvirt wrote it
        for before in domain.findall("metadata"):
            domain.remove(before)
        domain.append(ET.fromstring(f"<metadata><forwards xmlns='{NAMESPACE}'>{elements}</forwards></metadata>"))  # noqa: S314  it is ours
        connection.defineXML(ET.tostring(domain, encoding="unicode"))


def cloned(original: LxcGuest, clone: LxcGuest) -> LxcGuest:
    """Define a domain that differs in name, UUID and interface, as `virt-clone` does, and so asks for the same."""
    with original.domain() as domain:
        metadata = ET.fromstring(domain.XMLDesc()).find("metadata")  # noqa: S314  libvirt wrote it
    assert metadata is not None
    clone.define()
    set_metadata(clone, NAMESPACE, ET.tostring(metadata[0], encoding="unicode"), live=False)
    return clone


class GuestWithDisk(QemuGuest):
    """Where its disk is of QEMU's own format, libvirt keeps its memory in there."""

    _disk = "/var/lib/libvirt/vm.qcow2"

    def _xml(self) -> ET.Element:
        domain = super()._xml()
        devices = domain.find("devices")
        assert devices is not None
        disk = ET.SubElement(devices, "disk", type="file", device="disk")
        ET.SubElement(disk, "driver", name="qemu", type="qcow2")
        ET.SubElement(disk, "source", file=self._disk)
        ET.SubElement(disk, "target", dev="vda", bus="virtio")
        return domain

    def prepare(self) -> None:
        """Make an empty disk of 64 MiB: its header, then the table of counts, the counts and the table of the disk."""
        super().prepare()
        header = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 16, 64 << 20, 0, 1, 3 << 16, 1 << 16, 1, 0, 0)
        parts = (header, struct.pack(">Q", 2 << 16), struct.pack(">4H", 1, 1, 1, 1), b"")
        image = b"".join(part.ljust(1 << 16, b"\0") for part in parts)
        (Path(f"/proc/{self.host.init}/root") / self._disk.lstrip("/")).write_bytes(image)


@pytest.mark.in_turn
def test_a_guest_that_is_reverted_gets_what_it_asked_for_then(
    host: Host, network: MakeNetwork, daemon: StartDaemon
) -> None:
    network("apart", "192.168.140.0/24")
    guest = GuestWithDisk(host, "vm", Link("apart", ("192.168.140.50/24",))).start()
    try:
        set_metadata(guest, NAMESPACE, "<forwards><forward ports='8000:80'/></forwards>")
        daemon('[daemon]\nlibvirt = ["qemu:///system"]\n' + ALLOW.replace('"we*"', '"vm"').replace("default", "apart"))
        is_at(host, 8000)
        with guest.domain() as domain:
            snapshot = domain.snapshotCreateXML("<domainsnapshot><name>then</name></domainsnapshot>")
            set_metadata(guest, NAMESPACE, "<forwards><forward ports='8001:80'/></forwards>")
            is_at(host, 8001)
            domain.revertToSnapshot(snapshot, libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING)
            is_at(host, 8000)
            wait_until(
                lambda: not host.outside.fetch(f"http://{PUBLIC4}:8001/").answered, "what it asked for later is gone"
            )
            snapshot.delete()
    finally:
        guest.remove()


def is_at(host: Host, port: int) -> None:
    wait_until(lambda: host.outside.fetch(f"http://{PUBLIC4}:{port}/").text == f"vm {CLIENT4}", f"{port} answers")


class TransientGuest(LxcGuest):
    """A guest of which libvirt keeps nothing once it has stopped, with two ports in its definition."""

    def _xml(self) -> ET.Element:
        domain = super()._xml()
        forwards = ET.SubElement(ET.SubElement(domain, "metadata"), f"{{{NAMESPACE}}}forwards")
        ET.SubElement(forwards, f"{{{NAMESPACE}}}forward", ports="8000:80")
        return domain

    def start(self) -> Self:
        """Create it, and wait until its page can be had."""
        self.prepare()
        with self.host.libvirt.connection(self.driver) as connection:
            connection.createXML(ET.tostring(self._xml(), encoding="unicode"))
        self.wait_up()
        return self


@pytest.mark.in_turn
def test_a_transient_guest_keeps_what_it_asks_for_over_reboots(scene: Scene) -> None:
    """There is no definition but the live one, so what was changed there since the start stays, too."""
    guest = TransientGuest(scene.host, "web-passing", Link("default", ("192.168.122.21/24",))).start()
    try:
        guest.speak("192.168.122.1")
        scene.daemon(ALLOW)
        scene.answers(lambda: scene.host.outside.fetch(f"http://{PUBLIC4}:8000/"), f"web-passing {CLIENT4}")
        ask(scene, guest, '<forward ports="8001:80"/>')
        for _ in range(2):
            guest.reboot()
            scene.answers(lambda: scene.host.outside.fetch(f"http://{PUBLIC4}:8001/"), f"web-passing {CLIENT4}")
            scene.refused(lambda: scene.host.outside.fetch(f"http://{PUBLIC4}:8000/"))
    finally:
        guest.remove()
