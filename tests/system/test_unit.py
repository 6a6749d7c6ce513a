"""The unit on whole machines: nothing for systemd to complain of, little exposure, and alive however it is ended."""

import re
import time
from pathlib import Path

import pytest

from tests.lab.computer import CLIENT4
from tests.lab.machine import UNIT
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall
from tests.system.conftest import PAGE
from tests.system.sandbox import CONFIG, EVERYTHING, HEAD, WEB, Sandbox

# One machine is enough: systemd does not care where libvirt's rules are.
pytestmark = pytest.mark.on(LibvirtFirewall.NFTABLES)

FREEZE = Path(__file__).with_name("freeze.py")
MOST_EXPOSED = 2.0
# What the daemon's threads may take is five times the watchdog's time; that has to be more than libvirt may take.
WATCHDOG_S, LIBVIRT_MAY_TAKE_S = 1.5, 5.0
MAY_TAKE_S = 5 * WATCHDOG_S


def test_systemd_finds_nothing_wrong_with_it(service: Sandbox) -> None:
    verified = service.machine.run("systemd-analyze", "verify", UNIT)
    assert (verified.stdout, verified.stderr) == ("", "")


@pytest.mark.on(LibvirtFirewall.NFTABLES)  # on Debian 13: older ones do not know the words
def test_the_pauses_between_starts_grow_where_systemd_knows_how(service: Sandbox) -> None:
    assert service.machine.property("RestartSteps") == "6"
    assert service.machine.property("RestartMaxDelayUSec") == "1min"


def test_it_is_exposed_as_little_as_promised(service: Sandbox) -> None:
    told = service.machine.run("systemd-analyze", "security", "--no-pager", UNIT).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
    assert found is not None, told
    assert float(found[1]) <= MOST_EXPOSED


def test_its_status_is_kept_current(service: Sandbox) -> None:
    machine = service.machine

    def shows(text: str) -> None:
        wait_until(lambda: machine.property("StatusText") == text, f"the status {text!r}")

    shows("6 forwards; nftables; libvirt answers")
    service.configure(EVERYTHING)
    shows("6 forwards, 2 1:1 addresses, 2 routes, 1 waiting; nftables; libvirt answers")
    service.configure(HEAD + WEB)
    machine.write(CONFIG, "nonsense")
    machine.systemctl("reload", UNIT)
    shows("6 forwards; nftables; libvirt answers; a newer configuration is refused")
    machine.write(CONFIG, HEAD + WEB)
    machine.systemctl("reload", UNIT)
    shows("6 forwards; nftables; libvirt answers")


def test_a_libvirt_that_hangs_is_waited_for(service: Sandbox) -> None:
    machine = service.machine
    with service.drop_in(f"WatchdogSec={WATCHDOG_S}s"):
        daemon, libvirtd = machine.property("MainPID"), machine.property("MainPID", "libvirtd.service")
        machine.run("kill", "-STOP", libvirtd)
        machine.run("ip", "address", "add", "198.51.100.77/32", "dev", "eth0")
        silent = "6 forwards; nftables; no answer from libvirt at lxc:///system"
        wait_until(lambda: machine.property("StatusText") == silent, "libvirt does not answer")
        time.sleep(MAY_TAKE_S + WATCHDOG_S - LIBVIRT_MAY_TAKE_S)  # longer than anything else may take
        machine.run("kill", "-CONT", libvirtd)
        machine.run("ip", "address", "del", "198.51.100.77/32", "dev", "eth0")
        wait_until(lambda: "libvirt answers" in machine.property("StatusText"), "libvirt answers")
        assert machine.property("MainPID") == daemon


def test_a_kernel_that_hangs_is_not(service: Sandbox) -> None:
    machine = service.machine
    with service.drop_in(f"WatchdogSec={WATCHDOG_S}s"):
        daemon, run = machine.property("MainPID"), machine.property("InvocationID")
        freezing = machine.popen("/usr/bin/python3", str(FREEZE), daemon)
        freezing.wait_line("^frozen$")
        machine.run("nft", "add table ip lab; delete table ip lab")
        wait_until(lambda: machine.property("MainPID") not in ("0", daemon), "it is started again")
        freezing.wait()
        told = service.lines(f"_SYSTEMD_INVOCATION_ID={run}")
        assert "a comparison with the kernel hangs: systemd will end the daemon" in told
        assert "Current thread" in told, "where it hung is told"
        service.answers(lambda: machine.outside.fetch(PAGE), f"web {CLIENT4}")


@pytest.mark.parametrize("end", ["runs", "was stopped", "was refused its configuration"])
def test_it_is_in_force_after_a_restart_of_nftables(service: Sandbox, end: str) -> None:
    machine = service.machine
    if end == "was stopped":
        machine.systemctl("stop", UNIT)
    elif end == "was refused its configuration":
        # Where there is no last good one, as at a first start.
        machine.run("rm", "-f", "/var/lib/kvm-portfwd/last-good.json")
        machine.write(CONFIG, "nonsense")
        machine.systemctl("restart", UNIT, check=False)
        assert machine.property("ActiveState") == "failed"
        machine.write(CONFIG, HEAD + WEB)
    machine.systemctl("restart", "nftables.service")
    service.answers(lambda: machine.outside.fetch(PAGE), f"web {CLIENT4}")
    wait_until(lambda: machine.property("ActiveState") == "active", "systemd takes it for started")


def test_who_ends_it_but_systemd_does_not_end_it_for_good(service: Sandbox) -> None:
    machine = service.machine
    before = machine.property("MainPID")
    machine.run("kill", "-TERM", before)
    wait_until(lambda: machine.property("MainPID") not in ("0", before), "it is started again")
    machine.systemctl("stop", UNIT)
    assert machine.property("ActiveState") == "inactive"
    machine.systemctl("start", UNIT)


def test_it_starts_after_those_it_follows_and_so_stops_before_them(service: Sandbox) -> None:
    followed = {"nftables.service", "firewalld.service", "ufw.service", "libvirtd.service", "virtnetworkd.service"}
    assert followed <= set(service.machine.property("After").split())
