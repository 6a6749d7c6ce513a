"""Names are any text: they reach neither a rule nor a line of ours as syntax, and come back out of it whole."""

import json
import re
from collections.abc import Iterator

import libvirt
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fwdaemon.core.text import label, shown
from tests.conftest import MakeLxcGuest, MakeNetwork, StartDaemon
from tests.host.conftest import HEAD, each_backend, entry
from tests.host.hostile import LISTEN, METRICS, everything_told, is_sound, said
from tests.lab.domain import Link
from tests.lab.host import CLIENT4, PUBLIC4, PUBLIC4_SECOND, Host
from tests.lab.lxc import LxcGuest
from tests.lab.place import wait_until
from tests.lab.release import LibvirtFirewall

# libvirt takes every name but one with a slash or a line break, and these hold all else that is syntax somewhere.
NAMES = [
    """a"; } flush ruleset # --comment '$(reboot)""",
    "--comment",
    "-j ACCEPT\\",
    "x" * 63,
    "a\u202eweb \x85z",
    '[red]a{domain="b"} 1\t%s',
]
# Bytes of a definition that libvirt's protocol has room for, REMOTE_STRING_MAX.
MOST_TOLD = 4 << 20
BRIDGE = 'b";}\u202e$(x)*'
NETWORK = """n"; } --comment '$(reboot)\\ \u202e"""


