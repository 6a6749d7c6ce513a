"""Domains that change: renamed, undefined, crashed, saved, or with one interface more or less."""

import time

import pytest

from tests.conftest import MakeNetwork, MakeQemuGuest, StartDaemon
from tests.host.conftest import Conversation, Scene, entry, rules_have_no_part
from tests.lab.daemon import Daemon
from tests.lab.domain import Link, mac_of
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.libvirt_client import Reservation
from tests.lab.place import wait_until
from tests.lab.qemu import ECHO_PORT, QemuGuest

URL, SECOND_URL = f"http://{PUBLIC4}:8000/", f"http://{PUBLIC4}:8001/"
QEMU_HEAD = '[daemon]\nlibvirt = ["qemu:///system"]\n'
WEB = entry("web", "8000:80 9000", "WEB4")
VM4 = "192.168.122.50"


def learned(domain: str, *ports: str, more: str = "") -> str:
    listed = ", ".join(f'"{port}"' for port in ports)
    return f'[[forward]]\ndomain = "{domain}"\nports = [{listed}]\n{more}\n'


def answers(host: Host, text: str, url: str = URL) -> None:
    wait_until(lambda: host.outside.fetch(url).text == text, f"{url} answers {text!r}")


def refused(host: Host, url: str = URL) -> None:
    wait_until(lambda: not host.outside.fetch(url).answered, f"{url} is closed")


def added_and_removed(daemon: Daemon) -> list[str]:
    return [line.text for line in daemon.log_lines() if line.text.startswith(("added vm", "removed vm"))]


@rules_have_no_part
def test_undefined_while_it_runs_it_stays_until_it_stops(scene: Scene) -> None:
    scene.web.serve_tcp(9000)
    daemon = scene.daemon(WEB)
    conversation = scene.converse(9000)
    with scene.web.domain() as domain:
        domain.undefine()
    wait_until(lambda: "web" not in scene.host.libvirt.virsh("list", "--persistent", "--all"), "web is transient")
    assert conversation.goes_on()
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    scene.web.stop()
    daemon.wait_log(r"^removed web: tcp \*:8000 -> 192\.168\.122\.10:80 \(.*domain web stopped \(destroyed\)")
    scene.refused(lambda: scene.host.outside.fetch(URL))
    wait_until(lambda: not conversation.goes_on(), "the connection ends")


@pytest.mark.in_turn
@rules_have_no_part
def test_killed_with_its_controller(scene: Scene) -> None:
    scene.web.serve_tcp(9000)
    daemon = scene.daemon(WEB)
    conversation = scene.converse(9000)
    scene.web.crash_controller()
    daemon.wait_log(r"^removed web: tcp \*:9000 -> 192\.168\.122\.10:9000 \(domain web stopped \((failed|crashed)\)")
    scene.refused(lambda: scene.host.outside.fetch(URL))
    wait_until(lambda: not conversation.goes_on(), "the connection ends")


@pytest.fixture
def vm(host: Host, network: MakeNetwork, qemu_guest: MakeQemuGuest) -> QemuGuest:
    """A guest that is always given one address, and is not started."""
    assert host.libvirt.running
    network("default", "192.168.122.0/24", dhcp=True, reservations=[Reservation(mac_of("vm"), VM4)])
    network("other", "192.168.123.0/24", dhcp=True)
    return qemu_guest("vm", Link("default", dhcp=True), start=False)


