"""The base chains that `explain` follows a connection through, as the real kernel has them."""

import json
import subprocess

import pytest

from fwdaemon.conflicts.watch import ForeignRules
from fwdaemon.errors import KernelError
from fwdaemon.explain.gather import Kernel
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.nftables.existing import existing_tables

NATIVE = """
table inet fw {
    chain pre { type filter hook prerouting priority -150; tcp dport 80 accept; }
    chain plain { tcp dport 81 drop; }
}
table ip nat {
    chain late { type nat hook postrouting priority 200; masquerade; }
}
"""


def iptables(*words: str | bytes) -> None:
    subprocess.run(["/usr/sbin/iptables-nft", *words], check=True)  # noqa: S603  words of ours


def chains(runner: SystemRunner) -> list[tuple[str, str, int]]:
    """Each base chain, with who listed it, and how many rules are in it."""
    return [(str(chain), str(chain.system), len(chain.chains.get(chain.name, ()))) for chain in Kernel(runner).chains()]


def test_each_chain_is_listed_by_the_program_that_reads_it_best(runner: SystemRunner) -> None:
    assert chains(runner) == []
    iptables("-A", "FORWARD", "-m", "comment", "--comment", "x", "-j", "DROP")
    iptables("-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE")
    runner.run("nft", "-f", "-", stdin=NATIVE.replace("table ip nat", "table ip other"))
    assert sorted(chains(runner)) == [
        ("inet fw pre", "nftables", 1),
        ("ip filter FORWARD", "iptables-nft", 1),
        ("ip nat POSTROUTING", "iptables-nft", 1),
        ("ip other late", "nftables", 1),
    ]


def test_a_table_of_iptables_that_holds_more_hides_nothing(runner: SystemRunner) -> None:
    iptables("-t", "nat", "-A", "POSTROUTING", "-j", "MASQUERADE")
    runner.run("nft", "-f", "-", stdin=NATIVE)
    assert {(name, rules) for name, _, rules in chains(runner)} == {
        ("inet fw pre", 1),
        ("ip nat POSTROUTING", 1),
        ("ip nat late", 1),
    }


def test_the_name_of_a_table_is_never_more_than_a_name(runner: SystemRunner) -> None:
    runner.run("nft", "-f", "-", stdin="table ip victim { }")
    name = "x; delete table ip victim"
    base = {"family": "ip", "table": name, "name": "c", "type": "nat", "hook": "prerouting", "prio": 0}
    made = [{"add": {"table": {"family": "ip", "name": name}}}, {"add": {"chain": base}}]
    runner.run("nft", "-j", "-f", "-", stdin=json.dumps({"nftables": made}))
    assert (f"ip {name} c", "nftables", 0) in chains(runner)
    assert ForeignRules(runner).read().translations == ()
    iptables("-N", b"c\xff")
    with pytest.raises(KernelError, match="has a name that nft cannot be asked for"):
        chains(runner)
    assert existing_tables() == {("ip", "victim"), ("ip", name), ("ip", "filter")}


def test_a_name_that_is_no_text_hides_nothing(runner: SystemRunner) -> None:
    iptables("-N", b"c\xff")
    iptables("-A", "FORWARD", "-j", b"c\xff")
    runner.run("nft", "-f", "-", stdin=NATIVE)
    assert ("ip filter FORWARD", "iptables-nft", 1) in chains(runner)
    assert ("inet fw pre", "nftables", 1) in chains(runner)
