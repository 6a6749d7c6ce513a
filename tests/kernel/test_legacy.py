"""The iptables backend on the real kernel: what is written comes back equal, and whatever is bent is mended."""

import asyncio
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fwdaemon.desired import Desired, Forward
from fwdaemon.errors import KernelError
from fwdaemon.flows import Flow
from fwdaemon.legacy.backend import LegacyBackend
from fwdaemon.legacy.client import HelperClient, UnusableError
from fwdaemon.legacy.difference import Change, Edit
from fwdaemon.legacy.gates import LegacyGates
from fwdaemon.legacy.info import chain_names, existing_tables, table_info
from fwdaemon.legacy.model import FWD, PRE, Rule, TableName
from fwdaemon.legacy.monitor import LegacyMonitor
from fwdaemon.legacy.ruleset import links, tables
from fwdaemon.legacy.text import restore_text
from fwdaemon.model import Family, Protocol
from tests.kernel.test_nftables import ALL, GAME, SHIFTED, SIX, WEB
from tests.lab.command import run
from tests.lab.rules import foreign_rules, own_rules
from tests.unit.forwards import forward

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


@pytest.fixture
def lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, namespace: None) -> Path:
    """Keep everybody in the namespace away from the machine's own lock."""
    del namespace
    path = tmp_path / "xtables.lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(path))
    return path


@pytest.fixture
def backend(lock_file: Path) -> Iterator[LegacyBackend]:
    del lock_file
    backend = LegacyBackend()
    yield backend
    backend.close()
    assert not helpers(), "a helper was left behind"


