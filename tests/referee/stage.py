"""The stage: hosts with libvirtd and a daemon each on one link, members of etcd beside them, and a client."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import libvirt

from tests.lab.daemon import Daemon
from tests.lab.domain import Link
from tests.lab.etcd import Etcd, Tls, certificates, cluster
from tests.lab.host import Host
from tests.lab.place import wait_until
from tests.lab.qemu import QemuGuest
from tests.lab.release import Flavour

ADDRESSES = ("198.51.100.1", "198.51.100.3", "198.51.100.4")
COPIES = ("198.51.102.1", "198.51.102.2", "198.51.102.3")
MEMBERS = ("198.51.100.11", "198.51.100.12", "198.51.100.13")
GUEST = "vm"
VM4 = "192.168.122.50"
PUBLIC = "198.51.100.8"
TABLE = f'[[nat]]\ndomain = "{GUEST}"\npublic = "{PUBLIC}"\nassign = "eth0"\naddress = "{VM4}"\n'


@dataclass(slots=True)
class Net:
    """A network of its own, which ends with its holder."""

    process: "subprocess.Popen[bytes]"

    @classmethod
    def begin(cls) -> "Net":
        """Make it."""
        holder = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"]
        net = cls(subprocess.Popen(holder))  # noqa: S603  own words
        mine = Path("/proc/self/ns/net").stat().st_ino
        wait_until(lambda: Path(net.path).stat().st_ino != mine, "it has a network of its own")
        net.ip("link", "set", "lo", "up")
        return net

    @property
    def path(self) -> str:
        """Where it is found."""
        return f"/proc/{self.process.pid}/ns/net"

    def ip(self, *words: str) -> None:
        """Change it."""
        run_in(self.path, "ip", *words)

    def end(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def run_in(namespace: str, *words: str) -> str:
    """Run a program of the machine in a network."""
    argv = ["nsenter", f"--net={namespace}", *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout  # noqa: S603  own words


@dataclass(slots=True)
class Stage:
    """All of it. `daemons` is by the number of the host; a host without one has `None`."""

    hosts: list[Host]
    etcd: list[Etcd]
    nets: list[Net]
    tls: Tls
    daemons: dict[int, Daemon | None] = field(default_factory=dict)

    @property
    def config(self) -> str:
        """What the daemon of each host is configured with."""
        urls = ", ".join(f'"{member.url}"' for member in self.etcd)
        return f'[daemon]\nlibvirt = ["qemu:///system"]\n[fleet]\netcd = [{urls}]\nca = "/etc/etcd-ca.pem"\n'

    def begin_daemon(self, number: int) -> None:
        """Start the daemon of a host, unless it runs."""
        daemon = self.daemons.get(number)
        if daemon is None or not daemon.process.running:
            self.daemons[number] = self.hosts[number].daemon(self.config, wait=False)

    def guest_on(self, number: int) -> QemuGuest:
        """The guest as a host knows it."""
        return QemuGuest(self.hosts[number], GUEST, Link("default", (f"{VM4}/24",)))

    def runs_on(self) -> list[int]:
        """Tell on which hosts the guest's processors run."""
        return [number for number in range(len(self.hosts)) if self._runs_on(number)]

    def _runs_on(self, number: int) -> bool:
        guest = self.guest_on(number)
        try:
            return guest.defined and guest.state()[0] == libvirt.VIR_DOMAIN_RUNNING
        except libvirt.libvirtError:  # libvirtd was killed
            return False

    def answers(self) -> bool:
        """Whether the guest is reached at its public address."""
        return self.hosts[0].outside.fetch(f"http://{PUBLIC}/").text.startswith(f"{GUEST} ")

    def ctl(self, *words: str) -> str:
        """Ask the members of etcd, of which one has to answer."""
        errors: list[Any] = []
        for member in self.etcd:
            try:
                return member.ctl("--command-timeout=3s", *words)
            except subprocess.CalledProcessError as error:
                errors.append(error)
        raise errors[0]


@contextmanager
def staged(flavour: Flavour) -> Iterator[Stage]:
    """Boot it all: three hosts with a daemon each, the guest on the first, and the table in etcd."""
    place = Path(mkdtemp(prefix="referee-", dir="/dev/shm"))
    with ExitStack() as at_end:
        at_end.callback(shutil.rmtree, place, ignore_errors=True)
        hosts = [at_end.enter_context(Host.boot(flavour)) for _ in ADDRESSES]
        nets = [Net.begin() for _ in MEMBERS]
        for net in nets:
            at_end.callback(net.end)
        _join(hosts, nets)
        tls = certificates(place, *MEMBERS)
        etcd = cluster(MEMBERS, lambda number: ("nsenter", f"--net={nets[number].path}"), tls)
        for member in etcd:
            at_end.callback(member.remove)
            member.start()
        stage = Stage(hosts, etcd, nets, tls)
        etcd[0].wait_answers()
        etcd[0].ctl("put", "/portfwd/v1/entries/guest", TABLE)
        _begin_guests(stage, at_end)
        for number in range(len(hosts)):
            stage.begin_daemon(number)
        wait_until(stage.answers, "the guest is reached at its public address")
        yield stage


def _begin_guests(stage: Stage, at_end: ExitStack) -> None:
    for number, host in enumerate(stage.hosts):
        if number:
            host.run("hostname", f"host{number}")
        host.write("/etc/etcd-ca.pem", stage.tls.ca.read_text())
        host.libvirt.start()
        host.libvirt.define_network("default", "192.168.122.0/24", mac="52:54:00:12:20:01")
        stage.guest_on(number).prepare()
    guest = stage.guest_on(0)
    guest.start()
    at_end.callback(_remove_guest, stage)
    guest.wait_up()


def _remove_guest(stage: Stage) -> None:
    for number in stage.runs_on():
        stage.guest_on(number).remove()


def _join(hosts: list[Host], nets: list[Net]) -> None:
    """Put all hosts and members on the link of the first host's client, and the hosts on one for copies of guests."""
    lan = str(hosts[0].outside.namespace)
    for words in (
        *("link set eth0 down", "address flush dev eth0", "link set eth0 name port0", "link add eth0 type bridge"),
        *("link set port0 master eth0", "link set port0 up", "link set eth0 up", "link add copies type bridge"),
        *("address add 198.51.100.2/24 dev eth0", "link set copies up"),
    ):
        run_in(lan, "ip", *words.split())
    for number, host in enumerate(hosts):
        if number:
            host.run("ip", "link", "delete", "eth0")
            _plug(lan, f"port{number}", "eth0", ("eth0", host.init, ADDRESSES[number]))
            host.run("ip", "route", "add", "default", "via", "198.51.100.2")
        _plug(lan, f"copy{number}", "copies", ("move", host.init, COPIES[number]))
    for number, net in enumerate(nets):
        _plug(lan, f"etcd{number}", "eth0", ("eth0", net.process.pid, MEMBERS[number]))


def _plug(lan: str, port: str, bridge: str, end: tuple[str, int, str]) -> None:
    """Make a link from a bridge to a network: what it is called there, a process of it, and its address."""
    name, pid, address = end
    namespace = f"/proc/{pid}/ns/net"
    run_in(lan, "ip", "link", "add", port, "master", bridge, "type", "veth", "peer", "name", name, "netns", str(pid))
    run_in(lan, "ip", "link", "set", port, "up")
    run_in(namespace, "ip", "link", "set", name, "up")
    run_in(namespace, "ip", "address", "add", f"{address}/24", "dev", name)
