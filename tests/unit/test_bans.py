"""Which rules of others count as bans, in the words of iptables and of nft."""

import json
from ipaddress import IPv4Address, ip_address, ip_network

import pytest

from fwdaemon.core import bans
from fwdaemon.core.bans import BEHIND, End, Judge, Kind, Rule, RulesOf, Verdict, are_named, between, not_listed, place
from fwdaemon.core.types import Family, Gate, GateFault
from fwdaemon.kernel.netlink import Message, attribute
from fwdaemon.legacy import info
from fwdaemon.nftables.existing import read_ends
from fwdaemon.nftables.gates import GateState, gate_script, read_iptables, read_native

LABEL = 25
SPELLED = frozenset({25})
FORWARD = Gate("ip", "filter", "FORWARD")
NATIVE = Gate("inet", "filter", "forward")
BAN, IDLE, DECIDES = Kind.BAN, Kind.IDLE, Kind.DECIDES
OURS = '-m connlabel --label "25" -m comment --comment kvm-portfwd -j ACCEPT'


def chains(**rules: str) -> RulesOf:
    """List chains of iptables, each of rules that end with a semicolon."""
    found = {name: [f"-A {name} {rule.strip()}" for rule in text.split(";")[:-1]] for name, text in rules.items()}
    return lambda name: bans.read_listing("\n".join([f"-N {name}", *found[name]]) if name in found else "")


def judged(rule: str, rules_of: RulesOf = not_listed, *, accepts: bool = False) -> Kind:
    return Judge(BEHIND, rules_of).kind(bans.read_iptables(rule), accepts=accepts)


@pytest.mark.parametrize(
    "rule",
    [
        "-s 203.0.113.9/32 -j DROP",
        "-s 203.0.113.0/24 -i eth0 -p tcp -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable",
        "-s 2001:db8:9::/48 -j DROP",
        "-m set --match-set bad src -j DROP",
        "-m set --match-set bad src,dst -j REJECT --reject-with tcp-reset",
        "-m iprange --src-range 203.0.113.1-203.0.113.9 -j DROP",
        "-m recent --rcheck --name BAD --mask 255.255.255.255 --rsource -j DROP",
        '-s 203.0.113.9/32 -m comment --comment "! -s 1.2.3.4 -j ACCEPT" -j DROP',
        "-s 203.0.113.9/32 -m comment --comment -j -j DROP",
        "-p tcp -m multiport --dports 22 -j f2b-sshd",
        "-j DOCKER-USER",
        "-j ufw-before-forward",
        "! -d 192.168.122.0/24 -s 203.0.113.9/32 -j DROP",
        "-m geoip --source-country CN,RU -j DROP",
        "-m mac --mac-source 52:54:00:00:00:09 -j DROP",
        "-m conntrack --ctorigsrc 203.0.113.0/24 -j DROP",
        "-s 203.0.113.9/32 -p tcp -j TARPIT",
    ],
)
def test_a_refusal_of_named_sources_is_a_ban(rule: str) -> None:
    assert judged(rule) is BAN


