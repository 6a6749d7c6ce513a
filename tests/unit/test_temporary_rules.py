"""The rules of temporary forwards, in both rule systems."""

from dataclasses import replace

import pytest

from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, Until
from fwdaemon.legacy.model import Rule as LegacyRule
from fwdaemon.legacy.translation import translating
from fwdaemon.nftables.difference import creation
from fwdaemon.nftables.model import Lasting
from fwdaemon.nftables.ruleset import tables
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
