"""How rules of nftables treat a packet, as `nft -j` lists them."""

from ipaddress import ip_address
from typing import Any

import pytest

from fwdaemon.core.types import Family, Protocol
from fwdaemon.rulesets.evaluation import Judgement
from fwdaemon.rulesets.nft_listing import rule_texts
from fwdaemon.rulesets.packet import Packet, State
from tests.unit.explaining import meets, native, packet

ACCEPTS, REFUSES, MAY = Judgement.ACCEPTS, Judgement.REFUSES, Judgement.MAY_REFUSE

SADDR = {"payload": {"protocol": "ip", "field": "saddr"}}
DADDR = {"payload": {"protocol": "ip", "field": "daddr"}}
DPORT = {"payload": {"protocol": "tcp", "field": "dport"}}
SPORT = {"payload": {"protocol": "tcp", "field": "sport"}}
PROTO = {"meta": {"key": "l4proto"}}
MARK = {"ct": {"key": "mark"}}
LABEL = {"ct": {"key": "label"}}
STATE = {"ct": {"key": "state"}}
DROP, ACCEPT, RETURN = {"drop": None}, {"accept": None}, {"return": None}
LIMIT = {"limit": {"rate": 3, "per": "second"}}


def is_(left: Any, right: Any, op: str = "==") -> Any:
    return {"match": {"op": op, "left": left, "right": right}}


