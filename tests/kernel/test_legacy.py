"""The iptables backend on the real kernel: what is written comes back equal, and whatever is bent is repaired."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from ipaddress import ip_address
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fwdaemon.core.exposures import Exposure, Forward, Nat, Route
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, GateFault, Protocol
from fwdaemon.legacy.backend import LegacyBackend
from fwdaemon.legacy.info import existing_tables
from fwdaemon.legacy.model import PRE, restore_text
from fwdaemon.legacy.ruleset import tables
from fwdaemon.resolve.flows import Flow
from tests.kernel.legacy import EVERYTHING, MAIL, ROUTED, foreign, helpers, iptables, of_ipv4, own, saved
from tests.kernel.test_nftables import ALL, GAME, SHIFTED, SIX, WEB
from tests.lab.command import run
from tests.unit.forwards import forward, some_states

IPV4 = of_ipv4(Forward, Nat, Route)
TRANSLATED, MARKED = of_ipv4(Forward, Nat), of_ipv4(Nat, Route)
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
    assert backend.apply(EVERYTHING, full=False).mended == EVERYTHING.exposures
    rendered = [line for line in backend.render(EVERYTHING).splitlines() if line.startswith("-A")]
    held = [line for line in own().splitlines() if line.startswith("-A KVMPF")]
    assert sorted(held) == sorted(rendered)
    assert own().count("-A FORWARD -m comment --comment kvm-portfwd -j KVMPF_FWD") == 4


@pytest.mark.parametrize("family", Family)
def test_a_rule_is_what_iptables_itself_would_make_of_it(backend: LegacyBackend, family: Family) -> None:
    """Listings do not show everything, such as which letters of an interface's name count."""
    bound = forward("tcp *:90", "[2001:db8:5::5]:90", interface="eth0")
    elsewhere = frozenset(map(ip_address, ("198.51.100.77", "2001:db8::77")))
    desired = replace(EVERYTHING.having([bound]), elsewhere=elsewhere)
    backend.apply(desired, full=False)
    table = ""
    for line in restore_text(family, tables(desired)[family]).splitlines():
        table = line[1:] if line.startswith("*") else table
        if line.startswith("-A"):
            chain, *rule = shlex.split(line.removeprefix("-A "))
            iptables("-t", table, "-C", chain, *rule, family=family)


def test_what_is_written_comes_back_equal(backend: LegacyBackend) -> None:
    backend.apply(EVERYTHING, full=False)
    later = LegacyBackend()
    assert not later.apply(EVERYTHING, full=True).changed
    later.close()


def test_nothing_is_done_when_nothing_changed(backend: LegacyBackend) -> None:
    backend.apply(EVERYTHING, full=False)
    before = saved()
    pids = helpers()
    assert not backend.apply(EVERYTHING, full=False).changed
    assert not backend.apply(EVERYTHING, full=True).changed
    assert helpers() == pids
    assert [line for line in saved().splitlines() if line[0] != "#"] == [
        line for line in before.splitlines() if line[0] != "#"
    ]


def test_no_table_is_brought_into_being_but_those_that_are_needed(backend: LegacyBackend) -> None:
    backend.apply(Desired(frozenset({WEB})), full=True)
    names = Path("/proc/thread-self/net/ip_tables_names")
    assert names.read_text(encoding="ascii").split() == ["nat", "filter"]
    backend.apply(Desired(frozenset({WEB}), frozenset({MAIL})), full=True)
    assert set(names.read_text(encoding="ascii").split()) == {"nat", "filter", "mangle"}
    assert existing_tables(Family.IPV6) == frozenset()
    backend.remove()
    assert existing_tables(Family.IPV6) == frozenset()


def test_counters_of_forwards_that_stay_go_on(backend: LegacyBackend) -> None:
    backend.apply(ALL, full=False)
    iptables(
        "-t", "nat", "-R", "PREROUTING", "1", "-m", "comment", "--comment", "kvm-portfwd", "-j", PRE, "-c", "7", "9"
    )
    backend.apply(replace(ALL, forwards=ALL.forwards - {WEB}), full=False)
    counted = run(["iptables-legacy-save", "-c", "-t", "nat"]).stdout
    assert "[7:9] -A PREROUTING -m comment --comment kvm-portfwd" in counted


