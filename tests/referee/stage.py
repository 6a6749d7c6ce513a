"""The stage: hosts with libvirtd, a daemon and BIRD each on one link, members of etcd beside them, a router and client.

Of the two guests, `vm` migrates, and its address is on the link; `web` is started anew elsewhere, and its address is a
route that BIRD announces.
"""

import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

import libvirt

from tests.lab import bird
from tests.lab.computer import CLIENT4, SOURCE
from tests.lab.daemon import Daemon
from tests.lab.domain import Link
from tests.lab.etcd import Etcd, Tls, certificates, cluster, programs_of
from tests.lab.host import Host
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until
from tests.lab.qemu import QemuGuest
from tests.lab.release import Flavour

ADDRESSES = ("198.51.100.1", "198.51.100.3", "198.51.100.4")
COPIES = ("198.51.102.1", "198.51.102.2", "198.51.102.3")
MEMBERS = ("198.51.100.11", "198.51.100.12", "198.51.100.13")
VM, WEB = "vm", "web"
VM4, WEB4 = "192.168.122.50", "192.168.122.60"
# By guest, its public address and the interface that has it.
PUBLIC: Final = {VM: ("198.51.100.8", "eth0"), WEB: ("198.51.100.65", "lo")}
ENTRIES, STEADY = "/portfwd/v1/entries", "guests"
TABLE = "".join(
    f'[[nat]]\ndomain = "{name}"\npublic = "{public}"\nassign = "{interface}"\naddress = "{address}"\n'
    for (name, (public, interface)), address in zip(PUBLIC.items(), (VM4, WEB4), strict=True)
)
_CLOCK, _CLOCK_FILE = "/run/lab-clock.so", "/run/lab-clock"


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
    place: Path
    guests: Collection[str]
    daemons: dict[int, Daemon | None] = field(default_factory=dict)
    birds: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @property
    def lan(self) -> str:
        """The network that all links lead to, in which the router and the client are."""
        return str(self.hosts[0].outside.namespace)

    @property
    def config(self) -> str:
        """What the daemon of each host is configured with."""
        urls = ", ".join(f'"{member.url}"' for member in self.etcd)
        libvirts = '"qemu:///system", "lxc:///system"'
        return f'[daemon]\nlibvirt = [{libvirts}]\n[fleet]\netcd = [{urls}]\nca = "/etc/etcd-ca.pem"\n'

    def begin_daemon(self, number: int) -> None:
        """Start the daemon of a host, unless it runs; the clock on its wall is that of the host."""
        daemon = self.daemons.get(number)
        if daemon is None or not daemon.process.running:
            through = ("env", f"LD_PRELOAD={_CLOCK}", f"LAB_CLOCK={_CLOCK_FILE}")
            self.daemons[number] = self.hosts[number].daemon(self.config, wait=False, through=through)

    def move_clock(self, number: int, seconds: int) -> None:
        """Put the clock on the wall of a host's daemon forward by so much."""
        # Into the file as it is: the daemon has it in its memory.
        with Path(f"/proc/{self.hosts[number].init}/root{_CLOCK_FILE}").open("r+b") as file:
            file.write(struct.pack("=q", seconds))

    def wake(self) -> None:
        """Let go on what was stopped along with a program that it has started and waits for."""
        for child in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
            for pid in child.read_text().split():
                with suppress(OSError):
                    if Path(f"/proc/{pid}/comm").read_text() == "nsenter\n":
                        os.kill(int(pid), signal.SIGCONT)

    def vm_on(self, number: int) -> QemuGuest:
        """The guest that migrates, as a host knows it."""
        return QemuGuest(self.hosts[number], VM, Link("default", (f"{VM4}/24",)))

    def web_on(self, number: int) -> LxcGuest:
        """The guest that is started anew, as a host knows it."""
        return LxcGuest(self.hosts[number], WEB, Link("default", (f"{WEB4}/24",)))

    def runs_on(self, name: str) -> list[int]:
        """Tell on which hosts a guest's processors run."""
        on = self.vm_on if name == VM else self.web_on
        return [number for number in range(len(self.hosts)) if _runs(on(number))]

    def answers(self, name: str) -> bool:
        """Whether a guest is reached at its public address."""
        return self.hosts[0].outside.fetch(f"http://{PUBLIC[name][0]}/").text.startswith(f"{name} ")

    def ctl(self, *words: str) -> str:
        """Ask the members of etcd, of which one has to answer."""
        errors: list[Any] = []
        for member in self.etcd:
            try:
                return member.ctl("--command-timeout=3s", *words)
            except subprocess.CalledProcessError as error:
                errors.append(error)
        raise errors[0]


