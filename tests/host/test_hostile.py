"""Names are anybody's text: they reach neither a rule nor a line of ours as syntax, and come back out of it whole."""

import json
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fwdaemon.naming import shown
from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.host.conftest import HEAD, entry
from tests.lab.domain import Link
from tests.lab.host import CLIENT4, PUBLIC4, Host
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

METRICS = "http://127.0.0.1:9750/metrics"
LISTEN = '[metrics]\nlisten = "127.0.0.1:9750"\n'
# libvirt takes every name but one with a slash or a line break, and these hold all else that is syntax somewhere.
NAMES = [
    """a"; } flush ruleset # --comment '$(reboot)""",
    "--comment",
    "-j ACCEPT\\",
    "x" * 63,
    "\u202eweb \x85",
    '[red]a{domain="b"} 1\t%s',
]
NETWORK = """n"; } --comment '$(reboot)\\ \u202e"""


def said(host: Host, *words: str) -> str:
    """What a command prints; each line has to be one that a terminal shows as it is."""
    done = host.run(host.python, "-m", "fwdaemon", *words, check=False)
    assert done.stderr == ""
    # str.splitlines knows line breaks that no file of ours may have.
    assert all(line.isprintable() for line in done.stdout.split("\n")), done.stdout
    return done.stdout


def test_a_hostile_name_is_only_a_name(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network("default", "192.168.122.0/24")
    entries = LISTEN
    for number, name in enumerate(NAMES):
        lxc_guest(name, Link("default", (f"192.168.122.{10 + number}/24",)))
        # A JSON string is a TOML string.
        some = entry("NAME", f"{8000 + number}:80", f"192.168.122.{10 + number}")
        entries += some.replace('"NAME"', json.dumps(name))
    foreign = host.snapshot_foreign()
    running = daemon(HEAD + entries)
    for number, name in enumerate(NAMES):
        answers(host, 8000 + number, name)
    added = [line.text for line in running.log_lines() if line.text.startswith("added ") and "gate" not in line.text]
    assert len(added) == len(NAMES)
    assert all(text.isprintable() for text in added)
    assert host.snapshot_foreign() == foreign
    is_told_whole(host)
    for number, name in enumerate(NAMES):
        host.libvirt.virsh("destroy", "--domain", name)
        running.wait_log(rf"^removed .* tcp \*:{8000 + number} ")
    # Ports that clients choose, which the rules remember for a while, are higher.
    assert re.search(r"\b80\d\d\b", host.own_rules()) is None


def answers(host: Host, port: int, name: str) -> None:
    wait_until(lambda: host.outside.fetch(f"http://{PUBLIC4}:{port}/").text == f"{name} {CLIENT4}", f"{name!r} answers")


def is_told_whole(host: Host) -> None:
    """See that each way of asking tells the names: as they are to programs, and made harmless to people."""
    told = said(host, "status")
    assert [name for name in NAMES if shown(name) not in told] == []
    rows = json.loads(said(host, "status", "--json"))["openings"]
    assert {(row["owner"], row["state"]) for row in rows} == {(name, "active") for name in NAMES}
    said(host, "plan")
    last = f"{PUBLIC4}:{8000 + len(NAMES) - 1}"
    assert shown(NAMES[-1]) in said(host, "explain", last)
    json.loads(said(host, "explain", "--json", last))
    domains = {
        sample.labels["domain"]
        for metric in text_string_to_metric_families(host.place.fetch(METRICS).text + "\n")
        for sample in metric.samples
        if "domain" in sample.labels
    }
    assert domains == set(NAMES)


@pytest.mark.on(LibvirtFirewall.NFTABLES, LibvirtFirewall.LEGACY)
def test_a_network_with_a_hostile_name_is_only_a_name(host: Host, network: MakeNetwork, daemon: StartDaemon) -> None:
    network(NETWORK, "192.168.122.0/24")
    foreign = host.snapshot_foreign()
    running = daemon(f'{HEAD}[[route]]\nnetwork = {json.dumps(NETWORK)}\naddresses = ["203.0.113.64/29"]\n')
    added = running.wait_log(r"^added .*route 203\.0\.113\.64/29", timeout=30)
    assert added.text.isprintable()
    assert shown(NETWORK) in said(host, "status")
    (row,) = json.loads(said(host, "status", "--json"))["openings"]
    assert (row["owner"], row["state"]) == (NETWORK, "active")
    assert host.snapshot_foreign() == foreign
