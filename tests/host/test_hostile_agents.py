"""Guest agents that lie: whatever one says, no port leads anywhere for it, and the daemon and other guests go on."""

import json
import time
from collections.abc import Iterable

import pytest

from fwdaemon.triggers import SHARE, STOCK_S
from tests.conftest import MakeLxcGuest, MakeNetwork, MakeQemuGuest, StartDaemon
from tests.host.hostile import (
    GATEWAY4,
    LISTEN,
    NAMES,
    RESERVED4,
    THIEF,
    WEB,
    WORD,
    added,
    as_web_or_nothing,
    everything_told,
)
from tests.host.test_hostile_floods import UNDER_WAY_S, UNSEEN, processor_time
from tests.lab.domain import Link, mac_of
from tests.lab.host import PUBLIC4, Host
from tests.lab.libvirt_client import Reservation
from tests.lab.place import wait_until
from tests.lab.qemu import QemuGuest
from tests.lab.release import LibvirtFirewall

HEAD = '[daemon]\nlibvirt = ["qemu:///system", "lxc:///system"]\n'
# A guest that shows no address of its own, and one that is reported of its MAC address, and of what is none.
MUTE = '[[forward]]\ndomain = "mute"\nports = ["8002:80"]\n'
NOBODYS4 = "192.168.122.55"
NO_MACS = ("zz:zz", "", "ff:ff:ff:ff:ff:ff", "\x1b[2J", "52:54:00:\n00:00:01", "x" * 200)
# An agent in the guest's shell: it takes up libvirt's number, and answers the question for interfaces with the next of
# the files in /lies. Then it ends, and is started again, as the one it took the place of would be. With nothing in the
# file it says nothing and stays, so that only libvirt can end the wait for its answer.
AGENT = """#!/bin/sh
exec 3<>"$4"
while :; do
    # There is nothing to be read until libvirt has opened its side.
    read -r line <&3 || { sleep 0.1; continue; }
    case $line in
    *guest-sync*) number=${line##*:}; echo "{\\"return\\": ${number%%\\}*}}" >&3 ;;
    *guest-network-get-interfaces*)
        lie=$(ls /lies | head -n 1)
        [ -n "$lie" ] || continue
        mv "/lies/$lie" /told
        echo "lie $lie" >/dev/console
        [ -s /told ] || continue
        sh /told >&3
        exit ;;
    *) echo '{"return": {}}' >&3 ;;
    esac
done
"""
# 10,000 addresses on five interfaces: libvirt lists no more than 2048 of one.
CROWD = """
BEGIN {
    printf "{\\"return\\": ["
    for (one = 0; one < 5; one++) {
        printf "%s{\\"name\\": \\"a%d\\", \\"hardware-address\\": \\"MAC\\", \\"ip-addresses\\": [", one ? "," : "", one
        for (two = 0; two < 2000; two++)
            printf "%s{\\"ip-address\\": \\"10.%d.%d.%d\\", \\"ip-address-type\\": \\"ipv4\\", \\"prefix\\": 8}", \\
                two ? "," : "", one, two / 256, two % 256
        printf "]}"
    }
    print "]}"
}
"""
# So often, and after each of them the agent ends, comes back, and is asked again.
CROWDS = 4
# What is reported of the guest meanwhile.
REASONS = (
    r"10\.9\.9\.9 \(guest agent\) is outside",
    f"{GATEWAY4} belongs to the host",
    f"{PUBLIC4} belongs to the host",
    rf"{RESERVED4} belongs to domain web \(DHCP reservation\)",
    r"10\.0\.0\.0 \(guest agent\) is outside",
)


def listing(*interfaces: tuple[str, str, Iterable[str]]) -> str:
    """What an agent answers when asked for its interfaces: the name of each, its MAC address and addresses."""
    told = [
        {
            "name": name,
            "hardware-address": mac,
            "ip-addresses": [{"ip-address": text, "ip-address-type": "ipv4", "prefix": 24} for text in addresses],
        }
        for name, mac, addresses in interfaces
    ]
    return json.dumps({"return": told})


def lies(mac: str) -> list[str]:
    """Scripts that print what an agent answers, one after the other: nothing at first; the last one never ends."""
    named = [(name, mac, ["10.9.9.9"]) for name in NAMES]
    foreign = [(f"a{number}", other, [NOBODYS4]) for number, other in enumerate((mac_of("mute"), *NO_MACS))]
    listings = [
        listing(*named),
        listing(("a", mac, ["zz", "192.168.122.999", "fe80::1", GATEWAY4])),
        listing(("a", mac, [PUBLIC4])),
        listing(("a", mac, [RESERVED4])),
        listing(*foreign),
    ]
    return [
        "",
        *(f"cat <<'END'\n{text}\nEND" for text in listings),
        *["cat /crowd"] * CROWDS,
        """printf '{"return": [{"name": "'; yes | tr -d '\\n'""",
    ]


def lie(number: int) -> str:
    """The name of a lie, which its guest says on the console when it tells it."""
    return f"{number:02}"


def liar(guest: QemuGuest) -> int:
    """Put the agent that lies in the place of the other; how many lies it has."""
    guest.run("mkdir", "/lies")
    guest.run("sh", "-c", f"awk '{CROWD.replace('MAC', guest.mac())}' >/crowd")
    scripts = lies(guest.mac())
    for path, text in (("/liar", AGENT), *((f"/lies/{lie(number)}", text) for number, text in enumerate(scripts))):
        guest.run("sh", "-c", 'printf %s "$2" >"$1"; chmod 755 "$1"', "sh", path, text)
    guest.run("sh", "-c", "mv /liar $(which qemu-ga); (sleep 0.1; killall qemu-ga) >/dev/null 2>&1 </dev/null &")
    return len(scripts)


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_an_agent_that_lies(
    host: Host, network: MakeNetwork, qemu_guest: MakeQemuGuest, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    """An agent lists what its guest's interfaces have, and that is whatever the guest's root likes."""
    network("default", "192.168.122.0/24", reservations=[Reservation(mac_of("web"), RESERVED4)], dhcp=True)
    web = lxc_guest("web", Link("default", (f"{RESERVED4}/24",)))
    lxc_guest("mute", Link("default"))
    thief = qemu_guest("thief", Link("default"))
    thief.wait_up()
    number = liar(thief)
    running = daemon(HEAD + LISTEN + WEB + MUTE + THIEF)
    for reason in REASONS:
        running.wait_log(f"^waiting thief: {reason}")
    last = number - 1
    wait_until(lambda: f"lie {lie(last - CROWDS)}" in thief.console(), "the first of the crowds is told")
    before, began = processor_time(running.pid), time.monotonic()
    wait_until(lambda: f"lie {lie(last)}" in thief.console(), "the endless answer has begun", timeout=180)
    used, lasted = processor_time(running.pid) - before, time.monotonic() - began
    assert used <= STOCK_S + SHARE * lasted * (1 + UNSEEN) + UNDER_WAY_S
    wait_until(lambda: as_web_or_nothing(host), "the guest answers")
    web.stop()
    running.wait_log("^removed web: ")
    assert not added(running, "thief") + added(running, "mute")
    told = everything_told(host, running)
    assert WORD not in told
    assert NOBODYS4 not in told