def _runs(guest: QemuGuest | LxcGuest) -> bool:
    try:
        with guest.domain() as domain:
            state: Any = domain.state()
            return bool(state[0] == libvirt.VIR_DOMAIN_RUNNING)
    except libvirt.libvirtError:  # it is not there, or libvirtd was killed
        return False


@contextmanager
def staged(flavour: Flavour, guests: Collection[str] = tuple(PUBLIC)) -> Iterator[Stage]:
    """Boot it all: three hosts, guests on the first, and the table in etcd."""
    place = Path(mkdtemp(prefix="referee-", dir="/dev/shm"))
    with ExitStack() as at_end:
        at_end.callback(shutil.rmtree, place, ignore_errors=True)
        hosts = [at_end.enter_context(Host.boot(flavour)) for _ in ADDRESSES]
        nets = [Net.begin() for _ in MEMBERS]
        for net in nets:
            at_end.callback(net.end)
        _join(hosts, nets)
        tls = certificates(place, *MEMBERS)
        etcd = cluster(
            MEMBERS, lambda number: ("nsenter", f"--net={nets[number].path}"), tls, programs_of(flavour.release)
        )
        for member in etcd:
            at_end.callback(member.remove)
            member.start()
        stage = Stage(hosts, etcd, nets, tls, place, guests)
        _begin_routing(stage, at_end)
        etcd[0].wait_answers()
        etcd[0].ctl("put", f"{ENTRIES}/{STEADY}", TABLE)
        _begin_guests(stage, at_end)
        for number in range(len(hosts)):
            stage.begin_daemon(number)
        wait_until(lambda: all(map(stage.answers, guests)), "the guests are reached at their public addresses")
        yield stage


def _begin_routing(stage: Stage, at_end: ExitStack) -> None:
    """Have each host announce what the example does, and the client's network hear it."""
    example = (SOURCE / "etc/examples/bird.conf").read_text()
    router = bird.router(CLIENT4, *ADDRESSES)
    at_end.enter_context(bird.running(Path(stage.lan), router, stage.place / "router"))
    for number, host in enumerate(stage.hosts):
        config = example.replace("router id 198.51.100.1", f"router id {ADDRESSES[number]}")
        running = bird.running(host.place.namespace, config, stage.place / f"bird{number}")
        stage.birds.append(at_end.enter_context(running))


def _begin_guests(stage: Stage, at_end: ExitStack) -> None:
    clock = stage.place / "clock.so"
    build = ["gcc", "-shared", "-fPIC", "-O1", "-o", str(clock), f"{SOURCE}/tests/referee/clock.c"]
    subprocess.run(build, check=True)  # noqa: S603  own words
    for number, host in enumerate(stage.hosts):
        if number:
            host.run("hostname", f"host{number}")
        host.write("/etc/etcd-ca.pem", stage.tls.ca.read_text())
        shutil.copy(clock, f"/proc/{host.init}/root{_CLOCK}")
        Path(f"/proc/{host.init}/root{_CLOCK_FILE}").write_bytes(bytes(8))
        host.libvirt.start()
        host.libvirt.define_network("default", "192.168.122.0/24", mac="52:54:00:12:20:01")
        if VM in stage.guests:
            stage.vm_on(number).prepare()
        stage.web_on(number).define()
    at_end.callback(_remove_guests, stage)
    stage.web_on(0).start()
    if VM in stage.guests:
        stage.vm_on(0).start().wait_up()


def _remove_guests(stage: Stage) -> None:
    for number in range(len(stage.hosts)):
        for guest in (stage.vm_on(number), stage.web_on(number)):
            with suppress(libvirt.libvirtError):
                guest.remove()


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
