"""A thousand forwards over ten guests: all work, and one guest's stop changes its own elements only."""

import re

import pytest

from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.host.conftest import HEAD
from tests.lab.daemon import Daemon
from tests.lab.domain import Link
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

GUESTS, PORTS = 10, 100


def name(guest: int) -> str:
    return f"guest{guest:02}"


def port(guest: int, index: int) -> int:
    return 10000 + guest * 100 + index


def entries(guest: int) -> str:
    ports = ", ".join(f'"{port(guest, index)}:80"' for index in range(PORTS))
    return f'[[forward]]\ndomain = "{name(guest)}"\naddress = "192.168.122.{10 + guest}"\nports = [{ports}]\n'


@pytest.fixture
def guests(host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest) -> list[LxcGuest]:
    """Running guests on one network."""
    del host
    network("default", "192.168.122.0/24")
    return [lxc_guest(name(guest), Link("default", (f"192.168.122.{10 + guest}/24",))) for guest in range(GUESTS)]


def told_of(running: Daemon) -> list[str]:
    return [line.text for line in running.log_lines() if line.text.startswith("added guest")]


def all_answer(host: Host, running: Daemon) -> None:
    """Every forward is logged, and the first and last of each guest answer with that guest's name."""
    # The log is written beside the daemon's work, so its last lines may come after what they tell of.
    wait_until(lambda: len(told_of(running)) >= GUESTS * PORTS, "every forward is told of")
    assert len(told_of(running)) == GUESTS * PORTS
    for guest in range(GUESTS):
        for index in (0, PORTS - 1):
            answer = host.outside.fetch(f"http://{PUBLIC4}:{port(guest, index)}/")
            assert answer.text == f"{name(guest)} {CLIENT4}"
    # A connection that is still known when its guest stops is ended, and for a while has a rule of its own.
    host.run("conntrack", "--flush")


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_one_of_ten_guests_stops_in_one_small_transaction(
    host: Host, guests: list[LxcGuest], daemon: StartDaemon
) -> None:
    running = daemon(HEAD + "".join(entries(guest) for guest in range(GUESTS)))
    all_answer(host, running)
    monitor = host.popen("nft", "monitor")
    guests[7].stop()
    running.wait_log(f"^removed {name(7)}: tcp .*:{port(7, PORTS - 1)} ")
    wait_until(lambda: "new generation" in monitor.text(), "the transaction is seen")
    monitor.stop()
    lines = [line.text for line in monitor.lines()]
    ours = [line for line in lines if "kvm_portfwd" in line and not line.startswith("#")]
    touched = {int(number) for line in ours for number in re.findall(r"tcp(?:\.| \. )(\d+)", line)}
    assert touched == {port(7, index) for index in range(PORTS)}
    assert all(line.startswith("delete ") for line in ours)
    assert len([line for line in lines if line.startswith("# new generation") and "nft" in line]) == 1


@pytest.mark.on(LibvirtFirewall.LEGACY)
def test_one_of_ten_guests_stops_and_no_other_rule_changes(
    host: Host, guests: list[LxcGuest], daemon: StartDaemon
) -> None:
    running = daemon(HEAD + "".join(entries(guest) for guest in range(GUESTS)))
    all_answer(host, running)
    before = host.own_rules().splitlines()
    guests[7].stop()
    running.wait_log(f"^removed {name(7)}: tcp .*:{port(7, PORTS - 1)} ")
    wait_until(lambda: name(7) not in host.own_rules(), "the guest's rules are gone")
    assert host.own_rules().splitlines() == [line for line in before if name(7) not in line]
