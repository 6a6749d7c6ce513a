"""libvirt's modular daemons: the guests' and the networks' are two, that stop and start independently.

Debian packages the monolithic daemon alone. Two of it, with one driver each and their sockets where virtlxcd and
virtnetworkd have theirs, are what Fedora and EL run.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.command import LabError
from tests.lab.computer import CLIENT4, PUBLIC4
from tests.lab.domain import Link
from tests.lab.lxc import LxcGuest
from tests.lab.machine import Machine
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall
from tests.system.sandbox import CONFIG, HEAD

pytestmark = [pytest.mark.on(LibvirtFirewall.IPTABLES, LibvirtFirewall.NFTABLES), pytest.mark.in_turn]

PAGE = f"http://{PUBLIC4}:8080/"
CONFIGURATION = f"""{HEAD}
[[forward]]
domain = "web"
address = "192.168.122.10"
ports = ["8080:80"]

[[route]]
network = "public"
addresses = ["203.0.113.64/29"]
"""
# Debian's clients look for the monolithic daemon's socket otherwise.
CLIENTS = "/etc/libvirt/libvirt.conf"
NETWORK_DAEMON = "/usr/sbin/virtnetworkd"
DRIVERS = "/usr/lib/x86_64-linux-gnu/libvirt/connection-driver"


class ModularDaemon:
    """One driver's daemon."""

    def __init__(self, machine: Machine, driver: str) -> None:
        self._machine = machine
        self._driver, self._starts = driver, 0
        self._directory = f"/run/lab-{driver}"
        self.socket = f"/run/libvirt/virt{driver}d-sock"
        module = f"libvirt_driver_{driver}.so"
        machine.run("mkdir", "-p", f"{self._directory}/sockets")
        machine.run("ln", "-sf", f"{DRIVERS}/{module}", f"{self._directory}/{module}")
        settings = f'unix_sock_dir = "{self._directory}/sockets"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n'
        machine.write(f"{self._directory}/libvirtd.conf", settings)

    @property
    def _unit(self) -> str:
        return f"lab-{self._driver}-{self._starts}.service"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        command = ["/usr/sbin/libvirtd", "--config", f"{self._directory}/libvirtd.conf"]
        pid_file = ["--pid-file", f"{self._directory}/pid"]
        settings = f"--setenv=LIBVIRT_DRIVER_DIR={self._directory}", "--property=KillMode=process"
        # Another unit each time: the guests of the last one's may live on in it.
        self._starts += 1
        self._machine.run("systemd-run", "--unit", self._unit, "--collect", *settings, *command, *pid_file)
        listening = f"{self._directory}/sockets/libvirt-sock"
        wait_until(lambda: self._machine.run("test", "-S", listening, check=False).returncode == 0, "the socket")
        self._machine.run("ln", "--symbolic", "--force", "--relative", listening, self.socket)

    def stop(self) -> None:
        """Stop it; what it looks after stays."""
        self._machine.run("rm", "-f", self.socket)
        self._machine.systemctl("stop", self._unit, check=False)


@pytest.fixture
def daemons(machine: Machine, package: Path) -> Iterator[tuple[ModularDaemon, ModularDaemon]]:
    """The guests' and the networks' daemons instead of the monolithic one, with the service beside them."""
    machine.install(package)
    machine.libvirt.stop()
    guests, networks = ModularDaemon(machine, "lxc"), ModularDaemon(machine, "network")
    with ExitStack() as at_end:
        at_end.callback(machine.write, CLIENTS, machine.read(CLIENTS))
        machine.write(CLIENTS, 'remote_mode = "direct"\n')
        machine.run("ln", "--symbolic", "--force", "libvirtd", NETWORK_DAEMON)
        at_end.callback(machine.run, "rm", NETWORK_DAEMON)
        at_end.callback(machine.libvirt.start)
        at_end.callback(machine.run, "rm", "-f", "/run/libvirt/libvirt-sock")
        for daemon in (networks, guests):
            at_end.callback(daemon.stop)
            daemon.start()
        # Where the lab's own client looks.
        machine.run("ln", "--symbolic", "--force", "--relative", guests.socket, "/run/libvirt/libvirt-sock")
        yield guests, networks
        machine.systemctl("stop", "kvm-portfwd.service")
        machine.run("kvm-portfwd", "flush")


def test_both_come_and_go_independently(machine: Machine, daemons: tuple[ModularDaemon, ModularDaemon]) -> None:
    guests, networks = daemons
    for name, third in (("default", 122), ("public", 130)):
        start_network(machine, name, third)
    # A guests' daemon made of the monolithic one asks no daemon for networks, so the guest names the bridge.
    web = LxcGuest(machine, "web", Link("", bridge="virbr122", addresses=("192.168.122.10/24",)))
    web.start()
    machine.write(CONFIG, CONFIGURATION)
    machine.systemctl("restart", "kvm-portfwd.service")
    answers(machine)

    networks.stop()
    said = says(machine, "lost libvirt at lxc:///system")
    answers(machine)
    networks.start()
    said = says(machine, "libvirt at lxc:///system answers again", after=said)
    # What is heard of networks now comes from the daemon that was started again.
    networking(machine, "net-destroy", "public")
    said = says(machine, "removed network public: route 203.0.113.64/29", after=said)
    networking(machine, "net-start", "public")
    said = says(machine, "added network public: route 203.0.113.64/29", after=said)

    guests.stop()
    said = says(machine, "lost libvirt at lxc:///system", after=said)
    answers(machine)
    guests.start()
    said = says(machine, "libvirt at lxc:///system answers again", after=said)
    web.stop()
    says(machine, "removed web: tcp *:8080", after=said)
    web.start()
    answers(machine)

    web.remove()
    for name in ("default", "public"):
        networking(machine, "net-destroy", name)
        networking(machine, "net-undefine", name)


def start_network(machine: Machine, name: str, third: int) -> None:
    """Make a network by its own daemon; the other has no driver for it."""
    bridge = f'<bridge name="virbr{third}" stp="off" delay="0"/>'
    address = f'<ip address="192.168.{third}.1" prefix="24"/>'
    path = f"/run/{name}.xml"
    machine.write(path, f'<network><name>{name}</name><forward mode="nat"/>{bridge}{address}</network>')
    networking(machine, "net-define", path)
    networking(machine, "net-start", name)


def networking(machine: Machine, *words: str) -> None:
    """Have virsh ask the networks' daemon."""
    machine.run("virsh", "--quiet", "--connect", "network:///system", *words)


def answers(machine: Machine) -> None:
    """Wait until the guest's page can be had."""
    wait_until(lambda: machine.outside.fetch(PAGE).text == f"web {CLIENT4}", "the page")


def says(machine: Machine, text: str, *, after: int = -1) -> int:
    """Wait until the service's journal has a line with this text, and give its place; `after` is that of another."""

    def lines() -> list[str]:
        return [entry["MESSAGE"] for entry in machine.journal("--unit=kvm-portfwd")]

    def found() -> int:
        return next((place for place, line in enumerate(lines()) if place > after and text in line), -1)

    try:
        wait_until(lambda: found() >= 0, f"the line {text!r}")
    except LabError:
        pytest.fail(f"no line {text!r} after line {after} of\n" + "\n".join(lines()))
    return found()
