"""`plan` shows what would change, and changes nothing."""

import json

import pytest

from tests.host.conftest import HEAD, Scene, each_backend, entry, filled
from tests.lab.command import Completed
from tests.lab.host import Host
from tests.lab.release import LibvirtFirewall

pytestmark = each_backend

ENTRIES = filled(
    entry("web", "8000:80", "WEB4")
    + '[[nat]]\ndomain = "web"\npublic = "198.51.100.8"\naddress = "WEB4"\nassign = "eth0"\n'
    + '[[route]]\nnetwork = "other"\naddresses = ["203.0.113.64/29"]\n'
)
ADDED = {
    "+ web: tcp *:8000 -> 192.168.122.10:80",
    "+ web: all of 198.51.100.8 -> 192.168.122.10",
    "+ other: route 203.0.113.64/29 -> {bridge}",
}


def plan(host: Host, *words: str) -> Completed:
    return host.portfwd("plan", *words, check=False)


def everything(host: Host) -> str:
    listings = ("nft --stateless list ruleset", "iptables-legacy-save", "ip route", "ip -brief address")
    return "".join(host.run(*listing.split()).stdout for listing in listings)


@pytest.mark.in_turn
def test_a_plan_tells_what_would_change_and_changes_nothing(shared_scene: Scene) -> None:
    host = shared_scene.host
    host.write("/etc/portfwd.toml", HEAD + ENTRIES)
    before = everything(host)
    told = plan(host, "--exit-code")
    assert told.returncode == 3
    bridge = host.libvirt.bridge("other")
    assert {line.format(bridge=bridge) for line in ADDED} <= set(told.stdout.splitlines())
    assert "~ gate in " in told.stdout or host.flavour.firewall is LibvirtFirewall.LEGACY
    assert "dnat to 192.168.122.10" in told.stdout or "DNAT --to-destination 192.168.122.10" in told.stdout
    assert [line for line in everything(host).splitlines() if not line.startswith(("#", ":"))] == [
        line for line in before.splitlines() if not line.startswith(("#", ":"))
    ]


@pytest.mark.in_turn
def test_with_everything_in_place_there_is_nothing_to_change(shared_scene: Scene) -> None:
    host = shared_scene.host
    daemon = shared_scene.daemon(ENTRIES)
    daemon.wait_log("^added other: |^added network other: ")
    told = plan(host, "--exit-code")
    assert (told.returncode, told.stdout) == (0, "nothing to change: 3 of 3 are as they should be\n")
    as_json = json.loads(plan(host, "--json").stdout)
    assert (as_json["schema_version"], as_json["changes"], as_json["add"]) == (1, False, [])


@pytest.mark.in_turn
def test_what_is_there_for_nothing_would_go(shared_scene: Scene) -> None:
    host = shared_scene.host
    daemon = shared_scene.daemon(ENTRIES)
    daemon.wait_log("^added network other: ")
    daemon.terminate()
    host.write("/etc/portfwd.toml", HEAD)
    told = json.loads(plan(host, "--json").stdout)
    assert told["changes"]
    assert "198.51.100.8 on eth0" in told["remove"]
    assert "route 203.0.113.64/29" in told["remove"]
    host.portfwd("flush")
