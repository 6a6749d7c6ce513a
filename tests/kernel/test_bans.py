"""Bans stay ahead of the gate, and nothing else does: in chains of nftables, iptables-nft and the legacy tables."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from fwdaemon.core.bans import BEHIND
from fwdaemon.core.report import ApplyResult
from fwdaemon.core.types import Family, Gate, GateFault
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.legacy.backend import LegacyBackend
from fwdaemon.legacy.client import HelperClient
from fwdaemon.legacy.gates import LegacyGates
from fwdaemon.nftables.backend import NftablesBackend
from tests.kernel.test_nftables import ALL
from tests.lab.command import run

NATIVE = Gate("inet", "theirs", "forward")
_NATIVE_CHAIN = """
table inet theirs {
    set bad { type ipv4_addr; elements = { 203.0.113.9 }; }
    map bans {
        type ipv4_addr : verdict; flags interval
        elements = { 203.0.113.0/24 : drop, 198.51.100.7 : goto refuse };
    }
    map none { type ipv4_addr : verdict; }
    map ports { type ipv4_addr . inet_service : verdict; elements = { 203.0.113.9 . 80 : jump refuse }; }
    map some { type ipv4_addr : verdict; elements = { 203.0.113.9 : drop, 203.0.113.8 : accept }; }
    map tools { type ipv4_addr : verdict; elements = { 203.0.113.9 : jump tool, 203.0.113.8 : jump mixed }; }
    map every { type ipv4_addr : verdict; elements = { 203.0.113.9 : drop, * : drop }; }
    chain f2b-sshd { ip saddr 203.0.113.9 drop; }
    chain tool { ip daddr 192.168.122.10 drop; }
    chain refuse { limit rate 3/minute log; tcp dport 22 return; meta l4proto tcp reject; drop; }
    chain mixed { tcp dport 22 accept; drop; }
    chain black { ip saddr 203.0.113.9 drop; ip saddr vmap @bans; }
    chain nested { tcp dport 80 jump black; goto f2b-sshd; }
    chain forward { type filter hook forward priority 0; }
}
"""
_WORDS = re.compile(r'comment "?kvm-portfwd')


@dataclass(frozen=True, slots=True)
class Chain:
    """A forward chain of others; `insert` puts a rule to its head, `apply` has the gate kept in it."""

    flush: Callable[[], object]
    insert: Callable[[str], object]
    append: Callable[[str], object]
    apply: Callable[[], ApplyResult]
    listed: Callable[[], list[str]]

    def begin(self, *rules: str) -> None:
        """Have these rules in it, and the gate where it belongs then."""
        self.flush()
        for rule in rules:
            self.append(rule)
        self.apply()

    def order(self) -> list[str]:
        """Give the rules in order, ours as `GATE`."""
        return ["GATE" if _WORDS.search(rule) else rule for rule in self.listed()]

    def others(self) -> list[str]:
        """Give everybody else's rules in order."""
        return [rule for rule in self.order() if rule != "GATE"]


def _native(runner: SystemRunner) -> Iterator[Chain]:
    runner.run("nft", "-f", "-", stdin=_NATIVE_CHAIN)
    backend, desired = NftablesBackend(runner), replace(ALL, gates=(NATIVE,))

    def listed() -> list[str]:
        lines = runner.run("nft", "list", "chain", *str(NATIVE).split()).stdout.splitlines()
        return [line.strip() for line in lines if line.startswith("\t\t") and "hook forward" not in line]

    yield Chain(
        lambda: runner.run("nft", "flush", "chain", *str(NATIVE).split()),
        lambda rule: runner.run("nft", "-f", "-", stdin=f"insert rule {NATIVE} {rule}\n"),
        lambda rule: runner.run("nft", "-f", "-", stdin=f"add rule {NATIVE} {rule}\n"),
        lambda: backend.apply(desired, full=False),
        listed,
    )


def _iptables(program: str, apply: Callable[[], ApplyResult]) -> Iterator[Chain]:
    run(["ipset", "create", "bad", "hash:ip"])
    run(["ipset", "add", "bad", "203.0.113.9"])
    for chain in ("f2b-sshd", "tool", "LOGGING", "BLOCK", "MIXED", "BLACK", "NESTED"):
        run([program, "-w", "-N", chain])
    run([program, "-w", "-A", "f2b-sshd", "-s", "203.0.113.9", "-j", "DROP"])
    run([program, "-w", "-A", "tool", "-d", "192.168.122.10", "-j", "DROP"])
    for rule in ("BLACK -s 203.0.113.9 -j DROP", "BLACK -s 203.0.113.8 -j BLOCK", "NESTED -p tcp -g BLACK"):
        run([program, "-w", "-A", *rule.split()])
    for rule in ("BLOCK -j LOG", "BLOCK -p tcp -j REJECT", "BLOCK -j DROP", "MIXED -j ACCEPT", "MIXED -j DROP"):
        run([program, "-w", "-A", *rule.split()])
    run([program, "-w", "-A", "LOGGING", "-m", "limit", "--limit", "3/min", "-j", "LOG"])
    yield Chain(
        lambda: run([program, "-w", "-F", "FORWARD"]),
        lambda rule: run([program, "-w", "-I", "FORWARD", *rule.split()]),
        lambda rule: run([program, "-w", "-A", "FORWARD", *rule.split()]),
        apply,
        lambda: run([program, "-S", "FORWARD"]).stdout.splitlines()[1:],
    )