@pytest.mark.parametrize(
    ("bend", "damaged"),
    [
        ("-F", IPV4),
        ("-t nat -F", TRANSLATED),
        ("-t nat -F PREROUTING", TRANSLATED),
        ("-t nat -F KVMPF_PRE", TRANSLATED),
        ("-F KVMPF_FWD", IPV4),
        ("-t nat -D KVMPF_PRE 1", TRANSLATED),
        ("-t nat -F KVMPF_OUT", TRANSLATED),
        ("-t nat -D KVMPF_OUT 1", {SHIFTED}),
        ("-t nat -I KVMPF_PRE -j ACCEPT", TRANSLATED),
        ("-t nat -A KVMPF_PRE -j RETURN", TRANSLATED),
        ("-t nat -R KVMPF_OUT 3 -p tcp --dport 25 -j DNAT --to-destination 192.0.2.1", TRANSLATED),
        ("-t nat -D KVMPF_POST 1", {MAIL}),
        ("-t nat -I PREROUTING -m comment --comment kvm-portfwd -j KVMPF_PRE", TRANSLATED),
        ("-t nat -I PREROUTING -p tcp -m comment --comment kvm-portfwd -j KVMPF_PRE", TRANSLATED),
        ("-t nat -I PREROUTING -j KVMPF_PRE", TRANSLATED),
        ("-t nat -N KVMPF_FWD", set()),
        ("-t mangle -F", MARKED),
        ("-t mangle -F KVMPF_FWD", MARKED),
        ("-t mangle -D KVMPF_OUT 1", {ROUTED}),
    ],
)
def test_whatever_is_bent_is_mended(backend: LegacyBackend, bend: str, damaged: frozenset[Exposure]) -> None:
    backend.apply(EVERYTHING, full=False)
    before = foreign(), own()
    iptables(*bend.split())
    # A rule that was replaced by one as large shows only in a comparison.
    result = backend.apply(EVERYTHING, full=True)
    assert result.changed
    assert result.damaged == damaged
    assert (foreign(), own()) == before
    assert not backend.apply(EVERYTHING, full=True).changed


def test_a_deleted_chain_comes_back(backend: LegacyBackend) -> None:
    backend.apply(EVERYTHING, full=False)
    before = own()
    for family in Family:
        for words in ("-F", "-X", "-t mangle -F", "-t mangle -X", "-t nat -F", "-t nat -X"):
            iptables(*words.split(), family=family)
    assert backend.apply(EVERYTHING, full=False).damaged == EVERYTHING.exposures
    assert own() == before


@pytest.mark.parametrize(
    "table", ["nat PREROUTING", "nat OUTPUT", "nat POSTROUTING", "filter FORWARD", "mangle FORWARD"]
)
def test_a_link_goes_back_to_the_head(backend: LegacyBackend, table: str) -> None:
    backend.apply(EVERYTHING, full=False)
    name, chain = table.split(" ")
    iptables("-t", name, "-I", chain, "-m", "comment", "--comment", "theirs", "-j", "ACCEPT")
    result = backend.apply(EVERYTHING, full=False)
    (change,) = result.gates
    assert (str(change.gate), change.restored) == (f"ip {table}", True)
    assert change.fault == GateFault.BEHIND_RULE
    listing = saved().partition(f"*{name}\n")[2].partition("COMMIT")[0]
    lines = [line for line in listing.splitlines() if line.startswith(f"-A {chain}")]
    assert [("kvm-portfwd" in line, "theirs" in line) for line in lines[:2]] == [(True, False), (False, True)]
    assert not backend.apply(EVERYTHING, full=True).changed