@pytest.mark.parametrize(
    "rule",
    [
        "-j DROP",
        "-i eth0 -j REJECT --reject-with icmp-port-unreachable",
        "-d 192.168.122.10/32 -j DROP",
        "! -s 203.0.113.0/24 -j DROP",
        "-s 0.0.0.0/0 -j DROP",
        "-s 0.0.0.1/0.0.0.1 -j DROP",
        "-m set ! --match-set good src -j DROP",
        "-m set --match-set guests dst -j DROP",
        "-m set --match-set ports dst,src -j DROP",
        "-m iprange --src-range 0.0.0.0-255.255.255.255 -j DROP",
        "-m iprange ! --src-range 203.0.113.1-203.0.113.9 -j DROP",
        "-m recent --set --name BAD --mask 255.255.255.255 --rsource -j DROP",
        "-m recent ! --rcheck --name BAD --mask 255.255.255.255 --rsource -j DROP",
        "-m recent --rcheck --name BAD --mask 255.255.255.255 --rdest -j DROP",
        "-m geoip ! --source-country DE -j DROP",
        "-m geoip --destination-country CN -j DROP",
        "-m mac ! --mac-source 52:54:00:00:00:09 -j DROP",
        "-m conntrack ! --ctorigsrc 203.0.113.9 -j DROP",
        "-m conntrack --ctorigsrc 0.0.0.0/0 -j DROP",
        "-p tcp -j TARPIT",
        "-s 203.0.113.9/32 -j ACCEPT",
        "-s 203.0.113.9/32 -j LIBVIRT_FWI",
        "-g DOCKER-USER",
        "-s 203.0.113.9/32 -j NFQUEUE --queue-num 0",
        '-m comment --comment "-s 203.0.113.9/32" -j DROP',
        "-m comment --comment -s -j DROP",
        "-j LIBVIRT_FWI",
    ],
)
def test_a_rule_that_decides_anything_else_is_none(rule: str) -> None:
    assert judged(rule) is DECIDES


@pytest.mark.parametrize(
    ("flags", "target", "expected"),
    [(1, "DROP", BAN), (1, "TARPIT", BAN), (1 | 4, "DROP", DECIDES), (2, "DROP", DECIDES), (1, "ACCEPT", DECIDES)],
)
def test_countries_are_sources_in_the_legacy_tables_too(flags: int, target: str, expected: Kind) -> None:
    entry = info.Entry(bytes(84), ((b"geoip", 1, bytes([flags, 1, *b"CN", *bytes(60)])),), target)
    assert Judge(BEHIND).kind(info.read_rule(Family.IPV4, entry)) is expected


@pytest.mark.parametrize("rule", ["-s 203.0.113.9/32", "-j LOG --log-prefix x", "-j ufw-before-logging-forward"])
def test_a_rule_without_a_verdict_decides_nothing(rule: str) -> None:
    rules_of = chains(**{"ufw-before-logging-forward": "-j LOG; -j RETURN;"})
    assert judged(rule, rules_of) is IDLE


@pytest.mark.parametrize(
    ("kinds", "staying"),
    [
        ([], 0),
        ([BAN, BAN], 2),
        ([IDLE, BAN, IDLE, DECIDES], 2),
        ([IDLE, IDLE], 0),
        ([BAN, DECIDES, BAN], 1),
        ([DECIDES, BAN], 0),
    ],
)
def test_what_stays_ahead_ends_with_the_last_ban_before_a_decision(kinds: list[Kind], staying: int) -> None:
    assert place(kinds) == staying


CHAINS = {
    "BLOCK": "-j LOG; -p tcp -j REJECT --reject-with tcp-reset; -p tcp -m tcp --dport 22 -j RETURN; -j DROP;",
    "BLACK": "-s 203.0.113.9/32 -j DROP; -m set --match-set bad src -j BLOCK; -j LOGGING; -j DOCKER-USER;",
    "NESTED": "-p tcp -j BLACK; -g BLACK;",
    "LOGGING": "-m limit --limit 3/min -j LOG; -j RETURN;",
    "EMPTY": "",
    "MIXED": "-s 203.0.113.9/32 -j DROP; -p tcp -m tcp --dport 22 -j ACCEPT;",
    "SOME": "-s 203.0.113.9/32 -j DROP; -j DROP;",
    "ROUND": "-j ROUND;",
    "AWAY": "-j ELSEWHERE;",
    "LIBVIRT_FWX": "-s 203.0.113.9/32 -j DROP;",
}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("-s 203.0.113.9/32 -j BLOCK", BAN),
        ("-m set --match-set bad src -g BLOCK", BAN),
        ("-s 203.0.113.9/32 -j SOME", BAN),
        ("-s 203.0.113.9/32 -j OTHER", DECIDES),
        ("-p tcp -j BLOCK", DECIDES),
        ("! -s 203.0.113.9/32 -g BLOCK", DECIDES),
        ("-j BLACK", BAN),
        ("-i eth0 -j BLACK", BAN),
        ("-g BLACK", DECIDES),
        ("-j NESTED", BAN),
        ("-s 203.0.113.9/32 -j NESTED", BAN),
        ("-j LOGGING", IDLE),
        ("-g LOGGING", DECIDES),
        ("-j EMPTY", IDLE),
        ("-j MIXED", DECIDES),
        ("-s 203.0.113.9/32 -j MIXED", DECIDES),
        ("-j SOME", DECIDES),
        ("-j ROUND", DECIDES),
        ("-j AWAY", DECIDES),
        ("-j LIBVIRT_FWX", DECIDES),
        ("-j RETURN", DECIDES),
    ],
)
def test_a_chain_may_refuse_in_place_of_a_rule(rule: str, expected: Kind) -> None:
    assert judged(rule, chains(**CHAINS)) is expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("-g DOCKER-USER", BAN),
        ("-g BLACK", BAN),
        ("-g LOGGING", IDLE),
        ("-g MIXED", DECIDES),
        ("-g SOME", DECIDES),
        ("-s 203.0.113.77/32 -j RETURN", IDLE),
        ("-j DROP", DECIDES),
    ],
)
def test_what_comes_back_to_a_policy_that_accepts_needs_no_gate(rule: str, expected: Kind) -> None:
    assert judged(rule, chains(**CHAINS), accepts=True) is expected


