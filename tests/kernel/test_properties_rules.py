"""What `check` accepts, the kernel takes; and rules of others that hold anything are neither misread nor touched."""

import json

import pytest
from hypothesis import HealthCheck, given, settings

from fwdaemon.conflicts.watch import ForeignRules
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.legacy.backend import LegacyBackend
from fwdaemon.netfilter import Backend
from fwdaemon.nftables.backend import NftablesBackend
from fwdaemon.resolve import placement
from fwdaemon.rulesets import nft_listing, xt_listing
from fwdaemon.rulesets.packet import System
from tests.kernel.test_nftables import WEB, foreign
from tests.unit.configurations import accepted, inventory, some_entries, some_heads

HOST = inventory()
COMMENTS = [
    "a\n-A FORWARD -j DROP\n-A PREROUTING -p tcp -m tcp --dport x -j DNAT --to-destination nowhere\n:\n*nat\n-A",
    "x --comment kvm-portfwd y",
    '\n-A FORWARD -m connlabel --label "25" -m comment --comment kvm-portfwd -j ACCEPT\n',
    "a\x85b\u2028c\x0bd\x1c",
    "\"'\\",
    "'",
]


def wanted(entries: list[str], head: str) -> Desired:
    return placement.desired_state(accepted(entries, head)[0], HOST)


def taken(backend: Backend, again: Backend, desired: Desired) -> None:
    """See that the kernel takes a state, and that it is there to the letter afterwards."""
    first = backend.apply(desired, full=True)
    assert not first.faults
    second = again.apply(desired, full=True)
    assert not second.faults
    assert not second.changed


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some_entries(), some_heads())
def test_nftables_takes_what_check_accepts(runner: SystemRunner, entries: list[str], head: str) -> None:
    taken(NftablesBackend(runner), NftablesBackend(runner), wanted(entries, head))


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some_entries(), some_heads())
def test_the_legacy_tables_take_what_check_accepts(backend: LegacyBackend, entries: list[str], head: str) -> None:
    taken(backend, backend, wanted(entries, head))


@pytest.mark.parametrize("value", ["ipv4_addr; elements = { 80 : 10.0.0.1 }", "mark; elements = { 80 : 1 }"])
def test_a_map_that_somebody_adds_to_our_table_is_taken_away(runner: SystemRunner, value: str) -> None:
    desired = Desired().having([WEB])
    assert not NftablesBackend(runner).apply(desired, full=True).faults
    before = runner.run("nft", "-s", "list", "table", "ip", "kvm_portfwd").stdout
    runner.run("nft", "-f", "-", stdin=f"add map ip kvm_portfwd theirs {{ type inet_service : {value}; }}\n")
    assert not NftablesBackend(runner).apply(desired, full=True).faults
    assert runner.run("nft", "-s", "list", "table", "ip", "kvm_portfwd").stdout == before


@pytest.mark.parametrize("comment", COMMENTS, ids=range(len(COMMENTS)))
def test_comments_of_others_are_neither_syntax_nor_ours(runner: SystemRunner, comment: str) -> None:
    for table, chain, target in [("filter", "FORWARD", "ACCEPT"), ("nat", "PREROUTING", "RETURN")]:
        runner.run("iptables-nft", "-t", table, "-A", chain, "-m", "comment", "--comment", comment, "-j", target)
    before = foreign(runner)
    backend = NftablesBackend(runner)
    assert not backend.apply(Desired().having([WEB]), full=True).faults
    assert not NftablesBackend(runner).apply(Desired().having([WEB]), full=True).changed
    assert _forward_rules(runner) == 2
    backend.remove()
    assert foreign(runner) == before


@pytest.mark.parametrize("comment", COMMENTS, ids=range(len(COMMENTS)))
def test_comments_of_others_do_not_make_rules_in_what_is_told(runner: SystemRunner, comment: str) -> None:
    runner.run("iptables-nft", "-t", "nat", "-A", "PREROUTING", "-m", "comment", "--comment", comment, "-j", "RETURN")
    runner.run("nft", "-f", "-", stdin=_native(comment))
    assert ForeignRules(runner).read().translations == ()
    (written,) = [
        chain
        for chain in xt_listing.base_chains(runner.run("iptables-nft-save").stdout, System.IPTABLES_NFT, Family.IPV4)
        if str(chain) == "ip nat PREROUTING"
    ]
    assert len(written.chains["PREROUTING"]) == 1
    listing = runner.run("nft", "-j", "list", "ruleset").stdout
    texts = nft_listing.rule_texts(runner.run("nft", "-s", "-a", "list", "ruleset").stdout)
    (native,) = [chain for chain in nft_listing.base_chains(listing, texts) if chain.table == "theirs"]
    assert len(native.chains["c"]) == 1


def _native(comment: str) -> str:
    """One rule of nftables with as much of a comment as nft can write: nothing escapes a quote, nor a line break."""
    text = comment.replace('"', "").replace("\n", " ")[:60]
    hook = "type filter hook forward priority 0;"
    return f'table inet theirs {{\n chain c {{\n {hook}\n ip saddr 192.0.2.1 accept comment "{text}"\n }}\n}}\n'


def _forward_rules(runner: SystemRunner) -> int:
    listing = json.loads(runner.run("nft", "-j", "list", "chain", "ip", "filter", "FORWARD").stdout)
    return sum("rule" in item for item in listing["nftables"])
