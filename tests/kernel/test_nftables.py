"""The nftables backend on the real kernel: what is written comes back equal, and whatever is bent is repaired."""

import subprocess
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fwdaemon.core.exposures import Exposure
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, Gate, GateFault, Protocol
from fwdaemon.kernel.process import Finished, SystemRunner
from fwdaemon.nftables.backend import NftablesBackend
from fwdaemon.nftables.generation import current_generation
from fwdaemon.nftables.model import Table, read_table
from fwdaemon.nftables.ruleset import tables
from fwdaemon.resolve.flows import Flow
from tests import sentences
from tests.lab.place import wait_until
from tests.lab.rules import foreign_rules
from tests.unit.forwards import address, forward, in_ipv6, nat, route, some_states

WEB = forward("tcp *:80", "192.168.122.50:80")
MAIL = forward("tcp 198.51.100.7:25", "192.168.122.51:25", domain="mail")
GAME = forward(
    "udp *:27015-27030", "192.168.122.52:27015-27030", domain="game", sources=("203.0.113.0/24",), interface="eth0"
)
SHIFTED = forward("sctp 198.51.100.7:300-309", "192.168.122.51:400-409", domain="mail")
SIX = forward("tcp [2001:db8::7]:443", "[2001:db8:5::5]:8443", domain="six")
SIX_SHIFTED = forward("tcp *:500-503", "[2001:db8:5::5]:600-603", domain="six", sources=("2001:db8:9::/48",))
HOSTILE = forward("tcp *:81", "192.168.122.53:81", domain='"; } flush ruleset; {\n--comment' + "x" * 200)
NARROW = forward("tcp *:22", "192.168.122.50:22", sources=("203.0.113.0/24",))
ALL = Desired(frozenset({WEB, MAIL, GAME, SHIFTED, SIX, SIX_SHIFTED, HOSTILE, NARROW}))

POST = nat("198.51.100.8", "192.168.122.51")
POST_TOO = nat("198.51.100.9", "192.168.122.51")
POST_SIX = nat("2001:db8::8", "2001:db8:5::51")
NET = route("203.0.113.64/29")
NET_OF_ONE = route("203.0.113.72/32", "virbr2")
NET_SIX = route("2001:db8:1::/64")
EVERYTHING = replace(ALL, uplinks=frozenset({"eth0", "wg0"})).having(
    [POST, POST_TOO, POST_SIX, NET, NET_OF_ONE, NET_SIX]
)
IPV4 = {exposure for exposure in EVERYTHING.exposures if exposure.family is Family.IPV4}

FLOW = Flow(
    Protocol.TCP,
    address("198.51.100.2"),
    address("198.51.100.1"),
    80,
    address("192.168.122.50"),
    80,
    address("198.51.100.2"),
    40000,
)

LIBVIRT = """
table ip libvirt_network {
    chain guest_input { oif "lo" reject; }
    chain forward { type filter hook forward priority filter; policy accept; counter jump guest_input; }
}
table inet theirs {
    chain forward { type filter hook forward priority filter; policy drop; }
}
"""


@pytest.fixture
def backend(runner: SystemRunner) -> NftablesBackend:
    return NftablesBackend(runner)


def test_what_the_kernel_lists_as_we_made_it_is_kept_as_the_very_table(
    backend: NftablesBackend, runner: SystemRunner
) -> None:
    made = tables(EVERYTHING)[Family.IPV4]
    backend.apply(EVERYTHING, full=False)
    assert listed(runner, made) is made
    runner.run("nft", "delete", "element", "ip", "kvm_portfwd", "every_address_targets", "{ tcp . 80 }")
    bent = listed(runner, made)
    assert {name for name, found in bent.sets.items() if found is not made.sets[name]} == {"every_address_targets"}
    assert bent.chains is made.chains


def listed(runner: SystemRunner, known: Table) -> Table:
    listing = runner.run("nft", "-j", "list", "table", "ip", "kvm_portfwd").stdout
    return read_table(Family.IPV4, listing, known)


def foreign(runner: SystemRunner) -> str:
    """Everybody else's rules."""
    tables = [line.split(" ", 1)[1] for line in runner.run("nft", "list", "tables").stdout.splitlines()]
    others = [table for table in tables if "kvm_portfwd" not in table]
    return "".join(runner.run("nft", "-s", "list", "table", *table.split()).stdout for table in others)


def test_what_is_written_comes_back_equal(backend: NftablesBackend, runner: SystemRunner) -> None:
    assert backend.apply(EVERYTHING, full=False).mended == EVERYTHING.exposures
    assert not NftablesBackend(runner).apply(EVERYTHING, full=True).changed


