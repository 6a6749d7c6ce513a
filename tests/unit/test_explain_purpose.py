"""A refusal of some clients is reported as deliberate, and no remedy opens it, for one client or for all."""

import json
from collections.abc import Mapping, Sequence
from ipaddress import ip_network
from typing import Any

import pytest

from fwdaemon.explain.report import Cause, RouteAnswer
from fwdaemon.rulesets.nft_listing import base_chains
from fwdaemon.rulesets.packet import BaseChain
from tests.unit.explaining import native, saved
from tests.unit.trace_scene import DPORT, GATE, SETTINGS, cause, forward_chain, host, ours, told

BANNED, OTHER = "203.0.113.9", "203.0.113.77"
SADDR = {"payload": {"protocol": "ip", "field": "saddr"}}
DADDR = {"payload": {"protocol": "ip", "field": "daddr"}}
DROP: Mapping[str, Any] = {"drop": None}
ACCEPT: Mapping[str, Any] = {"accept": None}
ESTABLISHED = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}
SETS = {"bad": [BANNED], "good": [OTHER]}


def source(right: object, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": SADDR, "right": right}}


def port(number: int) -> dict[str, Any]:
    return {"match": {"op": "==", "left": DPORT, "right": number}}


def forward(*rules: Sequence[object], **base: Any) -> BaseChain:
    return forward_chain(*rules, sets=SETS, **base)


def libvirts(*rules: Sequence[object]) -> BaseChain:
    """Libvirt's own chain, with rules that others added."""
    table = {"family": "ip", "table": "libvirt_network"}
    shape = {"name": "forward", "type": "filter", "hook": "forward", "prio": 0, "policy": "accept", "handle": 1}
    listed = [{"rule": {**table, "chain": "forward", "handle": 2, "expr": list(rule)}} for rule in rules]
    (chain,) = base_chains(json.dumps({"nftables": [{"chain": table | shape}, *listed]}), {})
    return chain


CLOSED = {
    "an address": (forward([source(BANNED), DROP]), "the administrator refuses 203.0.113.9 in inet t c"),
    "a set": (forward([source("@bad"), DROP]), "the administrator refuses 203.0.113.9 in inet t c"),
    "a set beside a policy": (forward([source("@bad"), DROP], policy="drop"), "the administrator refuses 203.0.113.9"),
    "a verdict map": (
        forward([{"vmap": {"key": SADDR, "data": {"set": [[BANNED, DROP]]}}}]),
        "the administrator refuses 203.0.113.9",
    ),
    "all but some": (forward([source("@good", "!="), DROP]), "the administrator refuses 203.0.113.9 in inet t c"),
    "some, and a policy": (forward([source("@good"), ACCEPT], policy="drop"), "the administrator refuses 203.0.113.9"),
    "some, and a drop": (forward([source("@good"), ACCEPT], [DROP]), "the administrator refuses 203.0.113.9"),
    "early": (
        native([source("@bad"), DROP], sets=SETS, prio=-300),
        "the administrator refuses 203.0.113.9 in inet t c",
    ),
    "at the interface": (
        native([source("@bad"), DROP], sets=SETS, family="netdev", hook="ingress", dev="eth0"),
        "the administrator refuses 203.0.113.9 in netdev t c",
    ),
    "a chain that is jumped to": (
        forward([source("@bad"), {"jump": {"target": "block"}}], chains={"block": [[DROP]]}, policy="drop"),
        "the administrator refuses 203.0.113.9 in inet t block",
    ),
    "fail2ban": (
        forward([{"jump": {"target": "f2b-web"}}], chains={"f2b-web": [[source("@bad"), {"reject": None}]]}),
        "fail2ban refuses 203.0.113.9 in inet t f2b-web",
    ),
    "a chain for it that refuses all": (
        forward([{"jump": {"target": "DOCKER-USER"}}], chains={"DOCKER-USER": [[DROP]]}),
        "Docker refuses 203.0.113.9 in inet t DOCKER-USER",
    ),
    "ahead of a gate of iptables": (
        saved(
            f"-A FORWARD -s {BANNED}/32 -j DROP\n"
            "-A FORWARD -m connlabel --label 25 -m comment --comment kvm-portfwd -j ACCEPT\n"
            "-A FORWARD -j DROP"
        ),
        "the administrator refuses 203.0.113.9 in legacy ip filter FORWARD",
    ),
    "in libvirt's chain": (
        libvirts([source(BANNED), DROP]),
        "the administrator refuses 203.0.113.9 in ip libvirt_network forward",
    ),
    "its answers": (
        forward([{"match": {"op": "==", "left": DADDR, "right": BANNED}}, DROP]),
        "the administrator refuses 203.0.113.9 in inet t c",
    ),
    "sent to a trap": (
        native([source("@bad"), {"redirect": {"port": 22}}], sets=SETS, type="nat", prio=-110),
        "the administrator sends away 203.0.113.9 in inet t c",
    ),
}


@pytest.mark.parametrize("name", CLOSED)
def test_a_refusal_of_one_client_is_told_and_not_opened(name: str) -> None:
    chain, said = CLOSED[name]
    report = told(source=BANNED, world=host(rules=[*ours(), chain]))
    assert cause(report) is Cause.ON_PURPOSE
    assert report.sentence.startswith(f"This is on purpose: {said}")
    assert report.commands == []


@pytest.mark.parametrize("name", [name for name in CLOSED if name != "a chain for it that refuses all"])
def test_other_clients_are_served_or_told_what_opens_for_them_alone(name: str) -> None:
    chain, _ = CLOSED[name]
    report = told(source=OTHER, world=host(rules=[*ours(), chain]))
    assert "on purpose" not in report.sentence
    assert "gates" not in report.sentence
    assert "insert" not in report.sentence


BEHIND_A_LIST: list[tuple[BaseChain, str]] = [
    (
        forward([ESTABLISHED, ACCEPT], [source("@bad"), DROP], policy="drop"),
        "Have it make an exception: `nft add rule inet t c ip daddr 192.168.122.10 tcp dport 80 accept`.",
    ),
    (
        forward([ESTABLISHED, ACCEPT], [source("@bad"), DROP], [DROP]),
        "Have chain inet t c accept tcp to 192.168.122.10 port 80, behind its rules that refuse clients.",
    ),
    (
        native([source("@bad"), DROP], [port(8000), DROP], sets=SETS, prio=-300),
        "Have chain inet t c accept tcp to 198.51.100.1 port 8000, behind its rules that refuse clients.",
    ),
    (
        native([source("@bad"), DROP], [{"notrack": None}], sets=SETS, prio=-300),
        "Have chain inet t c accept tcp to 198.51.100.1 port 8000, behind its rules that refuse clients.",
    ),
    (
        native(
            [source("@bad"), {"redirect": {"port": 22}}],
            [{"dnat": {"addr": "10.0.0.1"}}],
            sets=SETS,
            type="nat",
            prio=-110,
        ),
        "Have chain inet t c accept tcp to 198.51.100.1 port 8000, behind its rules that refuse clients.",
    ),
    (
        saved("*mangle\n:FORWARD DROP [0:0]\n-A FORWARD -m set --match-set bad src -j DROP\nCOMMIT"),
        (
            "Have it make an exception: `iptables-legacy -w -t mangle -A FORWARD"
            " -d 192.168.122.10 -p tcp --dport 80 -j ACCEPT`."
        ),
    ),
]


@pytest.mark.parametrize(("chain", "sentence"), BEHIND_A_LIST)
@pytest.mark.parametrize("client", [OTHER, None])
def test_what_refuses_everybody_is_opened_behind_the_list(chain: BaseChain, sentence: str, client: str | None) -> None:
    report = told(source=client, world=host(rules=[*ours(), chain]))
    if report.failure is not None:
        assert report.sentence == sentence
    assert "gates" not in report.sentence
    assert "insert" not in report.sentence


def test_a_chain_that_refuses_all_alike_is_still_opened_by_a_gate() -> None:
    report = told(source=BANNED, world=host(rules=[*ours(), forward_chain(policy="drop")]))
    assert cause(report) is Cause.REFUSED
    assert report.sentence.startswith('Write gates = ["inet t c"]')


@pytest.mark.parametrize("rp_filter", ["0", "1"])
@pytest.mark.parametrize("kind", ["blackhole", "unreachable", "prohibit"])
def test_a_route_that_bans_a_client_is_not_led_around(kind: str, rp_filter: str) -> None:
    away = RouteAnswer(None, subnet=ip_network("203.0.113.0/24"), kind=kind)
    settings = {**SETTINGS, "net.ipv4.conf.all.rp_filter": rp_filter, "net.ipv4.conf.eth0.rp_filter": rp_filter}
    world = host(routes={BANNED: away}, settings=settings)
    report = told(source=BANNED, world=world)
    assert cause(report) is Cause.ON_PURPOSE
    assert report.sentence == (
        f"This is on purpose: the route {kind} 203.0.113.0/24 of this host lets nothing go to {BANNED}."
    )
    assert report.commands == []
    assert told(source=OTHER, world=world).works


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ((BANNED, None), f"from 198.51.100.1 to {BANNED}"),
        (("192.168.122.10", "eth0"), f"from {BANNED} to 192.168.122.10"),
        ((BANNED, "virbr0"), f"from 192.168.122.10 to {BANNED}"),
    ],
)
def test_a_rule_of_policy_routing_that_bans_a_client_is_named(way: tuple[str, str | None], said: str) -> None:
    settings = {**SETTINGS, "net.ipv4.conf.all.rp_filter": "1"}
    report = told(source=BANNED, world=host(dead_ends={way: "from all prohibit"}, settings=settings))
    assert cause(report) is Cause.ON_PURPOSE
    assert report.sentence == (
        f"This is on purpose: the rule of policy routing from all prohibit lets nothing go {said}."
    )
    assert report.commands == []