@each_backend
def test_a_hostile_name_is_only_a_name(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network("default", "192.168.122.0/24")
    entries = LISTEN
    for number, name in enumerate(NAMES):
        lxc_guest(name, Link("default", (f"192.168.122.{10 + number}/24",)))
        # A JSON string is a TOML string.
        some = entry("NAME", f"{8000 + number}:80", f"192.168.122.{10 + number}")
        entries += some.replace('"NAME"', json.dumps(re.sub(r"[*?\[]", r"[\g<0>]", name)))  # or it is a pattern
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


@pytest.mark.in_turn
@each_backend
def test_a_definition_as_large_as_libvirt_can_tell_costs_no_forward_of_a_file(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network("default", "192.168.122.0/24")
    large, other = (
        lxc_guest(name, Link("default", (f"192.168.122.{at}/24",))) for at, name in ((10, "large"), (11, "other"))
    )
    config = HEAD + entry("large", "8000:80", "192.168.122.10") + entry("other", "8001:80", "192.168.122.11")
    running = daemon(config)
    answers(host, 8000, "large")
    fill(large, MOST_TOLD)
    other.stop()
    running.wait_log("^removed other: ")
    other.start()
    answers(host, 8001, "other")
    answers(host, 8000, "large")
    # Whoever reads it for the first time reads all of it.
    running.terminate()
    host.portfwd("flush")
    running = daemon(config)
    answers(host, 8000, "large")
    answers(host, 8001, "other")
    # What libvirt can tell no more changes nothing, and other domains are followed as ever.
    fill(large, 2 * MOST_TOLD)
    other.stop()
    running.wait_log("does not report the devices of large: Unable to encode message payload")
    running.wait_log("^removed other: ")
    answers(host, 8000, "large")
    is_sound(host, running)
    large.stop()
    running.wait_log("^removed large: ")
    assert not host.outside.fetch(f"http://{PUBLIC4}:8000/").answered


def fill(guest: LxcGuest, size: int) -> None:
    """Make a definition so large, in bytes, by elements of another program, as libvirt writes them."""
    with guest.domain() as domain:
        lengths = []
        for number in (1, 2):
            keep(domain, number)
            lengths.append(len(domain.XMLDesc()))
        each = lengths[1] - lengths[0]
        keep(domain, (size - lengths[0]) // each)
        assert size > MOST_TOLD or MOST_TOLD - 4096 < len(domain.XMLDesc()) <= MOST_TOLD


def keep(domain: libvirt.virDomain, number: int) -> None:
    text = f"<x>{'<y/>' * number}</x>"
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, "k", "urn:other", libvirt.VIR_DOMAIN_AFFECT_LIVE)


def answers(host: Host, port: int, name: str) -> None:
    wait_until(lambda: host.outside.fetch(f"http://{PUBLIC4}:{port}/").text == f"{name} {CLIENT4}", f"{name!r} answers")


def is_told_whole(host: Host) -> None:
    """See that each way of asking shows the names: as they are to programs, and made harmless to people."""
    told = said(host, "status")
    assert [name for name in NAMES if shown(name) not in told] == []
    rows = json.loads(said(host, "status", "--json"))["openings"]
    assert {(row["owner"], row["state"]) for row in rows} == {(name, "active") for name in NAMES}
    said(host, "plan")
    last = f"{PUBLIC4}:{8000 + len(NAMES) - 1}"
    assert shown(NAMES[-1]) in said(host, "explain", last)
    json.loads(said(host, "explain", "--json", last))
    assert in_metrics(host, "domain") == set(NAMES)
    for rules in (host.own_rules(), said(host, "rules")):
        assert [name for name in NAMES if label(name) not in rules] == []


def in_metrics(host: Host, label: str) -> set[str]:
    """What a Prometheus reads for this label."""
    return {
        sample.labels[label]
        for metric in text_string_to_metric_families(host.place.fetch(METRICS).text + "\n")
        for sample in metric.samples
        if label in sample.labels
    }


@each_backend
def test_a_network_with_a_hostile_name_is_only_a_name(
    host: Host, network: MakeNetwork, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    network(NETWORK, "192.168.122.0/24")
    network("other", "192.168.123.0/24")
    lxc_guest("plain", Link("other"))
    called = f"network = {json.dumps(NETWORK)}\n"
    foreign = host.snapshot_foreign()
    running = daemon(
        f'{HEAD}{LISTEN}[[route]]\n{called}addresses = ["203.0.113.64/29"]\n'
        f'[[forward]]\ndomain = "plain"\nports = ["8000:80"]\n{called}'
    )
    running.wait_log(r"^added .*route 203\.0\.113\.64/29")
    reason = f"has no interface on network {shown(NETWORK)}"
    running.wait_log(f"^waiting plain: {re.escape(reason)} ")
    is_sound(host, running)
    routed, waiting = json.loads(said(host, "status", "--json"))["openings"]
    assert (routed["owner"], routed["state"]) == (NETWORK, "active")
    assert waiting["reason"] == reason
    for words in (["status"], ["explain", "203.0.113.66:80"], ["explain", f"{PUBLIC4}:8000"]):
        assert shown(NETWORK) in said(host, *words)
    assert in_metrics(host, "network") == {NETWORK}
    assert label(NETWORK) in host.own_rules()
    assert label(NETWORK) in said(host, "rules")
    said(host, "plan")
    assert host.snapshot_foreign() == foreign


@pytest.fixture
def bridge(host: Host) -> Iterator[str]:
    """A bridge of the host's own; the kernel takes names without white space, colons and slashes, of 15 bytes."""
    host.run("ip", "link", "add", "name", BRIDGE, "type", "bridge")
    try:
        host.run("ip", "link", "set", "dev", BRIDGE, "up")
        host.run("ip", "address", "add", "10.7.0.1/24", "dev", BRIDGE)
        yield BRIDGE
    finally:
        host.run("ip", "link", "delete", "dev", BRIDGE)


@pytest.mark.on(LibvirtFirewall.NFTABLES)
def test_a_bridge_with_a_hostile_name_is_only_a_name(
    host: Host, bridge: str, lxc_guest: MakeLxcGuest, daemon: StartDaemon
) -> None:
    web = lxc_guest("web", Link("", ("10.7.0.10/24",), bridge=bridge))
    running = daemon(
        f"{HEAD}{LISTEN}{entry('web', '8000:80', '10.7.0.10')}"
        f'[[nat]]\ndomain = "web"\npublic = "{PUBLIC4_SECOND}"\naddress = "10.7.0.10"\n'
    )
    answers(host, 8000, "web")
    # Through the bridge and back, for which rules and settings of bridge ports are needed.
    assert web.place.fetch(f"http://{PUBLIC4}:8000/").text == f"web {PUBLIC4_SECOND}"
    assert f"is reached through {shown(bridge)}\n" in everything_told(host, running)
