"""The package's life on whole machines: installed, upgraded under traffic, removed without a trace."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from tests.host.conftest import Conversation, entry
from tests.lab.command import run
from tests.lab.computer import CLIENT4, PUBLIC4
from tests.lab.domain import Link
from tests.lab.lxc import LxcGuest
from tests.lab.machine import UNIT, Machine
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall
from tests.system.conftest import PAGE, page
from tests.system.sandbox import CONFIG, EVERYTHING, HEAD, MAIL4, ROUTED4, WEB, Sandbox, guests_on

# One machine of each release is enough: dpkg does not care where libvirt's rules are.
pytestmark = pytest.mark.on(LibvirtFirewall.IPTABLES, LibvirtFirewall.NFTABLES)

NEWER = "9.0.0"
SWITCH = "net.ipv4.ip_forward"
_AUTOPKGTEST = Path(__file__).parents[2] / "packaging/debian/tests"
_SPEC = Path(__file__).parents[2] / "packaging/kvm-portfwd.spec"
# What a package may leave: records of dpkg and of the journal, what libvirt and the lab write, caches.
_FILES = """
find / -xdev -path /var/lib/dpkg -prune -o -path /var/log -prune -o -path /var/cache -prune \\
    -o -path /var/lib/libvirt -prune -o -print
find /run -name '*portfwd*'
cat /etc/passwd /etc/group
"""
# Whatever in the kernel could be ours beside rules: routes, addresses, proxies, bridge ports.
_KERNEL = """
ip route show table all; ip -6 route show table all
ip -brief address
ip neighbour show proxy; ip -6 neighbour show proxy
bridge -details link
"""
_SETTINGS = r"net\.(ipv[46]\.(ip_forward|conf\..*\.(forwarding|route_localnet|proxy_arp|proxy_ndp))|bridge\..*)"
# Of another program, beside libvirt's own.
_FOREIGN = """
nft add table inet others
nft 'add chain inet others forward { type filter hook forward priority 10; policy accept; }'
nft add rule inet others forward ip daddr 192.0.2.1 counter drop comment '"not ours"'
iptables-legacy -A FORWARD -d 192.0.2.1 -j DROP
ip6tables-legacy -t nat -A PREROUTING -d 2001:db8:ffff::1 -j RETURN
"""


@pytest.fixture(scope="module")
def newer(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same package with a higher version, also of the program."""
    work = tmp_path_factory.mktemp("newer")
    run(["dpkg-deb", "--raw-extract", package, work / "raw"])
    control, module = work / "raw/DEBIAN/control", work / "raw/usr/lib/python3/dist-packages/fwdaemon/__init__.py"
    for file, key, value in ((control, "Version: ", f"{NEWER}-1"), (module, "__version__ = ", f'"{NEWER}"')):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text(
            "".join(f"{key}{value}\n" if line.startswith(key) else line for line in lines), encoding="utf-8"
        )
    target = work / f"kvm-portfwd_{NEWER}-1_all.deb"
    run(["dpkg-deb", "--build", work / "raw", target])
    shutil.rmtree(work / "raw")
    return target


@dataclass(frozen=True, slots=True)
class Traces:
    """What there is on a machine that this project could have left, or spoilt."""

    rules: str
    kernel: list[str]
    files: list[str]

    @classmethod
    def of(cls, machine: Machine) -> Self:
        """Look at a machine."""
        kernel = machine.run("sh", "-c", _KERNEL).stdout
        settings = machine.run("sysctl", "--all", "--pattern", _SETTINGS).stdout
        files = machine.run("sh", "-c", _FILES).stdout
        return cls(machine.snapshot_foreign(), sorted((kernel + settings).splitlines()), sorted(files.splitlines()))


def beyond(now: list[str], before: list[str]) -> list[str]:
    """What differs, for the comparison to name it."""
    return sorted(set(now) ^ set(before))


def conversations(guests: Sandbox) -> dict[str, Conversation]:
    """Begin a connection by each kind of exposure; they end with their guests at the latest."""
    ways = {"forward": (guests.web, PUBLIC4), "1:1 address": (guests.mail, MAIL4), "route": (guests.routed, ROUTED4)}
    for guest, _ in ways.values():
        guest.serve_tcp(7000)
    talking = {way: Conversation(guests.machine.outside, address, 7000) for way, (_, address) in ways.items()}
    assert all(client.goes_on() for client in talking.values())
    return talking


def test_it_is_removed_without_a_trace_and_its_configuration_goes_when_purged(machine: Machine, package: Path) -> None:
    with guests_on(machine) as guests:
        machine.run("sh", "-ec", _FOREIGN)
        before = Traces.of(machine)
        machine.install(package)
        guests.configure(EVERYTHING)
        guests.answers(lambda: machine.outside.fetch(PAGE), f"web {CLIENT4}")
        guests.answers(lambda: machine.outside.fetch(f"http://{MAIL4}/"), f"mail {CLIENT4}")
        changed = beyond(Traces.of(machine).kernel, before.kernel)
        assert changed, "it did something"
        assert not [line for line in changed if line.startswith("net.bridge.")]
        talking = conversations(guests)

        machine.run("dpkg", "--remove", "kvm-portfwd")
        removed = Traces.of(machine)
        assert {way for way, client in talking.items() if client.goes_on()} == set()
        assert machine.own_rules() == ""
        assert not machine.outside.fetch(PAGE).answered
        assert removed.rules == before.rules
        assert beyond(removed.kernel, before.kernel) == []
        assert CONFIG in removed.files
        assert machine.read(CONFIG) == EVERYTHING

        machine.run("dpkg", "--purge", "kvm-portfwd")
        purged = Traces.of(machine)
        assert beyond(purged.files, before.files) == []
        assert (purged.rules, purged.kernel) == (before.rules, before.kernel)


