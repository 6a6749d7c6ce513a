"""The rules of temporary forwards, in both rule systems, and what `explain` takes a listing of them for."""

import json
from dataclasses import replace

import pytest

from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, Until
from fwdaemon.legacy.model import OWN_CHAINS
from fwdaemon.legacy.model import Rule as LegacyRule
from fwdaemon.legacy.translation import translating
from fwdaemon.nftables.difference import creation
from fwdaemon.nftables.model import Lasting
from fwdaemon.nftables.ruleset import tables
from fwdaemon.rulesets import nft_listing, xt_listing
from fwdaemon.rulesets.packet import Match, System
from tests.unit.forwards import forward


@pytest.mark.parametrize(("ports", "name"), [("8022", "every_address"), ("8022-8023", "every_address_ranges")])
def test_rules_look_at_the_clocks_before_they_label(ports: str, name: str) -> None:
    until = Until(1_772_003_600, 8_600.25)
    opening = replace(forward(f"tcp *:{ports}", f"192.168.122.50:{ports}"), until=until)
    desired = Desired(frozenset({opening}))
    table = tables(desired)[Family.IPV4]
    (rule,) = table.chains[f"any.tcp.{ports}".replace("-", "_")].rules
    before, _, _ = rule.expression.partition("ct label set")
    assert before == f"meta l4proto tcp meta time < 1772003600 meta l4proto . th dport @{name}_open "
    assert table.sets[f"{name}_open"].elements == {f"tcp . {ports}": Lasting("until 1772003600 or 8600")}
    assert f"tcp . {ports} timeout 1000250ms" in creation(table, now=7_601.0)
    (legacy,) = (rule for rule in rules_of(desired) if "--dport" in rule.matches)
    before, _, _ = legacy.matches.partition("-m connlabel")
    assert before.endswith(" -m time --datestop 2026-02-25T07:13:19 ")


def rules_of(desired: Desired) -> list[LegacyRule]:
    return [rule for servings in translating(Family.IPV4, desired).values() for _, rule in servings]


@pytest.mark.parametrize(("table", "matches"), [("kvm_portfwd", 1), ("theirs", 2)])
def test_explain_takes_what_is_listed_of_ours_for_open_in_nftables(table: str, matches: int) -> None:
    where = {"family": "ip", "table": table}
    left = {"meta": {"key": "l4proto"}}, {"meta": {"key": "time"}}
    tests = [{"match": {"op": "==", "left": left[0], "right": "tcp"}}]
    tests.append({"match": {"op": "<", "left": left[1], "right": "2026-11-30 09:00:00"}})
    hook = {"type": "nat", "hook": "prerouting", "prio": -105, "policy": "accept"}
    listed = [
        {"table": {"family": "ip", "name": table, "handle": 1}},
        {"chain": {**where, "name": "here", "handle": 2, **hook}},
        {"rule": {**where, "chain": "here", "handle": 3, "expr": [*tests, {"dnat": {"addr": "192.0.2.1"}}]}},
    ]
    (chain,) = nft_listing.base_chains(json.dumps({"nftables": listed}), {})
    (rule,) = chain.chains["here"]
    assert sum(isinstance(statement, Match) for statement in rule.statements) == matches


@pytest.mark.parametrize("chain", ["KVMPF_OUT", "THEIRS"])
def test_explain_takes_what_is_listed_of_ours_for_open_in_the_legacy_tables(chain: str) -> None:
    save = (
        f"*nat\n:PREROUTING ACCEPT [0:0]\n:{chain} - [0:0]\n-A {chain} -p tcp -m time --datestop 2026-11-30T12:00:00"
        " -j DNAT --to-destination 192.0.2.1\nCOMMIT\n"
    )
    (found,) = xt_listing.base_chains(save, System.LEGACY, Family.IPV4)
    (rule,) = found.chains[chain]
    assert (sum(isinstance(each, Match) for each in rule.statements) == 1) is (chain in OWN_CHAINS)
