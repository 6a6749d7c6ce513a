"""What the kernel itself says of its tables and chains, beside what `nft` lists."""

import subprocess

import pytest

from fwdaemon.commands.run import AheadRunner
from fwdaemon.core.types import Family
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.nftables.existing import (
    HookedChain,
    existing_tables,
    has_rules,
    hooked_chains,
    is_iptables,
    rules_holding,
)
from fwdaemon.nftables.gates import FoundRule
from fwdaemon.nftables.generation import LISTINGS
from fwdaemon.nftables.model import TABLE_NAME, items

FAMILIES = ("ip", "ip6", "inet", "arp", "bridge", "netdev")
CHAINS = """
table ip nat {
    chain PREROUTING { type nat hook prerouting priority dstnat; }
    chain empty { }
    chain full { tcp dport 80 accept; tcp dport 81 accept; }
}
table inet own {
    chain early { type filter hook forward priority -2147483648; policy drop; }
    chain full { type filter hook output priority 7; counter; }
}
table arp own {
    chain in { type filter hook input priority 0; }
}
table bridge own {
    chain pre { type filter hook prerouting priority -300; }
}
table netdev own {
    chain in { type filter hook ingress device lo priority 5; }
}
"""
HOOKS = {"prerouting": 0, "ingress": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}


def test_the_kernel_lists_the_tables_that_nft_lists(runner: SystemRunner) -> None:
    assert existing_tables() == frozenset()
    # More than fit into one datagram.
    made = {(family, f"table{number}") for family in FAMILIES for number in range(200)}
    runner.run("nft", "-f", "-", stdin="".join(f"add table {family} {name}\n" for family, name in made))
    assert existing_tables() == made


def test_the_kernel_lists_the_base_chains_that_nft_lists(runner: SystemRunner) -> None:
    assert hooked_chains() == []
    runner.run("nft", "-f", "-", stdin=CHAINS)
    assert hooked_chains() == [
        HookedChain(
            chain["family"],
            chain["table"],
            chain["name"],
            chain["type"],
            # NF_ARP_IN of linux/netfilter_arp.h is another number.
            0 if chain["family"] == "arp" else HOOKS[chain["hook"]],
            chain["prio"],
        )
        for chain in items(runner.run("nft", "-j", "list", "chains").stdout, "chain")
        if "hook" in chain
    ]


@pytest.mark.parametrize(
    ("family", "table", "chain", "full"),
    [
        ("ip", "nat", "full", True),
        ("inet", "own", "full", True),
        ("ip", "nat", "empty", False),
        ("ip", "nat", "missing", False),
        ("ip", "missing", "full", False),
        ("ip6", "nat", "full", False),
        ("ip", "own", "full", False),
    ],
)
def test_only_a_chain_with_rules_has_some(
    runner: SystemRunner, family: str, table: str, chain: str, *, full: bool
) -> None:
    runner.run("nft", "-f", "-", stdin=CHAINS)
    assert has_rules(family, table, chain) is full


def test_chains_of_iptables_are_known_by_their_names(runner: SystemRunner) -> None:
    runner.run("nft", "-f", "-", stdin=CHAINS)
    assert [chain.table for chain in hooked_chains() if is_iptables(chain)] == ["nat"]


def test_rules_are_found_by_a_text_in_them(runner: SystemRunner) -> None:
    rules = ['accept comment "ours"', "accept", 'accept comment "ours too"', 'counter comment "OURS"', "drop"]
    last = 'meta mark set 1 comment "ours"'
    text = "".join(f"add rule inet own full {rule}\n" for rule in [*rules, last])
    runner.run("nft", "-f", "-", stdin=CHAINS + text)
    listing = runner.run("nft", "-j", "list", "chain", "inet", "own", "full").stdout
    every = [
        FoundRule("inet", "own", "full", rule["handle"], rule.get("comment", "")) for rule in items(listing, "rule")
    ]
    found = rules_holding("ours")
    assert found == [rule for rule in every if rule.comment.startswith("ours")]
    assert [rule.comment for rule in found] == ["ours", "ours too", "ours"]
    assert rules_holding("others") == []


LARGE = "".join(f" -m u32 --u32 {'&&'.join(f'{number}=0x{number:x}' for number in range(1, 11))}" for _ in range(4))


def test_a_first_rule_as_large_as_a_page_hides_none(runner: SystemRunner) -> None:
    """The kernel ends a listing before one, unless its socket has received something before."""
    runner.run("iptables-nft", "-A", "FORWARD", *LARGE.split(), "-j", "ACCEPT")
    assert has_rules("ip", "filter", "FORWARD")
    runner.run("iptables-nft", "-A", "FORWARD", "-m", "comment", "--comment", "ours", "-j", "ACCEPT")
    assert [rule.chain for rule in rules_holding("ours")] == ["FORWARD"]


def test_a_comment_of_iptables_is_a_text_in_its_rule(runner: SystemRunner) -> None:
    runner.run("iptables-nft", "-A", "FORWARD", "-m", "comment", "--comment", "ours", "-j", "ACCEPT")
    assert [(rule.chain, rule.comment) for rule in rules_holding("ours")] == [("FORWARD", "")]


@pytest.mark.usefixtures("namespace")
def test_names_that_are_no_text_are_listed_like_others() -> None:
    for words in (("-N", b"c\xff"), ("-A", b"c\xff", "-j", "ACCEPT"), ("-A", "FORWARD", "-j", b"c\xff")):
        subprocess.run(["/usr/sbin/iptables-nft", *words], check=True)  # noqa: S603  words of ours
    assert existing_tables() == {("ip", "filter")}
    assert hooked_chains() == [HookedChain("ip", "filter", "FORWARD", "filter", HOOKS["forward"], 0)]
    assert has_rules("ip", "filter", "FORWARD")
    assert not has_rules("ip", "filter", "c")


def test_what_was_listed_ahead_is_given_once_and_not_after_a_commit(runner: SystemRunner) -> None:
    words, table = LISTINGS[Family.IPV4], ("ip", TABLE_NAME)
    runner.run("nft", "add", "table", *table)
    early, late = AheadRunner(), AheadRunner()
    assert early.run(*words).pid != early.run(*words).pid
    runner.run("nft", "add", "chain", *table, "new")
    assert "new" in late.run(*words).stdout
    assert "new" in early.run(*words).stdout