def helpers() -> list[int]:
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text(encoding="ascii").split()
    return [int(pid) for pid in children if b"fwdaemon.legacy.helper" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def iptables(*arguments: str, family: Family = Family.IPV4) -> None:
    program = "iptables-legacy" if family is Family.IPV4 else "ip6tables-legacy"
    run([program, "-w", *arguments], env=dict(os.environ))


def saved() -> str:
    return "".join(run([f"{program}-legacy-save"]).stdout for program in ("iptables", "ip6tables"))


def foreign() -> str:
    return foreign_rules("", saved())


def own() -> str:
    return own_rules("", saved())


def commit(client: HelperClient, change: Change) -> None:
    with client.locked() as session:
        session.observe({TableName.FILTER: {}})
        session.commit(TableName.FILTER, change)


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


def test_a_helper_that_dies_is_an_error_once(backend: LegacyBackend) -> None:
    backend.apply(ALL, thorough=False)
    client = HelperClient(Family.IPV4)
    with client.locked() as session:
        session.observe({TableName.NAT: links(TableName.NAT)})
    assert client.pid
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(KernelError, match="ended unexpectedly"), client.locked() as session:
        session.observe({TableName.NAT: links(TableName.NAT)})
    with client.locked() as session:
        assert PRE in session.observe({TableName.NAT: links(TableName.NAT)})[TableName.NAT].chains
    client.close()


def test_the_backend_goes_on_after_its_helpers_died(backend: LegacyBackend) -> None:
    backend.apply(ALL, thorough=False)
    for pid in helpers():
        os.kill(pid, signal.SIGKILL)
    iptables("-F")
    assert backend.apply(ALL, thorough=True).damaged == IPV4


def test_signals_meant_for_the_daemon_do_not_end_a_helper(backend: LegacyBackend) -> None:
    backend.apply(ALL, thorough=False)
    pids = helpers()
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    iptables("-F")
    assert backend.apply(ALL, thorough=False).changed
    assert helpers() == pids


def test_what_the_kernel_refuses_is_named_and_changes_nothing(lock_file: Path) -> None:
    del lock_file
    client = HelperClient(Family.IPV4)
    good = Rule.of("-p tcp", "ACCEPT", "good")
    bad = Rule.of("", "REJECT --reject-with tcp-reset", "bad")  # for TCP only, which nobody says here
    change = Change(create=(FWD,), edits=(Edit(FWD, (), ((0, good), (1, bad))),))
    with pytest.raises(KernelError, match=r"legacy table filter .* REJECT"):
        commit(client, change)
    assert own() == ""
    client.close()


def test_what_the_library_refuses_is_named_and_changes_nothing(lock_file: Path) -> None:
    del lock_file
    client = HelperClient(Family.IPV6)
    bad = Rule.of("-p tcp -m tcp --dport nonsense", "ACCEPT", "bad")
    with pytest.raises(KernelError, match=r"refused a rule.*nonsense"):
        commit(client, Change(create=(FWD,), edits=(Edit(FWD, (), ((0, bad),)),)))
    assert own() == ""
    with client.locked() as session:
        assert session.observe({TableName.FILTER: {}})
    client.close()


def test_what_is_missing_is_said_plainly(lock_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    del lock_file
    monkeypatch.setenv("XTABLES_LIBDIR", str(tmp_path))
    with pytest.raises((KernelError, UnusableError), match="addrtype"), HelperClient(Family.IPV4).locked():
        pass


def test_iptables_waits_for_us_and_we_for_iptables(lock_file: Path) -> None:
    client = HelperClient(Family.IPV4)
    with client.locked() as session:
        session.observe({TableName.FILTER: links(TableName.FILTER)})
        waiting = subprocess.Popen(["iptables-legacy", "-w", "-A", "FORWARD", "-j", "ACCEPT"])  # noqa: S607
        time.sleep(0.2)
        assert waiting.poll() is None
    assert waiting.wait(5) == 0
    holder = subprocess.Popen(["flock", str(lock_file), "sleep", "0.5"])  # noqa: S603, S607
    time.sleep(0.2)
    before = time.monotonic()
    with client.locked() as session:
        assert session.observe({TableName.FILTER: links(TableName.FILTER)})[TableName.FILTER].heads["FORWARD"].foreign
    assert time.monotonic() - before > 0.1
    holder.wait()
    client.close()


def test_the_daemon_never_loads_the_library() -> None:
    loaded = "import fwdaemon.daemon, fwdaemon.legacy.backend, fwdaemon.legacy.gates, fwdaemon.legacy.monitor, sys"
    program = f"{loaded}; sys.exit('iptc' in sys.modules)"
    assert run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(Path.cwd())}).returncode == 0


# --- gates for rules that live elsewhere -----------------------------------------------------------------------------


@pytest.fixture
def gates(lock_file: Path) -> Iterator[LegacyGates]:
    del lock_file
    gates = LegacyGates()
    yield gates
    gates.close()


def test_no_gate_where_there_is_no_legacy_table(gates: LegacyGates) -> None:
    assert not gates.keep(frozenset(Family), 0x02000000, thorough=True).changed
    assert existing_tables(Family.IPV4) == existing_tables(Family.IPV6) == frozenset()


@pytest.mark.parametrize("refusal", ["-A FORWARD -j DROP", "-P FORWARD DROP"])
def test_a_gate_is_opened_where_connections_could_be_refused(gates: LegacyGates, refusal: str) -> None:
    iptables(*refusal.split())
    before = foreign()
    (change,) = gates.keep(frozenset(Family), 0x02000000, thorough=False).gates
    assert (str(change.gate), change.restored) == ("ip filter FORWARD", False)
    assert not gates.keep(frozenset(Family), 0x02000000, thorough=True).changed
    iptables("-I", "FORWARD", "-j", "DROP")
    (change,) = gates.keep(frozenset(Family), 0x02000000, thorough=False).gates
    assert (change.restored, change.fault) == (True, "another rule was ahead of it")
    rules = [line for line in saved().splitlines() if line.startswith("-A FORWARD")]
    assert rules[0] == ("-A FORWARD -m connmark --mark 0x2000000/0x2000000 -m comment --comment kvm-portfwd -j ACCEPT")
    gates.keep((), 0x02000000, thorough=False)
    iptables("-D", "FORWARD", "1")
    assert own() == ""
    assert foreign() == before


