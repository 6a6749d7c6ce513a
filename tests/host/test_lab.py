"""The lab itself is real: what the other system tests stand on."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fwdaemon.hypervisor.link import EventLoop
from tests.conftest import MakeLxcGuest, MakeNetwork
from tests.host.conftest import each_libvirt
from tests.lab import host as lab_host
from tests.lab.command import LabError
from tests.lab.domain import Link
from tests.lab.host import SOURCE, Host
from tests.lab.place import PATIENCE, wait_until
from tests.lab.probe import Outcome
from tests.lab.release import LibvirtFirewall, Release

pytestmark = pytest.mark.everywhere

_SUBNET4, _SUBNET6 = "192.168.122.0/24", "2001:db8:122::/64"
_WEB = Link("lab", ("192.168.122.10/24", "2001:db8:122::10/64"))


def test_host_runs_the_libvirt_and_the_firewall_of_its_flavour(host: Host, network: MakeNetwork) -> None:
    network("lab", _SUBNET4, _SUBNET6)
    version = host.run("libvirtd", "--version").stdout
    assert ("9.0." if host.flavour.release is Release.BOOKWORM else "11.3.") in version
    rules = host.snapshot_foreign()
    assert ("table ip libvirt_network" in rules) is (host.flavour.firewall is LibvirtFirewall.NFTABLES)
    assert ("chain LIBVIRT_FWI" in rules) is (host.flavour.firewall is LibvirtFirewall.IPTABLES)


def test_nothing_of_the_program_is_compiled_at_its_start(host: Host) -> None:
    told = host.run(host.python, "-v", "-m", "fwdaemon", "--version").stderr
    sources = [line.rpartition(" from ")[2] for line in told.splitlines() if line.startswith("# code object from ")]
    assert any("/fwdaemon/__pycache__/cli." in source for source in sources)
    assert [source for source in sources if "/fwdaemon/" in source and source.endswith(".py")] == []


@pytest.mark.in_turn
def test_commands_end_as_they_do_when_the_program_is_started_for_them(host: Host) -> None:
    host.write("/etc/portfwd.toml", "nonsense = 1\n")
    for words in (("check",), ("--version",), ("nonsense",), ("reload",), ("import", "-")):
        started = host.place.run([host.python, "-m", "fwdaemon", *words], stdin="*nat\nwhat\n", check=False)
        done = host.portfwd(*words, stdin="*nat\nwhat\n", check=False)
        assert (done.returncode, done.stdout, done.stderr) == (started.returncode, started.stdout, started.stderr)
    with pytest.raises(LabError, match="nonsense"):
        host.portfwd("check")


def test_guest_answers_its_host_and_is_closed_to_outside(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest
) -> None:
    network("lab", _SUBNET4, _SUBNET6)
    lxc_guest("web 1", _WEB)
    host.outside.run(["ip", "route", "replace", _SUBNET4, "via", lab_host.PUBLIC4])
    assert host.place.fetch("http://192.168.122.10/").text == "web 1 192.168.122.1"
    assert host.place.fetch("http://[2001:db8:122::10]:8080/").text == "web 1 2001:db8:122::1"
    assert host.outside.fetch("http://192.168.122.10/").outcome is Outcome.REFUSED


@pytest.mark.in_turn
@pytest.mark.parametrize("address", ["192.168.122.10", "2001:db8:122::10"])
def test_every_protocol_reaches_a_guest(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, address: str
) -> None:
    network("lab", _SUBNET4, _SUBNET6)
    guest = lxc_guest("echo", _WEB)
    guest.serve_tcp(1000)
    guest.serve_udp(1000)
    guest.serve_sctp(1000)
    expected = f"echo {'2001:db8:122::1' if ':' in address else '192.168.122.1'}"
    assert host.place.tcp(address, 1000).text == expected
    assert host.place.udp(address, 1000, timeout=PATIENCE).text == expected
    assert host.place.sctp(address, 1000, timeout=PATIENCE).text == expected


@pytest.mark.in_turn
@each_libvirt
def test_probe_tells_refusal_from_silence(host: Host) -> None:
    host.run("nft", "add table inet lab_drop")
    host.run("nft", "add chain inet lab_drop input { type filter hook input priority 0; }")
    host.run("nft", "add rule inet lab_drop input tcp dport 81 drop")
    assert host.outside.fetch(f"http://{lab_host.PUBLIC4}:80/").outcome is Outcome.REFUSED
    assert host.outside.fetch(f"http://{lab_host.PUBLIC4}:81/", timeout=0.3).outcome is Outcome.TIMED_OUT
    assert host.outside.udp(lab_host.PUBLIC4, 80).outcome is Outcome.REFUSED
    host.run("nft", "delete table inet lab_drop")


@pytest.mark.in_turn
@each_libvirt
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (lab_host.CLIENT4, lab_host.PUBLIC4),
        (lab_host.CLIENT4_SECOND, lab_host.PUBLIC4_SECOND),
        (lab_host.CLIENT4_OTHER_LINK, lab_host.OTHER_LINK4),
        (lab_host.CLIENT6, lab_host.PUBLIC6),
        (lab_host.CLIENT6_SECOND, lab_host.PUBLIC6_SECOND),
        (lab_host.CLIENT6_OTHER_LINK, lab_host.OTHER_LINK6),
    ],
)
def test_client_reaches_every_address_from_every_source(host: Host, source: str, target: str) -> None:
    server = host.place.serve("host", "udp", 2000)
    assert host.outside.udp(target, 2000, source=source, timeout=PATIENCE).text == f"host {source}"
    server.stop()


@each_libvirt
def test_guest_survives_pause_reboot_and_a_crash_of_libvirtd(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest
) -> None:
    network("lab", _SUBNET4)
    guest = lxc_guest("web", Link("lab", ("192.168.122.10/24",)))
    guest.pause()
    assert host.place.fetch("http://192.168.122.10/", timeout=0.3).outcome is Outcome.TIMED_OUT
    guest.resume()
    guest.reboot()
    wait_until(guest.heard, "libvirtd hears of the guest")
    host.libvirt.kill()
    assert not guest.heard()
    host.libvirt.start()
    assert guest.running
    wait_until(guest.heard, "libvirtd hears of the guest")
    assert host.place.fetch("http://192.168.122.10/").answered
    guest.crash()
    assert not guest.running


def test_own_rules_are_told_from_everybody_elses(host: Host, network: MakeNetwork) -> None:
    network("lab", _SUBNET4, _SUBNET6)
    before = host.snapshot_foreign()
    host.run("nft", "add table ip kvm_portfwd")
    host.run("nft", "add chain ip kvm_portfwd web1")
    assert host.snapshot_foreign() == before
    assert "chain web1" in host.own_rules()
    host.run("nft", "delete table ip kvm_portfwd")
    assert host.own_rules() == ""


_OWNER = """
    import signal, time
    from tests.lab.domain import Link
    from tests.lab.host import Host
    from tests.lab.lxc import LxcGuest
    from tests.lab.release import own_flavour
    host = Host.boot(own_flavour())
    host.libvirt.start()
    host.libvirt.define_network("lab", "192.168.122.0/24", dhcp=True)
    LxcGuest(host, "web", Link("lab", ("192.168.122.10/24",))).start().pause()
    host.libvirt.process.send(signal.SIGSTOP)
    print(host.init, host.keeper_pid, flush=True)
    time.sleep(1000)
"""


@pytest.mark.usefixtures("lab")
def test_nothing_is_left_when_the_owner_is_killed() -> None:
    owner = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", textwrap.dedent(_OWNER)], cwd=SOURCE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    init, keeper = (int(word) for word in owner.stdout.readline().split())
    assert _groups(keeper)
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    wait_until(lambda: not Path(f"/proc/{keeper}").exists(), "the keeper ends")
    assert not Path(f"/proc/{init}").exists()
    assert not _groups(keeper)
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if f"--target={init}" in _words(path)]


def _words(command: Path) -> list[str]:
    try:
        return command.read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return []


def _groups(keeper: int) -> list[Path]:
    return list(Path("/sys/fs/cgroup").rglob(f"kvm-portfwd-lab-{keeper}"))


@each_libvirt
def test_connections_leave_no_file_open_after_libvirts_loop_ran_in_this_process(host: Host) -> None:
    loop = EventLoop()
    loop.start()
    loop.stop()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        assert host.libvirt.answers
    assert len(list(Path("/proc/self/fd").iterdir())) == before
