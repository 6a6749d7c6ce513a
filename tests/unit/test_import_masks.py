"""A netmask with holes is no prefix, though Python reads it as a host mask: what it asks for is not understood."""

import pytest

from fwdaemon.core.text import GrammarError
from fwdaemon.importing.findings import read_listen, read_sources
from fwdaemon.importing.firewalld import parse_xml
from fwdaemon.importing.iptables_save import no_way
from fwdaemon.rulesets.rules import network_of
from tests.unit.imports import FILE, forwards, left_out
from tests.unit.saved_rules import SQL, found
from tests.unit.test_import_firewalld import PUBLIC

WITH_HOLES = ["0.0.0.7/0.0.0.255", "10.0.0.0/0.255.255.255", "10.0.0.0/255.0.255.0", "10.0.0.9/0.0.0.1"]


@pytest.mark.parametrize("text", WITH_HOLES)
def test_it_is_no_network(text: str) -> None:
    with pytest.raises(ValueError, match=text.partition("/")[0]):
        network_of(text)
    with pytest.raises(GrammarError):
        read_sources(text)
    with pytest.raises(GrammarError):
        read_listen(text)


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.1.2.3/255.0.0.0", "10.0.0.0/8"),
        ("10.1.2.3/0.0.0.0", "0.0.0.0/0"),
        ("10.1.2.3/255.255.255.255", "10.1.2.3/32"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("10.1.2.3", "10.1.2.3/32"),
        ("2001:db8::1/32", "2001:db8::/32"),
        ("::ffff:1.2.3.4/96", "::ffff:0:0/96"),
    ],
)
def test_a_mask_without_holes_is(text: str, network: str) -> None:
    assert str(network_of(text)) == network


@pytest.mark.parametrize("inverted", ["", "! "])
@pytest.mark.parametrize("option", ["-s", "-d", "-m conntrack --ctorigdst"])
@pytest.mark.parametrize("mask", WITH_HOLES)
def test_a_rule_that_asks_for_one_may_have_refused_anything(inverted: str, option: str, mask: str) -> None:
    rule = f"-A FORWARD {inverted}{option} {mask} -j DROP"
    findings = found([SQL], [rule])
    assert forwards(findings) == []
    (reason,) = left_out(findings)
    assert reason.endswith(f'"{rule}", stopped it')


@pytest.mark.parametrize("inverted", ["", "! "])
@pytest.mark.parametrize("mask", WITH_HOLES)
def test_a_rule_that_asks_for_one_lets_nothing_in(inverted: str, mask: str) -> None:
    assert forwards(found([SQL], [f"-A FORWARD {inverted}-s {mask} -j ACCEPT"], "DROP")) == []


def test_a_rule_that_sends_what_came_from_one_is_left_out() -> None:
    assert forwards(found([SQL.replace("-d 203", "-s 0.0.0.7/0.0.0.255 -d 203")])) == []


@pytest.mark.parametrize("end", ["source", "destination"])
@pytest.mark.parametrize("inverted", ["", ' invert="yes"'])
@pytest.mark.parametrize("mask", [*WITH_HOLES, "office"])
def test_a_forward_port_that_asks_for_one_is_a_comment(mask: str, inverted: str, end: str) -> None:
    text = PUBLIC.replace('<source address="203.0.113.0/24"/>', f'<{end} address="{mask}"{inverted}/>')
    findings = parse_xml(FILE, text, [], no_way)
    assert [forward.reason for forward in findings.forwards if forward.host.first == 2222] == [
        f"which addresses are in {mask} is not followed"
    ]


@pytest.mark.parametrize("mask", WITH_HOLES)
def test_a_zone_that_is_for_one_may_take_anything(mask: str) -> None:
    other = f'<zone><source address="{mask}"/></zone>'
    assert forwards(parse_xml(FILE, PUBLIC.replace("2001:db8:122::10", "192.168.122.10"), [other], no_way)) == []
