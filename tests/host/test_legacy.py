"""Where libvirt writes to iptables-legacy: our rules are there, in company, and follow when libvirt moves."""

import re
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.host.conftest import HEAD, Conversation, Scene, entry, filled, scene_on
from tests.lab.crowd import KEPT, source
from tests.lab.host import CLIENT4, PUBLIC4, SOURCE, Host
from tests.lab.place import wait_until
from tests.lab.release import DEBIAN12_IPTABLES, DEBIAN13_NFTABLES, Flavour, LibvirtFirewall

pytestmark = pytest.mark.everywhere

URL = f"http://{PUBLIC4}:8000/"
WEB = entry("web", "8000:80", "WEB4")
FAR = entry("far", "9000", "FAR4")
CROWD, SECONDS = 12, 12


@pytest.mark.in_turn
@pytest.mark.on(LibvirtFirewall.LEGACY)
def test_no_rule_of_anybody_is_lost_in_a_crowd(scene: Scene) -> None:
    daemon = scene.daemon(WEB + FAR)
    scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
    program = f"{SOURCE}/tests/lab/crowd.py"
    crowd = [
        scene.host.popen(
            scene.host.python, program, "iptc" if number % 3 == 0 else "iptables", str(number), str(SECONDS)
        )
        for number in range(CROWD)
    ]
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        scene.web.stop()
        time.sleep(1.5)
        scene.web.start()
    turns = [int(process.wait_line(r"^done \d+$", 60).text.split()[1]) for process in crowd]
    assert all(process.wait() == 0 for process in crowd)
    expected = sorted(source(number, turn - kept) for number, turn in enumerate(turns) for kept in range(1, KEPT + 1))
    rules = scene.host.run("iptables-legacy", "-w", "-S", "FORWARD").stdout
    try:
        assert sorted(re.findall(r"-s (10\.\S+)/32 -j RETURN", rules)) == expected
        scene.answers(lambda: scene.host.outside.fetch(URL), f"web {CLIENT4}")
        assert "error" not in daemon.process.text()
        wait_until(lambda: _links_lead(scene.host), "our links are at the head")
    finally:
        for address in expected:
            scene.host.run("iptables-legacy", "-w", "-D", "FORWARD", "-s", address, "-j", "RETURN", check=False)


def _links_lead(host: Host) -> bool:
    chains = {"nat": ("PREROUTING", "OUTPUT", "POSTROUTING"), "filter": ("FORWARD",)}
    listed = [
        host.run("iptables-legacy", "-w", "-t", table, "-S", chain).stdout.splitlines()[1]
        for table, links in chains.items()
        for chain in links
    ]
    return all("kvm-portfwd" in first and "-j KVMPF_" in first for first in listed)


@pytest.mark.on(LibvirtFirewall.LEGACY)
def test_the_daemon_itself_never_loads_python_iptables(shared_scene: Scene) -> None:
    daemon = shared_scene.daemon(WEB)
    shared_scene.answers(lambda: shared_scene.host.outside.fetch(URL), f"web {CLIENT4}")
    maps = shared_scene.host.run("cat", f"/proc/{shared_scene.host.daemons()[0]}/maps").stdout
    assert "libxtables" not in maps
    helpers = shared_scene.host.run("pgrep", "-f", "fwdaemon.legacy.helper").stdout.split()
    assert helpers
    assert "libxtables" in shared_scene.host.run("cat", f"/proc/{helpers[0]}/maps").stdout
    daemon.kill()
    wait_until(
        lambda: not shared_scene.host.run("pgrep", "-f", "fwdaemon.legacy.helper", check=False).stdout,
        "the helpers end with the daemon, however it ends",
    )


@pytest.mark.parametrize("refusal", [("-A", "FORWARD", "-j", "DROP"), ("-P", "FORWARD", "DROP")], ids=" ".join)
def test_the_other_rule_system_refuses_everything(shared_scene: Scene, refusal: tuple[str, ...]) -> None:
    """Whatever else has a forward chain, and in whichever system: one refusal would be enough."""
    host = shared_scene.host
    on_legacy = host.flavour.firewall is LibvirtFirewall.LEGACY
    other = "iptables-nft" if on_legacy else "iptables-legacy"
    host.run(other, *refusal)
    try:
        shared_scene.daemon(WEB)
        shared_scene.answers(lambda: host.outside.fetch(URL), f"web {CLIENT4}")
        host.run(other, "-I", "FORWARD", "1", "-j", "DROP")
        wait_until(lambda: host.outside.fetch(URL, timeout=0.3).answered, "the gate is at the head again")
        host.run(other, "-D", "FORWARD", "-j", "DROP")
    finally:
        host.run(other, "-P", "FORWARD", "ACCEPT")
        host.run(other, "-D", "FORWARD", "-j", "DROP", check=False)


@pytest.fixture(params=[DEBIAN12_IPTABLES, DEBIAN13_NFTABLES], ids=str)
def movable_host(lab: None, request: pytest.FixtureRequest) -> Iterator[Host]:
    """A host of its own, since its libvirt changes sides."""
    del lab
    flavour: Flavour = request.param
    with Host.boot(flavour) as host:
        host.libvirt.start()
        yield host


def test_rules_follow_libvirt_from_side_to_side(movable_host: Host) -> None:
    host = movable_host
    with scene_on(host) as (web, _, far):
        far.serve_tcp(9000)
        daemon = host.daemon(HEAD + filled(WEB + FAR))
        wait_until(lambda: host.outside.fetch(URL).text == f"web {CLIENT4}", "the guest answers")
        other = Conversation(host.outside, PUBLIC4, 9000)
        for firewall in (LibvirtFirewall.LEGACY, host.flavour.firewall):
            with other.never_pausing():
                host.libvirt.move_to(firewall)
                wait_until(lambda: host.outside.fetch(URL).answered, "new connections work", timeout=2)
                wait_until(partial(_only_on, host, firewall), f"our rules are where {firewall} is, and only there")
            assert host.outside.fetch(URL).text == f"web {CLIENT4}"
        moves = ["nftables", "iptables-legacy", "nftables"]
        wait_until(
            lambda: re.findall("^rules are in (.*): ", daemon.process.text(), re.MULTILINE) == moves,
            "each move is told",
        )
        assert "restored web" not in daemon.process.text()
        other.close()
        assert daemon.terminate() == 0
        host.portfwd("flush")
        assert host.own_rules() == ""
        assert web.running


def _only_on(host: Host, firewall: LibvirtFirewall) -> bool:
    nft = "kvm_portfwd" in host.run("nft", "list", "tables").stdout
    legacy = "KVMPF_" in host.run("iptables-legacy-save", "-t", "nat").stdout
    return (nft, legacy) == ((False, True) if firewall is LibvirtFirewall.LEGACY else (True, False))