def test_nothing_is_written_when_nothing_changed(backend: NftablesBackend) -> None:
    backend.apply(EVERYTHING, full=False)
    generation = current_generation()
    assert not backend.apply(EVERYTHING, full=False).changed
    assert not backend.apply(EVERYTHING, full=True).changed
    assert current_generation() == generation


def test_a_change_is_one_commit(backend: NftablesBackend) -> None:
    backend.apply(ALL, full=False)
    generation = current_generation()
    result = backend.apply(replace(ALL, forwards=ALL.forwards - {WEB, SIX}), full=False)
    assert current_generation() == generation + 1
    assert result.script.splitlines() == [
        "delete element ip kvm_portfwd every_address { tcp . 80 }",
        "delete element ip kvm_portfwd every_address_targets { tcp . 80 }",
        "delete element ip6 kvm_portfwd one_address { 2001:db8::7 . tcp . 443 }",
        "delete element ip6 kvm_portfwd one_address_targets { 2001:db8::7 . tcp . 443 }",
    ]


@pytest.mark.parametrize(
    ("bend", "damaged"),
    [
        ("flush ruleset", EVERYTHING.exposures),
        ("delete table ip kvm_portfwd", IPV4),
        ("flush chain ip kvm_portfwd every_address_plain", {WEB, HOSTILE}),
        ("delete element ip kvm_portfwd every_address_targets { tcp . 80 }", {WEB}),
        ("flush chain ip kvm_portfwd any.tcp.22", {NARROW}),
        ("flush chain ip kvm_portfwd prerouting", IPV4),
        ("insert rule ip kvm_portfwd any.tcp.22 drop", {NARROW}),
        ("delete element ip6 kvm_portfwd one_address { 2001:db8::7 . tcp . 443 }", {SIX}),
        ("flush map ip kvm_portfwd one_address_ranges", {SHIFTED}),
        ("add element ip kvm_portfwd every_address { tcp . 23 : jump every_address_plain }", set()),
        ('add element ip kvm_portfwd every_address_targets { tcp . 23 comment "x" : 192.168.122.9 . 23 }', set()),
        ("flush chain ip kvm_portfwd nat.198.51.100.8", {POST}),
        ("delete element ip kvm_portfwd one_to_one { 198.51.100.9 }", {POST_TOO}),
        ("flush map ip kvm_portfwd leaving_as", {POST}),
        ("insert rule ip6 kvm_portfwd from.2001_db8_5__51 accept", {POST_SIX}),
        ("flush map ip kvm_portfwd entering", {NET, NET_OF_ONE}),
        ("delete element ip6 kvm_portfwd leaving { 2001:db8:1::/64 }", {NET_SIX}),
        ("flush chain ip kvm_portfwd from.203.0.113.64/29", {NET}),
        ('delete element ip kvm_portfwd uplinks { "wg0" }', set()),
        ("add chain ip kvm_portfwd strange { type filter hook input priority 0; policy drop; }", set()),
        ('add set ip kvm_portfwd strange { type ifname; elements = { "lo" }; }', set()),
    ],
)
def test_whatever_is_bent_is_mended(
    backend: NftablesBackend, runner: SystemRunner, bend: str, damaged: frozenset[Exposure]
) -> None:
    backend.apply(EVERYTHING, full=False)
    before = runner.run("nft", "-s", "list", "ruleset").stdout
    runner.run("nft", "-f", "-", stdin=bend)
    result = backend.apply(EVERYTHING, full=False)
    assert result.changed
    assert result.damaged == damaged
    assert sorted(runner.run("nft", "-s", "list", "ruleset").stdout.splitlines()) == sorted(before.splitlines())
    assert not backend.apply(EVERYTHING, full=True).changed


@pytest.mark.parametrize(
    "before",
    [Desired(frozenset({WEB})), replace(EVERYTHING, forwards=frozenset({WEB}))],
)
def test_ended_connections_are_refused_on_when_something_else_opens(
    backend: NftablesBackend, runner: SystemRunner, before: Desired
) -> None:
    backend.apply(before, full=False)
    backend.refuse([FLOW])
    backend.apply(EVERYTHING, full=False)
    assert "192.168.122.50 . tcp . 80 . 198.51.100.2 . 40000" in runner.run("nft", "list", "ruleset").stdout
    assert not backend.apply(EVERYTHING, full=True).changed