def test_a_gate_leaves_the_chains_of_the_backend_alone(gates: LegacyGates, backend: LegacyBackend) -> None:
    iptables("-A", "FORWARD", "-j", "DROP")
    gates.keep({Family.IPV4}, 0x02000000, thorough=True)
    assert backend.apply(ALL, thorough=True).changed
    assert not gates.keep({Family.IPV4}, 0x02000000, thorough=True).changed
    assert not backend.apply(ALL, thorough=True).changed
    gates.remove()
    assert not backend.apply(ALL, thorough=True).changed


# --- noticing --------------------------------------------------------------------------------------------------------


def test_a_table_tells_its_size_and_chains(lock_file: Path) -> None:
    del lock_file
    for family in Family:
        assert chain_names(family, TableName.FILTER) == frozenset()
        iptables("-N", "LIBVIRT_FWX", family=family)
        assert chain_names(family, TableName.FILTER) == {"LIBVIRT_FWX"}
        before = table_info(family, TableName.FILTER)
        iptables("-A", "FORWARD", "-j", "LIBVIRT_FWX", family=family)
        after = table_info(family, TableName.FILTER)
        assert (before.forwards, after.forwards) == (False, True)
        assert after.entries == before.entries + 1


@pytest.mark.parametrize("hidden", [False, True], ids=["with the lock", "without the lock"])
def test_a_change_is_noticed(lock_file: Path, monkeypatch: pytest.MonkeyPatch, *, hidden: bool) -> None:
    iptables("-A", "FORWARD", "-j", "ACCEPT")

    async def notice() -> None:
        heard = asyncio.Event()

        def changed(meddler: str, *, thorough: bool) -> None:
            assert (meddler, thorough) == ("somebody, in the legacy tables", True)
            heard.set()

        monitor = LegacyMonitor(changed, poll=0.3)
        monitor.start()
        await asyncio.sleep(0.4)
        assert not heard.is_set()
        if hidden:
            monkeypatch.setenv("XTABLES_LOCKFILE", f"{lock_file}.other")
        iptables("-A", "FORWARD", "-j", "DROP")
        monkeypatch.setenv("XTABLES_LOCKFILE", str(lock_file))
        await asyncio.wait_for(heard.wait(), 10)
        monitor.close()

    asyncio.run(notice())


# --- everybody at once -----------------------------------------------------------------------------------------------

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


_links = st.sampled_from([None, "eth0", "eth1"])
_forwards = st.builds(
    lambda protocol, listen, first, width, shift, guest, link, sources: forward(
        f"{protocol} {listen}:{first}-{first + width}",
        f"{guest}:{first + shift}-{first + shift + width}",
        interface=link,
        sources=sources,
    ),
    st.sampled_from(["tcp", "udp", "sctp"]),
    st.sampled_from(["*", "198.51.100.7"]),
    st.integers(1, 40),
    st.integers(0, 9),
    st.sampled_from([0, 0, 100]),
    st.sampled_from(["192.168.122.50", "192.168.122.51"]),
    _links,
    st.sampled_from([(), ("203.0.113.0/24", "203.0.113.7/32"), ("192.0.2.1/32",)]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.frozensets(_forwards, max_size=8), min_size=1, max_size=4))
def test_any_sequence_of_states_is_reached_and_holds(backend: LegacyBackend, states: list[frozenset[Forward]]) -> None:
    for forwards in states:
        desired = Desired(forwards, kept=frozenset({Family.IPV4}))
        backend.apply(desired, thorough=False)
        assert not backend.apply(desired, thorough=True).changed
        rendered = sorted(line for line in backend.render(desired).splitlines() if line.startswith("-A"))
        assert sorted(line for line in own().splitlines() if line.startswith("-A KVMPF")) == rendered