@pytest.fixture(params=["iptables-nft", "legacy gate", "legacy backend"])
def xtables(
    request: pytest.FixtureRequest, runner: SystemRunner, clients: dict[Family, HelperClient]
) -> Iterator[Chain]:
    """The FORWARD chain of each kind of iptables."""
    nftables, gates, legacy = NftablesBackend(runner), LegacyGates(clients), LegacyBackend()
    keeps: dict[str, Callable[[], ApplyResult]] = {
        "iptables-nft": lambda: nftables.apply(ALL, full=False),
        "legacy gate": lambda: gates.apply({Family.IPV4}, ALL.label, BEHIND, full=False),
        "legacy backend": lambda: legacy.apply(ALL, full=False),
    }
    kind: str = request.param
    yield from _iptables("iptables-nft" if kind == "iptables-nft" else "iptables-legacy", keeps[kind])
    legacy.close()


@pytest.fixture
def native(runner: SystemRunner) -> Iterator[Chain]:
    """A chain of nftables' own."""
    yield from _native(runner)


XT_BANS = [
    "-s 203.0.113.9 -j DROP",
    "-s 203.0.113.0/24 -i eth0 -p tcp --dport 80 -j REJECT",
    "-p tcp -m multiport --dports 22 -j f2b-sshd",
    "-m set --match-set bad src -j DROP",
    "-m iprange --src-range 203.0.113.1-203.0.113.9 -j DROP",
    "-m recent --name BAD --rcheck -j DROP",
    "-m mac --mac-source 52:54:00:00:00:09 -j DROP",
    "-m conntrack --ctorigsrc 203.0.113.9 -j DROP",
    "-s 203.0.113.9 -j BLOCK",
    "-m set --match-set bad src -g BLOCK",
    "-j BLACK",
    "-i eth0 -p tcp -j NESTED",
]
XT_OTHERS = [
    "-j DROP",
    "-i eth0 -j REJECT",
    "! -s 203.0.113.9 -j DROP",
    "-s 0.0.0.0/0 -j DROP",
    "-m set ! --match-set bad src -j DROP",
    "-m set --match-set bad dst -j DROP",
    "-m iprange ! --src-range 203.0.113.1-203.0.113.9 -j DROP",
    "-m iprange --src-range 0.0.0.0-255.255.255.255 -j DROP",
    "-m recent --name BAD --set -j DROP",
    "-m recent --name BAD ! --rcheck -j DROP",
    "-m recent --name BAD --rcheck --rdest -j DROP",
    "-m mac ! --mac-source 52:54:00:00:00:09 -j DROP",
    "-m conntrack ! --ctorigsrc 203.0.113.9 -j DROP",
    "-m conntrack --ctorigdst 203.0.113.9 -j DROP",
    "-s 203.0.113.9 -j ACCEPT",
    "-j tool",
    "-j BLOCK",
    "-s 203.0.113.9 -j MIXED",
    "! -s 203.0.113.9 -g BLOCK",
    "-j LOG",
]
NFT_BANS = [
    "ip saddr 203.0.113.9 drop",
    "ip saddr 203.0.113.0/24 tcp dport 80 counter reject",
    "ip saddr { 203.0.113.9, 203.0.114.0/24 } log drop",
    "ip saddr @bad drop",
    "ip saddr vmap { 203.0.113.9 : drop }",
    "ip6 saddr 2001:db8:9::/48 drop",
    "ether saddr { 52:54:00:00:00:08, 52:54:00:00:00:09 } drop",
    "tcp dport 22 jump f2b-sshd",
    "ip saddr @bad jump refuse",
    "ip saddr 203.0.113.9 goto refuse",
    "ip saddr vmap @bans",
    "ip saddr vmap @none",
    "ip saddr . tcp dport vmap @ports",
    "jump black",
    'iifname "eth0" jump nested',
]
NFT_OTHERS = [
    "drop",
    'iifname "eth0" reject',
    "ip saddr != 203.0.113.9 drop",
    "ip saddr != @bad drop",
    "ip saddr 0.0.0.0/0 drop",
    "ip saddr { 0.0.0.0/1, 128.0.0.0/1 } drop",
    "ether saddr != 52:54:00:00:00:09 drop",
    "ip daddr 192.168.122.10 drop",
    "ip saddr 203.0.113.9 accept",
    "jump tool",
    "jump refuse",
    "ip saddr @bad jump mixed",
    "ip saddr != @bad goto refuse",
    "ip saddr vmap @some",
    "ip saddr vmap @tools",
    "ip saddr vmap @every",
    "ip daddr vmap @bans",
    "counter",
]