class _Listening(SystemRunner):
    """Remembers what programs said."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def run(self, *argv: str, stdin: str = "") -> Finished:
        finished = super().run(*argv, stdin=stdin)
        self.heard.append(finished.stdout)
        return finished


def at_one_port(number: int) -> Flow:
    return replace(FLOW, client=address(f"10.0.{number >> 8}.{number & 255}"))


def at_many_ports(number: int) -> Flow:
    return replace(FLOW, server_port=1 + number)


@pytest.mark.parametrize(("ended", "most"), [(at_one_port, 1), (at_many_ports, 2048)])
def test_a_pass_lists_few_however_many_connections_ended(
    namespace: None, ended: Callable[[int], Flow], most: int
) -> None:
    del namespace
    runner = _Listening()
    backend = NftablesBackend(runner)
    backend.apply(ALL, full=True)
    for start in range(0, 20_000, 1000):
        backend.refuse([ended(number) for number in range(start, start + 1000)])
    runner.heard.clear()
    assert not backend.apply(ALL, full=True).changed
    assert 0 < sum(text.count('"expires"') for text in runner.heard) <= most


def test_what_is_refused_already_is_written_again_after_a_while_or_a_change_by_others(namespace: None) -> None:
    """Each time is a commit, which a wipe's repair waits for."""
    del namespace
    runner, now = SystemRunner(), [0.0]
    backend = NftablesBackend(runner, clock=lambda: now[0])
    backend.apply(ALL, full=True)
    turns = iter(range(10))

    def commits() -> int:
        before, first = current_generation(), 1000 * next(turns)
        backend.refuse([at_one_port(number) for number in range(first, first + 1000)])
        return current_generation() - before

    assert [commits(), commits()] == [1, 0]
    now[0] += 60.0
    assert [commits(), commits()] == [1, 0]
    runner.run("nft", "flush", "set", "ip", "kvm_portfwd", "ended_ports")
    assert [commits(), commits()] == [1, 0]
    assert "elements" in runner.run("nft", "list", "set", "ip", "kvm_portfwd", "ended_ports").stdout


def test_a_table_may_be_there_for_routes_alone(backend: NftablesBackend) -> None:
    assert backend.apply(Desired().having([NET_SIX]), full=True).mended == {NET_SIX}
    result = NftablesBackend(SystemRunner()).apply(Desired().having([NET]), full=True)
    assert result.mended == {NET}
    assert result.script.startswith("create table ip kvm_portfwd\n")
    assert result.script.endswith("delete table ip6 kvm_portfwd\n")


def test_a_guest_that_moves_keeps_its_chains(backend: NftablesBackend, runner: SystemRunner) -> None:
    desired = Desired().having([POST, NET])
    backend.apply(desired, full=False)
    moved = replace(POST, target=address("192.168.122.52")), replace(NET, bridge="virbr9")
    generation = current_generation()
    assert backend.apply(Desired().having(moved), full=False).damaged == frozenset()
    assert current_generation() == generation + 1
    assert not NftablesBackend(runner).apply(Desired().having(moved), full=True).changed


def with_set(runner: SystemRunner, number: int) -> None:
    """Give the table of the gate a set of so many addresses."""
    text = ", ".join(f"10.0.{value >> 8}.{value & 255}" for value in range(number))
    elements = f"elements = {{ {text} }};" if number else ""
    runner.run("nft", "-f", "-", stdin=f"table inet theirs {{ set blocked {{ type ipv4_addr; {elements} }}; }}")


class ArgumentsRunner(SystemRunner):
    """Keeps with which arguments programs were run."""

    def __init__(self) -> None:
        super().__init__()
        self.programs: list[tuple[str, ...]] = []

    def run(self, *argv: str, stdin: str = "") -> Finished:
        """Keep, and run."""
        self.programs.append(argv)
        return super().run(*argv, stdin=stdin)