def marking(value: object, key: str = "ct") -> dict[str, Any]:
    return {"mangle": {"key": {key: {"key": "mark"}}, "value": value}}


def marked(value: int, op: str = "==", key: str = "ct") -> dict[str, Any]:
    return {"match": {"op": op, "left": {key: {"key": "mark"}}, "right": value}}


def early(*rules: Sequence[object], **base: Any) -> BaseChain:
    return native(*rules, sets=SETS, **({"prio": -150} | base))


LEGACY_MARKS = f"*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -s {BANNED}/32 -j MARK --set-xmark 0x9/0xffffffff\n"
BY_MARK = {
    "the connection's": (early([source(BANNED), marking(9)]), forward_chain([marked(9), {"reject": None}])),
    "the packet's": (
        early([source(BANNED), marking(9, "meta")]),
        forward_chain([marked(9, key="meta"), {"jump": {"target": "block"}}], chains={"block": [[DROP]]}),
    ),
    "a copy": (
        early([source(BANNED), marking(9, "meta")], [marking({"meta": {"key": "mark"}})]),
        forward_chain([marked(9), DROP]),
    ),
    "early": (early([source("@bad"), marking(9)]), early([marked(9), DROP], prio=-140)),
    "all but some": (early([source("@good"), marking(7, "meta")]), forward_chain([marked(7, "!=", "meta"), DROP])),
    "some, and a policy": (early([source("@good"), marking(7)]), forward_chain([marked(7), ACCEPT], policy="drop")),
    "sent to a trap": (
        early([source("@bad"), marking(9)]),
        early([marked(9), {"redirect": {"port": 22}}], type="nat", prio=-110),
    ),
    "not tracked": (
        early([source("@bad"), marking(9, "meta")], prio=-310),
        early([marked(9, key="meta"), {"notrack": None}], prio=-300),
    ),
    "of iptables": (
        saved(f"{LEGACY_MARKS}COMMIT", "PREROUTING"),
        saved("*security\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m mark --mark 0x9 -j DROP\nCOMMIT"),
    ),
    "of iptables, the connection's": (
        saved(f"{LEGACY_MARKS}-A PREROUTING -j CONNMARK --save-mark\nCOMMIT", "PREROUTING"),
        saved("*mangle\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m connmark --mark 0x9/0xff -j DROP\nCOMMIT"),
    ),
    "a label": (
        early([source("@bad"), {"mangle": {"key": {"ct": {"key": "label"}}, "value": "bad"}}]),
        forward_chain([{"match": {"op": "in", "left": {"ct": {"key": "label"}}, "right": "bad"}}, DROP]),
    ),
}