def test_each_chain_is_looked_at_once_and_no_more_than_a_few() -> None:
    asked: list[str] = []

    def rules_of(name: str) -> list[Rule]:
        asked.append(name)
        return [Rule((End(Verdict.NONE),))]

    judge = Judge(BEHIND, rules_of)
    kinds = [judge.kind(bans.read_iptables(f"-j C{number}")) for number in (*range(20), 0)]
    assert asked == [f"C{number}" for number in range(16)]
    assert kinds == [IDLE] * 16 + [DECIDES] * 4 + [IDLE]


# --- nft --------------------------------------------------------------------------------------------------------------

SOURCE = {"payload": {"protocol": "ip", "field": "saddr"}}
CARD = {"payload": {"protocol": "ether", "field": "saddr"}}
EVERY = str(IPv4Address(0))
PORT = {"payload": {"protocol": "tcp", "field": "dport"}}
DROP = {"drop": None}


def equal(left: object, right: object, op: str = "==") -> dict[str, object]:
    return {"match": {"op": op, "left": left, "right": right}}


def prefix(address: str, length: int) -> dict[str, object]:
    return {"prefix": {"addr": address, "len": length}}


BANS: list[list[object]] = [
    [equal(SOURCE, "203.0.113.9"), DROP],
    [equal(SOURCE, prefix("203.0.113.0", 24)), equal(PORT, 80), {"counter": {}}, {"reject": {"type": "tcp reset"}}],
    [equal(SOURCE, {"range": ["203.0.113.1", "203.0.113.9"]}), {"log": None}, DROP],
    [equal(SOURCE, {"set": ["203.0.113.1", prefix("198.51.100.0", 24)]}), DROP],
    [equal(SOURCE, {"set": [{"elem": {"val": "203.0.113.1", "timeout": 5}}]}), DROP],
    [equal(SOURCE, "@bad"), DROP],
    [equal(CARD, "52:54:00:00:00:09"), DROP],
    [equal(CARD, {"set": ["52:54:00:00:00:08", "52:54:00:00:00:09"]}), DROP],
    [equal(CARD, "@bad"), DROP],
    [equal({"concat": [PORT, SOURCE]}, "@bad"), {"reject": None}],
    [equal({"concat": [PORT, SOURCE]}, {"set": [{"concat": [80, "203.0.113.1"]}]}), DROP],
    [equal({"ct": {"key": "ip saddr", "dir": "original"}}, "203.0.113.1"), DROP],
    [{"vmap": {"key": SOURCE, "data": {"set": [["203.0.113.1", DROP], ["203.0.113.2", DROP]]}}}],
    [{"jump": {"target": "f2b-sshd"}}],
    [equal(PORT, 22), {"jump": {"target": "f2b-sshd"}}],
]
DECISIONS: list[list[object]] = [
    [DROP],
    [equal(PORT, 80), DROP],
    [equal(SOURCE, "203.0.113.9", "!="), DROP],
    [equal(SOURCE, "@good", "!="), DROP],
    [equal(CARD, "52:54:00:00:00:09", "!="), DROP],
    [equal(CARD, {"range": ["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"]}), DROP],
    [equal(SOURCE, prefix(EVERY, 0)), DROP],
    [equal(SOURCE, {"set": [prefix(EVERY, 1), prefix("128.0.0.0", 1)]}), DROP],
    [equal(SOURCE, {"range": [EVERY, "255.255.255.255"]}), DROP],
    [equal({"concat": [SOURCE, PORT]}, {"set": [{"concat": [prefix(EVERY, 0), 80]}]}), DROP],
    [equal({"&": [SOURCE, "0.0.0.1"]}, "0.0.0.1"), DROP],
    [equal({"payload": {"protocol": "ip", "field": "daddr"}}, "192.168.122.1"), DROP],
    [equal(SOURCE, "203.0.113.9"), {"accept": None}],
    [equal(SOURCE, "203.0.113.9"), {"goto": {"target": "f2b-sshd"}}],
    [{"vmap": {"key": SOURCE, "data": {"set": [["203.0.113.1", DROP], ["203.0.113.2", {"accept": None}]]}}}],
    [{"vmap": {"key": PORT, "data": {"set": [[80, DROP]]}}}],
    [{"vmap": {"key": SOURCE, "data": "@verdicts"}}],
    [{"jump": {"target": "guest_input"}}],
    [{"xt": None}],
]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        *((expression, BAN) for expression in BANS),
        *((expression, DECIDES) for expression in DECISIONS),
        ([equal(SOURCE, "203.0.113.9"), {"counter": {}}], IDLE),
        ([], IDLE),
    ],
    ids=json.dumps,
)
def test_rules_of_nft_are_judged_alike(expression: list[object], expected: Kind) -> None:
    assert Judge(BEHIND).kind(bans.read_native(expression)) is expected