@pytest.mark.parametrize("number", [0, 30_000])
def test_gates_are_opened_first_kept_first_and_closed(
    backend: NftablesBackend, runner: SystemRunner, number: int
) -> None:
    runner.run("nft", "-f", "-", stdin=LIBVIRT)
    with_set(runner, number)
    runner.run("iptables-nft", "-P", "FORWARD", "DROP")
    runner.run("iptables-nft", "-A", "FORWARD", "-j", "DROP")
    before = foreign(runner)
    configured = Gate("inet", "theirs", "forward")
    desired = replace(ALL, gates=(configured, Gate("inet", "theirs", "missing")))

    opened = backend.apply(desired, full=False).gates
    assert [(str(change.gate), change.restored) for change in opened] == [
        ("ip libvirt_network forward", False),
        ("ip filter FORWARD", False),
        ("inet theirs forward", False),
    ]
    assert not backend.apply(desired, full=True).changed

    runner.run("nft", "insert", "rule", "ip", "libvirt_network", "forward", "drop")
    runner.run("nft", "insert", "rule", "inet", "theirs", "forward", "drop")
    runner.run("iptables-nft", "-I", "FORWARD", "1", "-j", "DROP")
    moved = backend.apply(desired, full=False).gates
    assert {(change.restored, change.fault) for change in moved} == {(True, GateFault.BEHIND_RULE)}
    assert len(moved) == 3

    runner.run("iptables-nft", "-D", "FORWARD", "1")
    runner.run("iptables-nft", "-D", "FORWARD", "1")
    assert "kvm-portfwd" in runner.run("nft", "list", "chain", "inet", "theirs", "forward").stdout
    backend.apply(replace(desired, gates=()), full=False)
    assert "kvm-portfwd" not in runner.run("nft", "list", "chain", "inet", "theirs", "forward").stdout
    backend.remove()
    runner.run("iptables-nft", "-I", "FORWARD", "-j", "DROP")
    runner.run("iptables-nft", "-D", "FORWARD", "1")
    after = foreign(runner)
    assert "kvm-portfwd" not in after
    assert [line for line in before.splitlines() if "drop" not in line] == [
        line for line in after.splitlines() if "drop" not in line
    ]


@pytest.mark.usefixtures("namespace")
def test_a_gate_in_a_table_with_a_large_set_is_read_without_it() -> None:
    runner = ArgumentsRunner()
    runner.run("nft", "-f", "-", stdin=LIBVIRT)
    with_set(runner, 30_000)
    backend, desired = NftablesBackend(runner), replace(ALL, gates=(Gate("inet", "theirs", "forward"),))
    backend.apply(desired, full=False)
    assert not backend.apply(desired, full=True).changed
    listings = [argv for argv in runner.programs if "list" in argv and "kvm_portfwd" not in argv]
    assert ("nft", "-j", "-t", "list", "ruleset", "inet") in listings
    assert not [argv for argv in listings if "theirs" in argv]


def test_a_gate_that_is_refused_stops_nothing_else(backend: NftablesBackend, runner: SystemRunner) -> None:
    table = "add table inet theirs { flags owner; }"
    chain = "add chain inet theirs forward { type filter hook forward priority 0; }"
    owner = subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)  # noqa: S607
    with owner:
        assert owner.stdin is not None
        owner.stdin.write(f"{table}\n{chain}\n")
        owner.stdin.flush()
        wait_until(lambda: "hook forward" in runner.run("nft", "list", "ruleset").stdout, "the owned table")
        desired = replace(ALL, gates=(Gate("inet", "theirs", "forward"),))
        result = backend.apply(desired, full=False)
        assert result.mended == ALL.forwards
        assert ["may own that table alone" in fault for fault in sentences.faults(result)] == [True]
        assert result.gates == ()
        assert not backend.apply(desired, full=True).changed
        owner.stdin.close()


def test_foreign_rules_come_through_byte_for_byte(backend: NftablesBackend, runner: SystemRunner) -> None:
    runner.run("nft", "-f", "-", stdin=LIBVIRT)
    runner.run("iptables-nft", "-A", "FORWARD", "-m", "comment", "--comment", "not kvm-portfwd", "-j", "DROP")
    before = foreign(runner)
    for desired in (ALL, replace(ALL, forwards=frozenset({WEB}))):
        backend.apply(desired, full=False)
        assert foreign(runner) != before, "there are gates"
        assert foreign_rules(foreign(runner), "").splitlines() == before.splitlines()
    backend.remove()
    assert foreign(runner) == before


def test_what_an_earlier_run_left_is_adopted_or_taken_away(backend: NftablesBackend, runner: SystemRunner) -> None:
    backend.apply(ALL, full=False)
    later = NftablesBackend(runner)
    result = later.apply(replace(ALL, forwards=ALL.forwards - {WEB}), full=False)
    assert result.mended == frozenset()
    assert result.stale == {"ip kvm_portfwd every_address { tcp . 80 }"}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(some_states(), some_states().map(in_ipv6)), min_size=1, max_size=4))
def test_any_sequence_of_states_is_reached_and_holds(backend: NftablesBackend, states: list[Desired]) -> None:
    for desired in states:
        backend.apply(desired, full=False)
        assert not backend.apply(desired, full=True).changed