def prefix(address: str, length: int) -> Any:
    return {"prefix": {"addr": address, "len": length}}


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (is_(SADDR, "203.0.113.9"), REFUSES),
        (is_(SADDR, "203.0.113.9", "!="), ACCEPTS),
        (is_(SADDR, prefix("203.0.113.0", 24)), REFUSES),
        (is_(SADDR, {"range": ["203.0.113.1", "203.0.113.8"]}), ACCEPTS),
        (is_(SADDR, {"set": ["198.51.100.2", prefix("203.0.112.0", 23)]}), REFUSES),
        (is_(SADDR, "@blocked"), REFUSES),
        (is_(SADDR, "@nobody"), ACCEPTS),
        (is_({"payload": {"protocol": "ip6", "field": "saddr"}}, "2001:db8::9", "!="), ACCEPTS),
        (is_(DPORT, 80), REFUSES),
        (is_(DPORT, {"range": [1, 79]}), ACCEPTS),
        (is_(DPORT, 79, ">"), REFUSES),
        (is_(SPORT, 1024, ">="), REFUSES),
        (is_(SPORT, 32768, ">="), MAY),
        (is_(SPORT, {"range": [1, 1023]}), ACCEPTS),
        (is_(SPORT, 40000), MAY),
        (is_({"payload": {"protocol": "th", "field": "dport"}}, {"set": [22, 80]}), REFUSES),
        (is_({"payload": {"protocol": "udp", "field": "dport"}}, 80, "!="), ACCEPTS),
        (is_({"payload": {"protocol": "tcp", "field": "flags"}}, "syn"), REFUSES),
        (is_({"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["syn", "ack"]]}, "syn"), REFUSES),
        (is_({"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, {"|": ["syn", "ack"]}]}, "ack"), ACCEPTS),
        (is_({"meta": {"key": "iifname"}}, "eth*"), REFUSES),
        (is_({"meta": {"key": "iifname"}}, "eth1"), ACCEPTS),
        (is_({"meta": {"key": "oifname"}}, ""), REFUSES),
        (is_(PROTO, {"set": [6, 17]}), REFUSES),
        (is_({"meta": {"key": "nfproto"}}, "ipv6"), ACCEPTS),
        (is_(STATE, ["established", "related"], "in"), ACCEPTS),
        (is_(STATE, "new", "in"), REFUSES),
        (is_(STATE, "new", "!="), ACCEPTS),
        (is_(STATE, {"set": ["new", "established"]}), REFUSES),
        (is_({"ct": {"key": "status"}}, "dnat", "!"), REFUSES),
        (is_({"&": [MARK, 0x02000000]}, 0x02000000), ACCEPTS),
        (is_({"ct": {"key": "direction"}}, "original"), REFUSES),
        (is_({"ct": {"key": "proto-dst", "dir": "original"}}, 80), REFUSES),
        (is_({"fib": {"result": "type", "flags": ["daddr"]}}, "local"), REFUSES),
        (is_({"fib": {"result": "type", "flags": ["saddr"]}}, "local"), ACCEPTS),
        (is_({"fib": {"result": "oif", "flags": ["saddr", "iif"]}}, False), ACCEPTS),
        (is_({"concat": [DADDR, DPORT]}, {"set": [{"concat": ["198.51.100.1", {"range": [80, 90]}]}]}), REFUSES),
        (is_({"concat": [DADDR, DPORT]}, {"set": [{"concat": ["198.51.100.2", 80]}]}), ACCEPTS),
        (is_({"meta": {"key": "skuid"}}, 0), MAY),
        (is_({"payload": {"protocol": "ip", "field": "ttl"}}, 64), MAY),
        (is_({"meta": {"key": "pkttype"}}, "host", "!="), MAY),
        (LIMIT, MAY),
        ({"xt": {"type": "match", "name": "recent"}}, MAY),
        ({"xt": None}, MAY),
        ({"what": "will come"}, MAY),
    ],
)
def test_a_match(match: Any, expected: Judgement) -> None:
    sets = {"blocked": [{"elem": {"val": "203.0.113.9", "timeout": 60}}], "nobody": []}
    assert meets(native([match, DROP], sets=sets)).judgement is expected


@pytest.mark.parametrize(
    ("subnet", "expected"),
    [("0.0.0.0/0", REFUSES), ("192.168.122.0/25", ACCEPTS), ("10.0.0.0/8", MAY), ("203.0.113.9/32", MAY)],
)
def test_a_client_somewhere_outside_is_in_none_of_our_own_subnets(subnet: str, expected: Judgement) -> None:
    address, _, length = subnet.partition("/")
    chain = native([is_(SADDR, prefix(address, int(length))), DROP])
    assert meets(chain, packet(source=None)).judgement is expected


def test_chains_are_jumped_to_and_returned_from() -> None:
    chains = {"inner": [[is_(DPORT, 80), RETURN], [DROP]]}
    assert meets(native([{"jump": {"target": "inner"}}], [DROP], chains=chains)).judgement is REFUSES
    assert meets(native([{"jump": {"target": "inner"}}], chains=chains)).judgement is ACCEPTS
    assert meets(native([{"goto": {"target": "inner"}}], [DROP], chains=chains)).judgement is ACCEPTS
    assert meets(native([{"goto": {"target": "inner"}}], chains=chains), packet(port=81)).judgement is REFUSES


def test_the_policy_counts_for_what_is_left() -> None:
    passage = meets(native([is_(DPORT, 81), ACCEPT], policy="drop"))
    assert passage.judgement is REFUSES
    assert passage.culprit is not None
    assert passage.culprit.number == 0


def test_a_verdict_map() -> None:
    elements = [[{"concat": ["tcp", {"range": [80, 90]}]}, {"goto": {"target": "inner"}}], ["*", ACCEPT]]
    vmap = {"vmap": {"key": {"concat": [PROTO, DPORT]}, "data": "@m"}}
    chain = native([vmap], [DROP], chains={"inner": [[DROP]]}, sets={"m": elements})
    passage = meets(chain)
    assert passage.judgement is REFUSES
    assert passage.culprit is not None
    assert passage.culprit.chain == "inner"
    assert meets(chain, packet(port=91)).judgement is ACCEPTS


def test_a_verdict_map_without_that_key_ends_the_rule() -> None:
    vmap = {"vmap": {"key": STATE, "data": {"set": [["established", ACCEPT], ["invalid", DROP]]}}}
    assert meets(native([vmap, ACCEPT], [DROP])).judgement is REFUSES
    assert meets(native([vmap], [DROP]), packet(state=State.ESTABLISHED)).judgement is ACCEPTS


def test_a_mark_is_set_and_seen() -> None:
    setting = {"mangle": {"key": MARK, "value": {"|": [MARK, 0x02000000]}}}
    gate = is_({"&": [MARK, 0x02000000]}, 0x02000000)
    assert meets(native([setting], [gate, ACCEPT], [DROP])).judgement is ACCEPTS
    assert meets(native([is_(DPORT, 81), setting], [gate, ACCEPT], [DROP])).judgement is REFUSES
    assert meets(native([LIMIT, setting], [gate, ACCEPT], [DROP])).judgement is MAY


def test_a_label_is_set_and_seen() -> None:
    setting, gate = {"mangle": {"key": LABEL, "value": 25}}, has_label(25)
    assert meets(native([setting], [gate, ACCEPT], [DROP])).judgement is ACCEPTS
    assert meets(native([is_(DPORT, 81), setting], [gate, ACCEPT], [DROP])).judgement is REFUSES
    assert meets(native([setting], [has_label(24), ACCEPT], [DROP])).judgement is REFUSES
    assert meets(native([LIMIT, setting], [gate, ACCEPT], [DROP])).judgement is MAY
    other_mark = {"mangle": {"key": MARK, "value": 7}}
    assert meets(native([setting], [other_mark], [gate, ACCEPT], [DROP])).judgement is ACCEPTS


def test_whether_a_number_and_a_name_are_one_label_cannot_be_told() -> None:
    setting = {"mangle": {"key": LABEL, "value": 25}}
    assert meets(native([setting], [has_label("web"), ACCEPT], [DROP])).judgement is MAY
    assert meets(native([has_label("web"), ACCEPT], [DROP])).judgement is REFUSES


def has_label(label: int | str) -> object:
    return {"match": {"op": "in", "left": LABEL, "right": label}}


def test_what_a_statement_changed_stays_when_a_later_match_fails() -> None:
    setting = {"mangle": {"key": {"meta": {"key": "mark"}}, "value": 5}}
    chain = native([setting, is_(DPORT, 81), ACCEPT], [is_({"meta": {"key": "mark"}}, 5), DROP])
    assert meets(chain).judgement is REFUSES


def test_an_accept_that_may_not_match_leaves_a_doubt() -> None:
    assert meets(native([LIMIT, ACCEPT], [DROP])).judgement is MAY
    assert meets(native([LIMIT, DROP], [DROP])).judgement is REFUSES
    assert meets(native([LIMIT, DROP], [ACCEPT])).judgement is MAY


def test_a_program_that_decides_leaves_a_doubt() -> None:
    assert meets(native([{"queue": {"num": 0}}])).judgement is MAY


@pytest.mark.parametrize(
    ("body", "to"),
    [
        ({"addr": "192.168.122.10", "port": 8080}, ("192.168.122.10", 8080)),
        ({"addr": "192.168.122.10"}, ("192.168.122.10", 80)),
        (
            {"addr": "192.168.122.10", "port": {"map": {"key": DPORT, "data": {"set": [[80, 81]]}}}},
            ("192.168.122.10", 81),
        ),
        (
            {"addr": {"map": {"key": DPORT, "data": {"set": [[80, {"concat": ["192.168.122.10", 8080]}]]}}}},
            ("192.168.122.10", 8080),
        ),
        (
            {"addr": {"map": {"key": {"numgen": {"mode": "inc", "mod": 2}}, "data": {"set": [[0, "10.0.0.1"]]}}}},
            (None, 80),
        ),
    ],
)
def test_a_translation(body: Any, to: tuple[str | None, int]) -> None:
    (led,) = meets(native([{"dnat": body}], type="nat")).packets
    assert (None if led.destination is None else str(led.destination), led.port) == to
    assert led.translated_by is not None


def test_of_an_unknown_translation_both_cases_are_followed() -> None:
    led = meets(native([LIMIT, {"dnat": {"addr": "10.0.0.1"}}], type="nat")).packets
    assert {str(item.destination) for item in led} == {"198.51.100.1", "10.0.0.1"}


def test_an_ipv6_packet() -> None:
    six = packet(
        family=Family.IPV6,
        source=ip_address("2001:db8::9"),
        destination=ip_address("2001:db8::1"),
        protocol=Protocol.UDP,
    )
    assert (
        meets(native([is_({"payload": {"protocol": "ip6", "field": "nexthdr"}}, "udp"), DROP]), six).judgement
        is REFUSES
    )
    assert meets(native([is_(DADDR, "198.51.100.1"), DROP]), six).judgement is ACCEPTS


def test_rule_texts_by_table_and_handle() -> None:
    listing = """table inet t { # handle 7
\tchain c { # handle 1
\t\ttype filter hook forward priority filter; policy drop;
\t\ttcp dport 80 log prefix "a # handle 3" accept comment "x" # handle 4
\t}
}
table ip6 t { # handle 8
\tchain c { # handle 1
\t\tdrop # handle 4
\t}
}
"""
    assert rule_texts(listing) == {
        ("inet", "t", 4): 'tcp dport 80 log prefix "a # handle 3" accept comment "x"',
        ("ip6", "t", 4): "drop",
    }


def test_far_too_many_doubtful_marks_are_one_doubt() -> None:
    marking = [[LIMIT, {"mangle": {"key": MARK, "value": {"|": [MARK, 1 << bit]}}}] for bit in range(20)]
    passage = meets(native(*marking, [is_(MARK, 5), DROP]))
    assert passage.judgement is MAY
    assert len(passage.packets) <= 17
    assert all(isinstance(item, Packet) for item in passage.packets)
