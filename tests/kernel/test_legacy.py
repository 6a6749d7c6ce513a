"""The iptables backend on the real kernel: what is written comes back equal, and whatever is bent is mended."""

import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fwdaemon.desired import Desired, Forward
from fwdaemon.flows import Flow
from fwdaemon.legacy.backend import LegacyBackend
from fwdaemon.legacy.info import existing_tables
from fwdaemon.legacy.model import PRE
from fwdaemon.legacy.ruleset import tables
from fwdaemon.legacy.text import restore_text
from fwdaemon.model import Family, Protocol
from tests.kernel.legacy import foreign, helpers, iptables, own, saved
from tests.kernel.test_nftables import ALL, GAME, SHIFTED, SIX, WEB
from tests.lab.command import run
from tests.unit.forwards import forward, some_forwards

IPV4 = frozenset(item for item in ALL.forwards if item.family is Family.IPV4)
GUESTS = replace(ALL, guest_subnets=frozenset({ip_network("192.168.122.0/24"), ip_network("2001:db8:5::/64")}))
FLOW = Flow(
    Protocol.TCP,
    ip_address("198.51.100.2"),
    ip_address("198.51.100.1"),
    80,
    ip_address("192.168.122.50"),
    80,
    ip_address("198.51.100.2"),
    40000,
)


def test_the_kernel_holds_what_is_rendered(backend: LegacyBackend) -> None:
    assert backend.apply(GUESTS, thorough=False).mended == ALL.forwards
    rendered = [line for line in backend.render(GUESTS).splitlines() if line.startswith("-A")]
    held = [line for line in own().splitlines() if line.startswith("-A KVMPF")]
    assert sorted(held) == sorted(rendered)
    assert "-A FORWARD -m comment --comment kvm-portfwd -j KVMPF_FWD" in own()


@pytest.mark.parametrize("family", Family)
def test_a_rule_is_what_iptables_itself_would_make_of_it(backend: LegacyBackend, family: Family) -> None:
    """Listings do not show everything, such as which letters of an interface's name count."""
    bound = forward("tcp *:90", "[2001:db8:5::5]:90", interface="eth0")
    desired = replace(GUESTS, forwards=GUESTS.forwards | {bound})
    backend.apply(desired, thorough=False)
    table = ""
    for line in restore_text(family, tables(desired)[family]).splitlines():
        table = line[1:] if line.startswith("*") else table
        if line.startswith("-A"):
            chain, *rule = shlex.split(line.removeprefix("-A "))
            iptables("-t", table, "-C", chain, *rule, family=family)


def test_what_is_written_comes_back_equal(backend: LegacyBackend) -> None:
    backend.apply(GUESTS, thorough=False)
    later = LegacyBackend()
    assert not later.apply(GUESTS, thorough=True).changed
    later.close()


def test_nothing_is_done_when_nothing_changed(backend: LegacyBackend) -> None:
    backend.apply(ALL, thorough=False)
    before = saved()
    pids = helpers()
    assert not backend.apply(ALL, thorough=False).changed
    assert not backend.apply(ALL, thorough=True).changed
    assert helpers() == pids
    assert [line for line in saved().splitlines() if line[0] != "#"] == [
        line for line in before.splitlines() if line[0] != "#"
    ]


def test_no_table_is_brought_into_being_but_the_two_that_are_needed(backend: LegacyBackend) -> None:
    backend.apply(Desired(frozenset({WEB})), thorough=True)
    assert Path("/proc/thread-self/net/ip_tables_names").read_text(encoding="ascii").split() == ["nat", "filter"]
    assert existing_tables(Family.IPV6) == frozenset()
    backend.remove()
    assert existing_tables(Family.IPV6) == frozenset()


def test_counters_of_forwards_that_stay_go_on(backend: LegacyBackend) -> None:
    backend.apply(ALL, thorough=False)
    iptables(
        "-t", "nat", "-R", "PREROUTING", "1", "-m", "comment", "--comment", "kvm-portfwd", "-j", PRE, "-c", "7", "9"
    )
    backend.apply(replace(ALL, forwards=ALL.forwards - {WEB}), thorough=False)
    counted = run(["iptables-legacy-save", "-c", "-t", "nat"]).stdout
    assert "[7:9] -A PREROUTING -m comment --comment kvm-portfwd" in counted


@pytest.mark.parametrize(
    ("bend", "damaged"),
    [
        ("-F", IPV4),
        ("-t nat -F", IPV4),
        ("-t nat -F PREROUTING", IPV4),
        ("-t nat -F KVMPF_PRE", IPV4),
        ("-F KVMPF_FWD", IPV4),
        ("-t nat -D KVMPF_PRE 1", {SHIFTED}),
        ("-t nat -I KVMPF_PRE -j ACCEPT", IPV4),
        ("-t nat -A KVMPF_PRE -j RETURN", IPV4),
        ("-t nat -R KVMPF_PRE 4 -p tcp --dport 25 -j DNAT --to-destination 192.0.2.1", IPV4),
        ("-t nat -I PREROUTING -m comment --comment kvm-portfwd -j KVMPF_PRE", IPV4),
        ("-t nat -I PREROUTING -p tcp -m comment --comment kvm-portfwd -j KVMPF_PRE", IPV4),
        ("-t nat -I PREROUTING -j KVMPF_PRE", IPV4),
        ("-t nat -N KVMPF_OLD", set()),
    ],
)
def test_whatever_is_bent_is_mended(backend: LegacyBackend, bend: str, damaged: frozenset[Forward]) -> None:
    backend.apply(GUESTS, thorough=False)
    before = foreign(), own()
    iptables(*bend.split())
    # A rule that was replaced by one as large shows only in a comparison.
    outcome = backend.apply(GUESTS, thorough=True)
    assert outcome.changed
    assert outcome.damaged == damaged
    assert (foreign(), own()) == before
    assert not backend.apply(GUESTS, thorough=True).changed