def holds(chain: Chain, ban: str) -> None:
    """Have a ban at the head of a chain with a gate, and see that nothing at all is done about it."""
    chain.insert(ban)
    before = chain.listed()
    assert not chain.apply().changed, ban
    assert chain.listed() == before
    assert chain.order()[1] == "GATE", ban


def outranked(chain: Chain, ban: str, other: str) -> None:
    """Have a rule at the head of a chain with a ban and a gate, and see the gate go ahead of it."""
    chain.insert(other)
    others = chain.others()
    assert [change.fault for change in chain.apply().gates] == [GateFault.BEHIND_RULE], other
    assert chain.order() == ["GATE", *others], other
    assert not chain.apply().changed, other
    chain.insert(ban)
    assert not chain.apply().changed, other
    assert chain.order()[1] == "GATE", other


def test_a_ban_stays_ahead_in_iptables(xtables: Chain) -> None:
    """Also a goto, as long as the policy accepts."""
    for ban in (*XT_BANS, "-g f2b-sshd", "-g BLACK"):
        xtables.begin("-j DROP")
        holds(xtables, ban)


def test_a_ban_stays_ahead_in_nftables(native: Chain) -> None:
    for ban in NFT_BANS:
        native.begin("drop")
        holds(native, ban)


def test_another_rule_does_not_stay_ahead_in_iptables(xtables: Chain) -> None:
    for other in XT_OTHERS:
        xtables.begin("-j DROP")
        outranked(xtables, XT_BANS[0], other)


def test_another_rule_does_not_stay_ahead_in_nftables(native: Chain) -> None:
    for other in NFT_OTHERS:
        native.begin("drop")
        outranked(native, NFT_BANS[0], other)


def test_a_goto_stays_ahead_in_nftables_while_the_policy_accepts(native: Chain, runner: SystemRunner) -> None:
    native.begin("drop")
    holds(native, "goto f2b-sshd")
    runner.run("nft", "-f", "-", stdin=f"chain {NATIVE} {{ policy drop; }}\n")
    (change,) = native.apply().gates
    assert change.fault == GateFault.BEHIND_RULE
    assert native.order()[0] == "GATE"


def test_a_map_is_judged_by_what_is_in_it_now(native: Chain, runner: SystemRunner) -> None:
    native.begin("drop")
    holds(native, "ip saddr vmap @bans")
    element = "element inet theirs bans { 192.0.2.0/24 : accept }"
    runner.run("nft", "-f", "-", stdin=f"add {element}\n")
    assert native.apply().changed
    assert native.order()[0] == "GATE"
    runner.run("nft", "-f", "-", stdin=f"delete {element}\n")
    assert native.apply().changed
    assert native.order()[1] == "GATE"


def test_a_gate_comes_behind_the_bans_that_are_there(xtables: Chain) -> None:
    for rule in (*XT_BANS, "-j DROP", XT_BANS[0]):
        xtables.append(rule)
    others = xtables.listed()
    xtables.apply()
    place = len(XT_BANS)
    assert xtables.order() == [*others[:place], "GATE", *others[place:]]
    xtables.insert("-j tool")
    xtables.apply()
    assert xtables.order() == ["GATE", "-A FORWARD -j tool", *others]


def test_a_native_gate_comes_behind_the_bans_that_are_there(native: Chain) -> None:
    for rule in (*NFT_BANS, "drop", NFT_BANS[0]):
        native.append(rule)
    others = native.listed()
    native.apply()
    place = len(NFT_BANS)
    assert native.order() == [*others[:place], "GATE", *others[place:]]
    native.insert("jump tool")
    native.apply()
    assert native.order() == ["GATE", "jump tool", *others]


def test_a_ban_that_is_appended_right_behind_the_gate_goes_ahead(xtables: Chain) -> None:
    """The same rules give the same place, whichever came first."""
    xtables.append(XT_BANS[0])
    xtables.apply()
    xtables.append(XT_BANS[2])
    (change,) = xtables.apply().gates
    assert change.fault == GateFault.AHEAD_OF_BAN
    assert xtables.order()[-1] == "GATE"


def test_a_chain_that_only_logs_does_not_keep_bans_from_holding(xtables: Chain) -> None:
    """That is how ufw has its jumps: one for the log comes before the one in which it refuses."""
    for rule in ("-j LOGGING", XT_BANS[2], "-j tool"):
        xtables.append(rule)
    xtables.apply()
    assert [rule == "GATE" for rule in xtables.order()] == [False, False, True, False]
    assert not xtables.apply().changed