def test_the_guard_of_an_earlier_version_is_taken_away(backend: LegacyBackend) -> None:
    iptables("-t", "mangle", "-N", "KVMPF_PRE")
    iptables("-t", "mangle", "-A", "KVMPF_PRE", "-d", "127.0.0.0/8", "!", "-i", "lo", "-j", "DROP")
    iptables("-t", "mangle", "-I", "PREROUTING", "-m", "comment", "--comment", "kvm-portfwd", "-j", "KVMPF_PRE")
    backend.apply(EVERYTHING, full=True)
    assert "KVMPF_PRE" not in saved().partition("*mangle\n")[2].partition("COMMIT")[0]
    assert not backend.apply(EVERYTHING, full=True).changed


def test_foreign_rules_come_through_byte_for_byte(backend: LegacyBackend) -> None:
    for family in Family:
        iptables("-P", "FORWARD", "DROP", family=family)
        iptables("-N", "THEIRS", family=family)
        iptables("-A", "FORWARD", "-m", "comment", "--comment", "theirs, not ours", "-j", "THEIRS", family=family)
        iptables("-t", "nat", "-A", "POSTROUTING", "-o", "eth0", "-j", "MASQUERADE", family=family)
        iptables("-t", "mangle", "-A", "FORWARD", "-j", "CONNMARK", "--save-mark", family=family)
    before = foreign()
    backend.apply(EVERYTHING, full=False)
    assert foreign() == before
    backend.apply(replace(ALL, forwards=frozenset({WEB})), full=False)
    assert foreign() == before
    backend.remove()
    assert foreign() == before
    assert own() == ""


def test_what_nobody_needs_any_more_goes_from_the_mangle_table(backend: LegacyBackend) -> None:
    backend.apply(ALL, full=False)
    before = own()
    backend.apply(EVERYTHING, full=False)
    # As by a daemon that was started anew.
    later = LegacyBackend()
    assert later.apply(ALL, full=False).mended == frozenset()
    later.close()
    assert own() == before


def test_what_an_earlier_run_left_is_adopted_or_taken_away(backend: LegacyBackend) -> None:
    backend.apply(EVERYTHING, full=False)
    later = LegacyBackend()
    fewer = replace(EVERYTHING, forwards=ALL.forwards - {WEB, SIX}, nats=frozenset({MAIL}), routes=frozenset())
    result = later.apply(fewer, full=False)
    assert result.mended == frozenset()
    assert result.stale == {
        "ip nat KVMPF_OUT web1",
        "ip6 nat KVMPF_OUT six",
        "ip6 mangle KVMPF_FWD six",
        *(f"{family} mangle KVMPF_OUT public" for family in ("ip", "ip6")),
        "ip nat KVMPF_OUT mail",
    }
    assert LegacyBackend().remove().changed
    assert own() == ""
    later.close()


def as_before(listed: str, table: str) -> str:
    """Write a table as versions before did: what exposures have in a chain of their own, to which others lead."""
    leads = '-m comment --comment "all 9c2f87042334" -j KVMPF_LEAD'
    changed = [f"-A KVMPF_{chain} {leads}" if (chain := _leading(line)) else line for line in listed.splitlines()]
    moved = "\n".join(changed).replace("KVMPF_OUT", "KVMPF_LEAD")
    if table == "mangle":
        return f"{moved}\n"
    linked = moved.replace("kvm-portfwd -j KVMPF_LEAD", "kvm-portfwd -j KVMPF_OUT")
    declared = linked.replace(":KVMPF_LEAD", ":KVMPF_OUT - [0:0]\n:KVMPF_LEAD")
    return declared.replace("COMMIT", f"-A KVMPF_OUT {leads}\nCOMMIT") + "\n"


def _leading(line: str) -> str:
    found = re.match(r"-A KVMPF_(PRE|FWD) -m comment .* -j KVMPF_OUT", line)
    return found[1] if found else ""