def test_what_a_distribution_runs_to_test_it_passes(machine: Machine, package: Path) -> None:
    """As autopkgtest does it: on a machine with the package installed, as root, with a directory to work in."""
    work = "/var/tmp/autopkgtest"  # noqa: S108  of a machine that goes with its test
    machine.install(package)
    machine.run("mkdir", "-p", work)
    before = machine.read(CONFIG)
    try:
        script = (_AUTOPKGTEST / "guest").read_text(encoding="utf-8")
        told = machine.run("env", f"AUTOPKGTEST_TMP={work}", "sh", "-s", stdin=script, timeout=300)
        assert told.stdout.count("guest: ") == script.count('\nwithin "') + script.count('\nsay "')
        assert machine.read(CONFIG) == before
    finally:
        machine.run("rm", "-r", work)
        machine.run("dpkg", "--purge", "kvm-portfwd")


@pytest.fixture
def alone(machine: Machine) -> Iterator[None]:
    """A guest on a network for which libvirt needs no forwarding, on a host that forwards nothing."""
    machine.libvirt.define_network("alone", "192.168.150.0/24", mode="isolated")
    guest = LxcGuest(machine, "alone", Link("alone", ("192.168.150.10/24",)))
    try:
        guest.start()
        machine.run("sysctl", "-w", f"{SWITCH}=0")
        yield
    finally:
        guest.remove()
        machine.libvirt.remove_network("alone")


@pytest.mark.usefixtures("alone")
def test_removing_it_turns_off_the_forwarding_that_it_turned_on(machine: Machine, package: Path) -> None:
    machine.install(package)
    machine.write(CONFIG, HEAD + entry("alone", "8080:80", "192.168.150.10"))
    machine.systemctl("restart", UNIT)
    wait_until(lambda: page(machine) == f"alone {CLIENT4}", "the page")
    assert machine.run("sysctl", "-n", SWITCH).stdout == "1\n"
    assert f"set {SWITCH} = 0 again" in machine.run("dpkg", "--purge", "kvm-portfwd").stdout
    assert machine.run("sysctl", "-n", SWITCH).stdout == "0\n"


@pytest.mark.parametrize("on_stop", [pytest.param("keep", marks=pytest.mark.in_turn), "remove"])
def test_an_upgrade_cuts_no_connection(service: Sandbox, package: Path, newer: Path, on_stop: str) -> None:
    machine = service.machine
    config = HEAD.replace("[daemon]\n", f'[daemon]\non_stop = "{on_stop}"\n') + WEB
    service.configure(config)
    rules = machine.own_rules()
    client = Conversation(machine.outside, PUBLIC4, 7000)
    before = machine.property("MainPID")
    with client.never_pausing():
        machine.install(newer)
        assert machine.property("ActiveState") == "active"
        assert machine.property("MainPID") not in ("0", before)
    assert NEWER in machine.run("kvm-portfwd", "--version").stdout
    assert machine.own_rules() == rules
    assert machine.read(CONFIG) == config
    with client.never_pausing():
        machine.install(package)
    client.close()
    assert NEWER not in machine.run("kvm-portfwd", "--version").stdout


def scriptlet(name: str) -> str:
    """Give what the RPM package runs; stopping the service is systemd's own macro, which Debian does not have."""
    stopping = "systemd_preun() systemctl stop %1"
    return run(["rpmspec", "--define", stopping, "--query", "--queryformat", f"%{{{name}}}", _SPEC]).stdout


@pytest.mark.in_turn
@pytest.mark.parametrize("on_stop", ["keep", "remove"])
def test_an_upgrade_by_rpm_cuts_no_connection(service: Sandbox, on_stop: str) -> None:
    """What the RPM package runs at the end of an upgrade; the program is the Debian package's."""
    machine = service.machine
    service.configure(HEAD.replace("[daemon]\n", f'[daemon]\non_stop = "{on_stop}"\n') + WEB)
    rules = machine.own_rules()
    client = Conversation(machine.outside, PUBLIC4, 7000)
    before = machine.property("MainPID")
    script = scriptlet("POSTTRANS")
    with client.never_pausing():
        machine.run("sh", "-ec", script)
        assert machine.property("ActiveState") == "active"
        assert machine.property("MainPID") not in ("0", before)
    client.close()
    assert machine.own_rules() == rules
    assert machine.run("ls", "/run/kvm-portfwd/upgrade", check=False).returncode == 2


@pytest.mark.in_turn
@pytest.mark.parametrize("on_stop", ["keep", "remove"])
def test_removing_the_rpm_ends_connections(service: Sandbox, on_stop: str) -> None:
    """What the RPM package runs before its files go; the program is the Debian package's."""
    machine = service.machine
    service.configure(HEAD.replace("[daemon]\n", f'[daemon]\non_stop = "{on_stop}"\n') + WEB)
    client = Conversation(machine.outside, PUBLIC4, 7000)
    assert client.goes_on()
    machine.run("sh", "-ec", scriptlet("PREUN"), "sh", "0")
    assert not client.goes_on()
    client.close()
    assert machine.own_rules() == ""
