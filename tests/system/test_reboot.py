"""A reboot of the machine: what starts by itself is reachable by itself, before it could answer."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from fwdaemon.audit.journal import MESSAGE_IDS
from tests.lab.computer import CLIENT4, PUBLIC4
from tests.lab.domain import Link, mac_of
from tests.lab.libvirt_client import Reservation
from tests.lab.lxc import LxcGuest
from tests.lab.machine import UNIT, Entry, Machine
from tests.lab.place import wait_until
from tests.lab.qemu import QemuGuest
from tests.lab.release import LibvirtFirewall
from tests.system.sandbox import CONFIG

# One machine of each release is enough: systemd does not care where libvirt's rules are.
pytestmark = pytest.mark.on(LibvirtFirewall.IPTABLES, LibvirtFirewall.NFTABLES)

_CONFIG = """
[daemon]
libvirt = ["qemu:///system", "lxc:///system"]
auto_ports = "20000-20001"

[[forward]]
domain = "web"
address = "192.168.122.10"
ports = ["auto:443"]

[[forward]]
domain = "vm"
ports = ["8080:80"]

[[forward]]
domain = "web"
address = "192.168.122.10"
ports = ["8081:80"]

[[forward]]
domain = "off"
address = "192.168.122.11"
ports = ["8082:80"]
"""
VM4 = "192.168.122.50"
_CLAIM = """
[[forward]]
domain = "off"
address = "192.168.122.11"
ports = ["{port}:443"]
"""


@dataclass(frozen=True, slots=True)
class Rebooted:
    """A machine after its reboot, and the port that a guest was assigned before, and would not be again."""

    machine: Machine
    port: int


@pytest.fixture
def rebooted(module_machine: Machine, package: Path) -> Rebooted:
    """A machine with guests that start with it, after its reboot; the package was installed before."""
    machine = module_machine
    machine.install(package)
    machine.write(CONFIG, _CONFIG)
    machine.libvirt.define_network(
        "default", "192.168.122.0/24", dhcp=True, reservations=[Reservation(mac_of("vm"), VM4)]
    )
    machine.libvirt.virsh("net-autostart", "default")
    vm = QemuGuest(machine, "vm", Link("default", dhcp=True)).define()
    web = LxcGuest(machine, "web", Link("default", ("192.168.122.10/24",))).start()
    LxcGuest(machine, "off", Link("default", ("192.168.122.11/24",))).define()
    for guest in (vm, web):
        machine.libvirt.virsh("autostart", guest.name, driver=guest.driver)
    machine.run("kvm-portfwd", "reload")
    wait_until(lambda: machine.outside.fetch(f"http://{PUBLIC4}:8081/").answered, "web's forward before the reboot")
    port = moved(machine)
    # It runs when the machine goes down, and is not started again.
    LxcGuest(machine, "off", Link("default", ("192.168.122.11/24",))).start()
    wait_until(lambda: machine.outside.fetch(f"http://{PUBLIC4}:8082/").answered, "the forward before the reboot")
    machine.reboot()
    return Rebooted(machine, port)


def moved(machine: Machine) -> int:
    """Have a guest assigned another port than the first that it would get, by an entry that is there for a while."""
    ports: list[int] = []
    for claim in ("", _CLAIM, ""):
        machine.write(CONFIG, _CONFIG + claim.format(port=ports[-1] if ports else None))
        machine.run("kvm-portfwd", "reload")
        ports.append(assigned(machine))
    assert ports[0] != ports[1] == ports[2]
    return ports[-1]


def assigned(machine: Machine) -> int:
    return int(machine.run("kvm-portfwd", "port", "--port-only", "web", "443").stdout)


def answered(machine: Machine, name: str, port: int) -> None:
    """Wait until a guest does."""
    wait_until(
        lambda: machine.outside.fetch(f"http://{PUBLIC4}:{port}/").text == f"{name} {CLIENT4}",
        f"{name} answers",
        timeout=120,
    )


def first(entries: list[Entry]) -> int:
    """When the first of them was written, in microseconds."""
    return int(entries[0]["__REALTIME_TIMESTAMP"])


def test_after_a_reboot_everything_is_back_before_the_guest_could_answer(rebooted: Rebooted) -> None:
    machine = rebooted.machine
    answered(machine, "web", 8081)
    answered(machine, "web", rebooted.port)
    assert assigned(machine) == rebooted.port
    answered(machine, "vm", 8080)
    added = machine.journal("--boot", f"--unit={UNIT}", f"MESSAGE_ID={MESSAGE_IDS['added']}", "PORTFWD_DOMAIN=vm")
    leases = machine.journal("--boot", "SYSLOG_IDENTIFIER=dnsmasq-dhcp")
    acknowledged = [entry for entry in leases if f"DHCPACK(virbr0) {VM4}" in entry["MESSAGE"]]
    assert first(added) < first(acknowledged)
    assert "192.168.122.11" not in machine.own_rules()
    assert machine.property("NRestarts") == "0"
    problems = machine.journal("--boot", f"--unit={UNIT}", "--priority=err")
    assert [entry["MESSAGE"] for entry in problems] == []