REFUSES, LEADS = End(Verdict.REFUSES), End(Verdict.LEADS, "BLACK")


@pytest.mark.parametrize(
    ("key", "ends", "expected"),
    [
        (SOURCE, [REFUSES], BAN),
        (SOURCE, [], BAN),
        (SOURCE, [REFUSES, LEADS], BAN),
        ({"concat": [SOURCE, PORT]}, [REFUSES], BAN),
        (CARD, [REFUSES], BAN),
        (SOURCE, [REFUSES, End(Verdict.DECIDES)], DECIDES),
        (SOURCE, [End(Verdict.LEADS, "MIXED")], DECIDES),
        (SOURCE, None, DECIDES),
        (PORT, [REFUSES], DECIDES),
        (PORT, [LEADS], BAN),
        (PORT, [], IDLE),
    ],
)
def test_a_named_map_is_judged_by_its_elements(key: object, ends: list[End] | None, expected: Kind) -> None:
    expression = [{"counter": {}}, {"vmap": {"key": key, "data": "@bans"}}]
    read = bans.read_native(expression, {"bans": ends}.get)
    assert Judge(BEHIND, chains(**CHAINS)).kind(read) is expected


def _element(code: int, chain: str = "", flags: int = 0) -> bytes:
    named = attribute(2, f"{chain}\0".encode()) if chain else b""
    verdict = attribute(2, attribute(1, code.to_bytes(4, signed=True)) + named)
    return attribute(1, attribute(2, verdict) + attribute(3, flags.to_bytes(4)))