@pytest.mark.in_turn
@rules_have_no_part
def test_a_renamed_domain_is_found_by_its_uuid_and_by_its_new_name(vm: QemuGuest, daemon: StartDaemon) -> None:
    by_old_name, by_uuid = learned("vm", "8000:80"), learned(vm.uuid, "8001:80")
    running = daemon(QEMU_HEAD + by_old_name + by_uuid)
    vm.start_paused()
    running.wait_log(rf"^added vm: tcp \*:8000 -> {VM4}:80 \(domain vm started")
    running.wait_log(rf"^added vm: tcp \*:8001 -> {VM4}:80 \(domain vm started")
    vm.stop()
    running.wait_log(r"^removed vm: tcp \*:8001 -> .*\(.*domain vm stopped \(destroyed\)")
    vm.rename("renamed")
    vm.start_paused()
    running.wait_log(rf"^added renamed: tcp \*:8001 -> {VM4}:80 \(.*domain renamed (started|defined \(renamed\))")
    assert ":8000" not in "".join(line.text for line in running.log_lines() if line.text.startswith("added renamed"))
    running.reload_with(QEMU_HEAD + by_old_name + learned("renamed", "8002:80"))
    running.wait_log(rf"^added renamed: tcp \*:8002 -> {VM4}:80 ")
    vm.stop()
    running.wait_log(r"^removed renamed: tcp \*:8002 -> .*\(.*domain renamed stopped \(destroyed\)")


@rules_have_no_part
def test_the_life_of_a_virtual_machine(host: Host, vm: QemuGuest, daemon: StartDaemon) -> None:
    """One boot serves all: paused, with a second interface for a while, saved, restored, reset, and crashed."""
    first = learned("vm", "8000:80", f"9000:{ECHO_PORT}")
    running = daemon(QEMU_HEAD + first + learned("vm", "8001:80", more='network = "other"'))
    vm.start()
    running.wait_log(r"^waiting vm: has no interface on network other \(.*portfwd\.toml:7\)")
    answers(host, f"vm {CLIENT4}")
    conversation = Conversation(host.outside, PUBLIC4, 9000)
    assert conversation.greeting == "vm"

    vm.pause()
    vm.resume()
    assert conversation.goes_on()
    _plug_in_and_out(host, vm, running)
    assert conversation.goes_on()
    assert not [text for text in added_and_removed(running) if "removed" in text and ":8001" not in text]

    vm.save()
    running.wait_log(rf"^removed vm: tcp \*:9000 -> {VM4}:{ECHO_PORT} \(.*domain vm stopped \(saved\)")
    refused(host)
    assert not conversation.goes_on()
    conversation.close()
    lines = len(running.log_lines())
    vm.start()
    running.wait_log(rf"^added vm: tcp \*:8000 -> {VM4}:80 \(.*domain vm (resumed|started \(restored\))", start=lines)
    answers(host, f"vm {CLIENT4}")

    lines = len(running.log_lines())
    vm.reset()
    time.sleep(1)
    assert not [line.text for line in running.log_lines()[lines:] if line.text.startswith(("removed", "added"))]

    vm.crash()
    running.wait_log(rf"^removed vm: tcp \*:8000 -> {VM4}:80 \(.*domain vm stopped \(failed\)", start=lines)
    refused(host)


def _plug_in_and_out(host: Host, vm: QemuGuest, running: Daemon) -> None:
    other = Link("other")
    vm.wait_up()
    vm.plug_in(other, 1)
    running.wait_log("^waiting vm: no address yet: no lease, agent or neighbour names one")
    # What was live stays where it leads, and it is said what to write.
    stays = rf"write network = … or mac = …; until then it leads to {vm.mac(0)} \(.*portfwd\.toml:3\)"
    running.wait_log(rf"^warning: domain vm has 2 interfaces \({vm.mac(0)} on network default, .*: {stays}")
    wait_until(lambda: "eth1" in vm.run("ls", "/sys/class/net"), "the guest sees its second interface")
    vm.run("ip", "link", "set", "eth1", "up")
    vm.run("sh", "-c", "udhcpc -i eth1 -s /dhcp -T 1 -t 20 -n -q >/dev/null 2>&1 </dev/null")
    # By its lease, by the neighbour table or by its agent, whichever is first.
    running.wait_log(r"^added vm: tcp \*:8001 -> 192\.168\.123\.\d+:80 ")
    answers(host, f"vm {CLIENT4}", SECOND_URL)
    vm.unplug(other, 1)
    running.wait_log(r"^removed vm: tcp \*:8001 -> .*\(devices of domain vm changed")
    refused(host, SECOND_URL)