def test_a_deleted_chain_comes_back(backend: LegacyBackend) -> None:
    backend.apply(ALL, thorough=False)
    before = own()
    for family in Family:
        for words in ("-F", "-X", "-t nat -F", "-t nat -X"):
            iptables(*words.split(), family=family)
    assert backend.apply(ALL, thorough=False).damaged == ALL.forwards
    assert own() == before


@pytest.mark.parametrize("table", ["nat PREROUTING", "nat OUTPUT", "nat POSTROUTING", "filter FORWARD"])
def test_a_link_goes_back_to_the_head(backend: LegacyBackend, table: str) -> None:
    backend.apply(ALL, thorough=False)
    name, chain = table.split(" ")
    iptables("-t", name, "-I", chain, "-m", "comment", "--comment", "theirs", "-j", "ACCEPT")
    outcome = backend.apply(ALL, thorough=False)
    (change,) = outcome.gates
    assert (str(change.gate), change.restored) == (f"ip {table}", True)
    assert change.fault == "another rule was ahead of it"
    lines = [line for line in saved().splitlines() if line.startswith(f"-A {chain}")]
    assert [("kvm-portfwd" in line, "theirs" in line) for line in lines[:2]] == [(True, False), (False, True)]
    assert not backend.apply(ALL, thorough=True).changed


def test_foreign_rules_come_through_byte_for_byte(backend: LegacyBackend) -> None:
    for family in Family:
        iptables("-P", "FORWARD", "DROP", family=family)
        iptables("-N", "THEIRS", family=family)
        iptables("-A", "FORWARD", "-m", "comment", "--comment", "theirs, not ours", "-j", "THEIRS", family=family)
        iptables("-t", "nat", "-A", "POSTROUTING", "-o", "eth0", "-j", "MASQUERADE", family=family)
        iptables("-t", "mangle", "-A", "FORWARD", "-j", "CONNMARK", "--save-mark", family=family)
    before = foreign()
    backend.apply(ALL, thorough=False)
    assert foreign() == before
    backend.apply(replace(ALL, forwards=frozenset({WEB})), thorough=False)
    backend.remove()
    assert foreign() == before
    assert own() == ""


def test_what_an_earlier_run_left_is_adopted_or_taken_away(backend: LegacyBackend) -> None:
    backend.apply(ALL, thorough=False)
    later = LegacyBackend()
    outcome = later.apply(replace(ALL, forwards=ALL.forwards - {WEB, SIX}), thorough=False)
    assert outcome.mended == frozenset()
    assert outcome.stale == {"ip nat KVMPF_PRE web1", "ip6 nat KVMPF_PRE six"}
    assert LegacyBackend().remove().changed
    assert own() == ""
    later.close()


def test_ended_connections_are_refused_for_a_while(backend: LegacyBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    backend.apply(ALL, thorough=False)
    before = own()
    backend.refuse([FLOW])
    assert "--sport 80 --dport 40000" in own()
    assert not backend.apply(ALL, thorough=True).changed
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 121)
    assert not backend.apply(ALL, thorough=False).damaged
    assert own() == before


_STORM = """
import os, random, subprocess, sys, time
number, until = sys.argv[1], time.monotonic() + float(sys.argv[2])
table, chain = random.choice([("nat", "PREROUTING"), ("filter", "FORWARD"), ("nat", "POSTROUTING")])
rule = ["-m", "comment", "--comment", "storm-" + number, "-j", "RETURN"]
there = False
while time.monotonic() < until or not there:
    verb = "-D" if there else random.choice(["-A", "-I"])
    subprocess.run(["iptables-legacy", "-w", "-t", table, verb, chain, *rule], check=True)
    there = not there
"""


def test_nobody_loses_a_rule_when_everybody_writes(backend: LegacyBackend) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", _STORM, str(number), "8"], env=dict(os.environ))  # noqa: S603
        for number in range(12)
    ]
    states = [ALL, replace(ALL, forwards=frozenset({WEB, GAME})), replace(ALL, forwards=ALL.forwards - {WEB})]
    applied = 0
    while any(process.poll() is None for process in processes):
        backend.apply(states[applied % 3], thorough=True)
        applied += 1
    assert [process.wait() for process in processes] == [0] * len(processes)
    assert applied > 10
    backend.apply(ALL, thorough=True)
    listing = saved()
    assert [listing.count(f"storm-{number} ") for number in range(12)] == [1] * 12
    for chain in ("PREROUTING", "OUTPUT", "POSTROUTING", "FORWARD"):
        (first, *others) = [line for line in listing.splitlines() if line.startswith(f"-A {chain} ")][:20]
        assert "kvm-portfwd" in first
        assert not any("kvm-portfwd" in line and "storm" in line for line in others)
    assert not backend.apply(ALL, thorough=True).changed


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.frozensets(some_forwards(), max_size=8), min_size=1, max_size=4))
def test_any_sequence_of_states_is_reached_and_holds(backend: LegacyBackend, states: list[frozenset[Forward]]) -> None:
    for forwards in states:
        desired = Desired(forwards, kept=frozenset({Family.IPV4}))
        backend.apply(desired, thorough=False)
        assert not backend.apply(desired, thorough=True).changed
        rendered = sorted(line for line in backend.render(desired).splitlines() if line.startswith("-A"))
        assert sorted(line for line in own().splitlines() if line.startswith("-A KVMPF")) == rendered