@pytest.mark.parametrize("name", BY_MARK)
def test_a_refusal_by_a_mark_is_not_opened(name: str) -> None:
    report = told(source=BANNED, world=host(rules=[*ours(), *BY_MARK[name]]))
    assert cause(report) is Cause.ON_PURPOSE
    assert report.sentence.startswith("This may be on purpose: ")
    assert report.sentence.endswith(" Ask its author before you change it.")
    assert report.commands == []


def test_who_refuses_by_a_mark_and_who_gave_it_are_named() -> None:
    report = told(source=BANNED, world=host(rules=[*ours(), *BY_MARK["a copy"]]))
    assert report.sentence == (
        "This may be on purpose: inet t c (handle 10) refuses connections by the mark that inet t c (handle 10) gives."
        " Ask its author before you change it."
    )


def test_what_refuses_whatever_the_mark_is_opened_behind_rules_about_marks() -> None:
    chain = forward_chain([marked(9), DROP], [DROP])
    report = told(source=OTHER, world=host(rules=[*ours(), chain]))
    assert report.sentence == (
        "Have chain inet t c accept tcp to 192.168.122.10 port 80, behind its rules that refuse clients."
    )


def test_a_missing_gate_is_mended_though_guests_are_let_out() -> None:
    chain = saved("-A FORWARD -s 10.0.0.0/8 -j ACCEPT\n-A FORWARD -j DROP")
    assert cause(told(source=BANNED, world=host(rules=[*ours(), chain]))) is Cause.GATE_SHUT
    assert cause(told(source=BANNED, world=host(rules=[*ours(), forward(GATE, [DROP])]))) is None