def test_the_chain_of_versions_before_goes_and_what_it_led_to_stays(backend: LegacyBackend) -> None:
    backend.apply(EVERYTHING, full=False)
    wanted = own()
    for program, table in product(("iptables", "ip6tables"), ("nat", "mangle")):
        listed = run([f"{program}-legacy-save", "-t", table]).stdout
        run([f"{program}-legacy-restore", "-T", table], stdin=as_before(listed, table))
    with closing(LegacyBackend()) as later:
        result = later.apply(replace(EVERYTHING, forwards=EVERYTHING.forwards - {SHIFTED}), full=False)
        # What this start ends hangs on what has changed meanwhile, and the chain's new name is no change.
        assert result.stale == {"ip nat KVMPF_OUT mail"}
        assert {exposure.owner.name for exposure in result.altered} == {"mail"}
        later.apply(EVERYTHING, full=False)
    assert own() == wanted


@pytest.mark.usefixtures("lock_file")
def test_ended_connections_are_refused_for_a_while(at_end: ExitStack) -> None:
    now = 1000.0
    backend = LegacyBackend(lambda: now)
    at_end.callback(backend.close)
    backend.apply(ALL, full=False)
    before = own()
    backend.refuse([FLOW])
    assert "--sport 80 -m conntrack --ctorigdst 198.51.100.2 --ctorigdstport 40000" in own()
    assert not backend.apply(ALL, full=True).changed
    now += 119
    assert not backend.apply(ALL, full=False).changed
    now += 2
    assert not backend.apply(ALL, full=False).damaged
    assert own() == before


_STORM = """
import os, random, subprocess, sys
number, storming = sys.argv[1], sys.argv[2]
table, chain = random.choice([("nat", "PREROUTING"), ("filter", "FORWARD"), ("mangle", "FORWARD")])
rule = ["-m", "comment", "--comment", "storm-" + number, "-j", "RETURN"]
there = False
while os.path.exists(storming) or not there:
    verb = "-D" if there else random.choice(["-A", "-I"])
    subprocess.run(["iptables-legacy", "-w", "-t", table, verb, chain, *rule], check=True)
    there = not there
"""


@contextmanager
def storm(storming: Path, writers: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Programs that write rules of their own until this ends, and then leave one each."""
    storming.touch()
    words = [[sys.executable, "-c", _STORM, str(number), str(storming)] for number in range(writers)]
    processes = [subprocess.Popen(argv) for argv in words]  # noqa: S603  words of ours
    try:
        yield processes
    finally:
        storming.unlink()
        for process in processes:
            process.wait()


def test_nobody_loses_a_rule_when_everybody_writes(backend: LegacyBackend, tmp_path: Path) -> None:
    states = [EVERYTHING, replace(ALL, forwards=frozenset({WEB, GAME})), replace(EVERYTHING, routes=frozenset())]
    with storm(tmp_path / "storming", 12) as processes:
        for desired in states * 3:
            backend.apply(desired, full=True)
    assert [process.returncode for process in processes] == [0] * len(processes)
    backend.apply(EVERYTHING, full=True)
    listing = saved()
    assert [listing.count(f"storm-{number} ") for number in range(12)] == [1] * 12
    for chain in ("PREROUTING", "OUTPUT", "POSTROUTING", "FORWARD"):
        (first, *others) = [line for line in listing.splitlines() if line.startswith(f"-A {chain} ")][:20]
        assert "kvm-portfwd" in first
        assert not any("kvm-portfwd" in line and "storm" in line for line in others)
    assert not backend.apply(EVERYTHING, full=True).changed


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(some_states(), min_size=1, max_size=4))
def test_any_sequence_of_states_is_reached_and_holds(backend: LegacyBackend, states: list[Desired]) -> None:
    for state in states:
        desired = replace(state, kept=frozenset({Family.IPV4}))
        backend.apply(desired, full=False)
        assert not backend.apply(desired, full=True).changed
        rendered = sorted(line for line in backend.render(desired).splitlines() if line.startswith("-A"))
        assert sorted(line for line in own().splitlines() if line.startswith("-A KVMPF")) == rendered