def test_elements_of_a_map_are_read_as_the_kernel_lists_them() -> None:
    end_of_interval = attribute(1, attribute(3, (1).to_bytes(4)))
    elements = [_element(0), end_of_interval, _element(-3, "BLOCK"), _element(-4, "B"), _element(-1), _element(1)]
    body = bytes([2, 0, 0, 0]) + attribute(1, b"t\0") + attribute(2, b"m\0") + attribute(3, b"".join(elements))
    assert list(read_ends(Message(0, 0, 0, 0, body))) == [
        REFUSES,
        End(Verdict.LEADS, "BLOCK"),
        End(Verdict.LEADS, "B", comes_back=False),
        End(Verdict.NONE),
        End(Verdict.DECIDES),
    ]
    whole = bytes([2, 0, 0, 0]) + attribute(3, _element(0, flags=2))
    assert End(Verdict.DECIDES) in read_ends(Message(0, 0, 0, 0, whole))


def test_named_sources_are_not_all_of_a_family() -> None:
    halves = [ip_network("0.0.0.0/1"), ip_network("128.0.0.0/1")]
    assert are_named(halves[:1])
    assert not are_named(halves)
    assert not are_named([ip_network("203.0.113.0/24"), ip_network("::/0")])
    assert not are_named([])
    assert between(ip_address("203.0.113.9"), ip_address("203.0.113.1")) == []


# --- where a gate belongs ---------------------------------------------------------------------------------------------


def iptables(*rules: str, rules_of: RulesOf = not_listed) -> GateState:
    return read_iptables(FORWARD, _saved(rules), SPELLED, BEHIND, rules_of)


def _saved(rules: tuple[str, ...]) -> str:
    return "".join(f"-A FORWARD {rule}\n" for rule in rules)


@pytest.mark.parametrize(
    ("rules", "fault"),
    [
        (["-j DOCKER-USER", OURS, "-j DROP"], None),
        (["-s 203.0.113.9/32 -j DROP", "-j f2b-x", OURS], None),
        ([OURS, "-j DROP", "-s 203.0.113.9/32 -j DROP"], None),
        ([OURS, "-s 203.0.113.9/32 -j DROP"], GateFault.AHEAD_OF_BAN),
        (["-j DROP", OURS], GateFault.BEHIND_RULE),
        (["-j DOCKER-USER", "-j LOG", OURS], GateFault.BEHIND_RULE),
        (["-j DOCKER-USER", OURS, OURS], GateFault.REPEATED),
        (["-j DOCKER-USER", OURS.replace("25", "1")], GateFault.ALTERED),
    ],
)
def test_a_gate_belongs_right_behind_the_bans(rules: list[str], fault: GateFault | None) -> None:
    state = iptables(*rules)
    assert (state.open, None if state.open else state.fault) == (fault is None, fault)


def test_a_gate_of_iptables_goes_behind_the_bans() -> None:
    state = iptables("-j DOCKER-USER", "-s 203.0.113.9/32 -j DROP", "-j DROP", OURS)
    assert gate_script(state, LABEL) == f"*filter\n-D FORWARD {OURS}\n-I FORWARD 3 {OURS}\nCOMMIT\n"


def test_ufws_chain_for_its_log_does_not_keep_its_bans_from_holding() -> None:
    rules = ("-j ufw-before-logging-forward", "-j ufw-before-forward", "-j ufw-after-forward")
    rules_of = chains(**{"ufw-before-logging-forward": "-j LOG;", "ufw-after-forward": "-j ACCEPT;"})
    assert iptables(*rules, rules_of=rules_of).staying == rules[:2]
    assert iptables(*rules).staying == ()


def test_a_native_gate_goes_behind_the_bans() -> None:
    rules = [(7, BANS[0], ""), (8, BANS[10], ""), (9, [DROP], ""), (5, [{"accept": None}], "kvm-portfwd")]
    listing = json.dumps(
        {
            "nftables": [
                {"rule": {"handle": handle, "expr": expression, "comment": comment}}
                for handle, expression, comment in rules
            ]
        }
    )
    state = read_native(NATIVE, listing, SPELLED, BEHIND)
    assert state.fault == GateFault.BEHIND_RULE
    first, second = gate_script(state, LABEL).splitlines()
    assert first == "delete rule inet filter forward handle 5"
    assert second.startswith("add rule inet filter forward handle 8 ct label 25 accept ")
