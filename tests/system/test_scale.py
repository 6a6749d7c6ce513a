"""A thousand forwards over fifty guests: all work, and one guest's stop changes its own elements only."""

import re

import pytest

from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.lab.domain import Link
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall
from tests.system.conftest import HEAD

GUESTS, PORTS = 50, 20


def name(guest: int) -> str:
    return f"guest{guest:02}"


def port(guest: int, index: int) -> int:
    return 10000 + guest * 100 + index


def entries(guest: int) -> str:
    ports = ", ".join(f'"{port(guest, index)}:80"' for index in range(PORTS))
    return f'[[forward]]\ndomain = "{name(guest)}"\naddress = "192.168.122.{10 + guest}"\nports = [{ports}]\n'


@pytest.mark.on(LibvirtFirewall.IPTABLES, LibvirtFirewall.NFTABLES)
def test_a_thousand_forwards(host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon) -> None:
    network("default", "192.168.122.0/24")
    guests = [lxc_guest(name(guest), Link("default", (f"192.168.122.{10 + guest}/24",))) for guest in range(GUESTS)]
    running = daemon(HEAD + "".join(entries(guest) for guest in range(GUESTS)))
    added = [line for line in running.log_lines() if line.text.startswith("added guest")]
    assert len(added) == GUESTS * PORTS
    for guest in range(GUESTS):
        for index in (0, PORTS - 1):
            answer = host.outside.fetch(f"http://{PUBLIC4}:{port(guest, index)}/")
            assert answer.text == f"{name(guest)} {CLIENT4}"

    monitor = host.popen("nft", "monitor")
    guests[7].stop()
    running.wait_log(f"^removed {name(7)}: tcp .*:{port(7, PORTS - 1)} ", timeout=20)
    wait_until(lambda: "new generation" in monitor.text(), "the transaction is seen")
    monitor.stop()
    changes = [line.text for line in monitor.lines() if not line.text.startswith("#")]
    ours = [line for line in changes if "kvm_portfwd" in line]
    mine = {port(7, index) for index in range(PORTS)}
    touched = {
        int(number)
        for line in ours
        for number in re.findall(r"tcp\.(\d+)|tcp \. (\d+)", line)
        for number in number
        if number
    }
    assert touched == mine
    assert all(line.startswith("delete ") for line in ours)
    commits = [line.text for line in monitor.lines() if line.text.startswith("# new generation") and "nft" in line.text]
    assert len(commits) == 1
