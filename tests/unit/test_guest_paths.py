"""Guests of libvirt's networks pass foreign chains that refuse whatever is left, and nothing else does."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from fwdaemon.core.bans import BEHIND, Rule, RulesOf, not_listed, read_listing
from fwdaemon.core.inventory import Network
from fwdaemon.core.types import Family, Gate, GateFault, GuestPath
from fwdaemon.nftables.gates import GateState, gate_script, read_iptables, read_native
from fwdaemon.nftables.guest_paths import iptables_paths, native_paths
from fwdaemon.resolve.neighbours import paths
from tests.dockers_rules import FORWARD
from tests.unit.forwards import subnets

FILTER = Gate("ip", "filter", "FORWARD")
THEIRS = Gate("inet", "theirs", "forward")
GATE = '-A FORWARD -m connlabel --label "25" -m comment --comment kvm-portfwd -j ACCEPT\n'
WAYS = {
    GuestPath(Family.IPV4, "virbr0", "virbr0"),
    GuestPath(Family.IPV4, "virbr0", "eth0"),
    GuestPath(Family.IPV4, "eth0", "virbr0", answers=True),
}
OURS = (
    "-A FORWARD -i eth0 -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED"
    " -m comment --comment kvm-portfwd -j ACCEPT\n"
    "-A FORWARD -i virbr0 -o eth0 -m comment --comment kvm-portfwd -j ACCEPT\n"
    "-A FORWARD -i virbr0 -o virbr0 -m comment --comment kvm-portfwd -j ACCEPT\n"
)

DEFAULT = Network("default", True, "virbr0", tuple(subnets("192.168.122.0/24")), forwards=True)  # noqa: FBT003  libvirt
NAT = replace(DEFAULT, closed=frozenset({Family.IPV4}))
LAN = replace(NAT, name="lan", bridge="virbr1")
ISOLATED = replace(NAT, name="isolated", bridge="virbr2", forwards=False, closed=frozenset(Family))
OPEN = replace(DEFAULT, name="open", bridge="virbr3", unfiltered=True)
HOSTS = replace(DEFAULT, name="hosts", bridge="br0", own_bridge=False)
ROUTED = replace(DEFAULT, name="routed", bridge="virbr4")


def ways(*networks: Network, uplinks: Sequence[str] = ("eth0",)) -> list[str]:
    found = sorted(paths(networks, frozenset(uplinks)))
    return [f"{path.came_in} {path.goes_out}{' answers' if path.answers else ''}" for path in found]


@pytest.mark.parametrize(
    ("networks", "expected"),
    [
        pytest.param([NAT], ["eth0 virbr0 answers", "virbr0 eth0", "virbr0 virbr0"], id="NAT"),
        pytest.param([ISOLATED], ["virbr2 virbr2"], id="isolated"),
        pytest.param([ROUTED], ["eth0 virbr4", "virbr4 eth0", "virbr4 virbr4"], id="routed"),
        pytest.param([OPEN, HOSTS, replace(NAT, active=False), replace(NAT, bridge="-j")], [], id="not libvirt's"),
        pytest.param(
            [NAT, LAN],
            [
                *("eth0 virbr0 answers", "eth0 virbr1 answers"),
                *("virbr0 eth0", "virbr0 virbr0", "virbr1 eth0", "virbr1 virbr1"),
            ],
            id="two that let nobody in",
        ),
        pytest.param(
            [NAT, ROUTED],
            [
                *("eth0 virbr0 answers", "eth0 virbr4", "virbr0 eth0", "virbr0 virbr0", "virbr0 virbr4"),
                *("virbr4 eth0", "virbr4 virbr0 answers", "virbr4 virbr4"),
            ],
            id="one that lets others in",
        ),
    ],
)
def test_paths_are_those_on_which_libvirt_decides(networks: Sequence[Network], expected: Sequence[str]) -> None:
    assert ways(*networks) == list(expected)


def test_nothing_goes_between_uplinks_or_by_a_bridge_that_is_one() -> None:
    assert not [way for way in ways(NAT, uplinks=["eth0", "eth1"]) if "virbr0" not in way]
    assert ways(NAT, uplinks=["virbr0"]) == []


def test_each_family_has_those_of_its_own_networks() -> None:
    found = set(paths([replace(NAT, subnets=tuple(subnets("2001:db8:122::/64")))], frozenset({"eth0"})))
    assert GuestPath(Family.IPV6, "eth0", "virbr0") in found
    assert {path.family for path in found} == {Family.IPV6}


def iptables(listing: str, rules_of: RulesOf = not_listed, wanted: set[GuestPath] | None = None) -> GateState:
    state = read_iptables(FILTER, listing, frozenset({25}), BEHIND, rules_of)
    asked = WAYS if wanted is None else wanted
    return replace(state, paths=iptables_paths(FILTER, listing, asked, BEHIND, rules_of))


def after(listing: str, script: str) -> str:
    """Carry out a script of ours on FORWARD, as iptables-restore does."""
    policy, *rules = [line.removeprefix("-A FORWARD ") for line in listing.splitlines()]
    for line in script.splitlines()[1:-1]:
        command, _, rest = line.partition(" FORWARD ")
        if command == "-D":
            rules.remove(rest)
        elif command == "-A":
            rules.append(rest)
        else:
            number, _, rule = rest.partition(" ")
            rules.insert(int(number) - 1, rule)
    return "\n".join([policy, *(f"-A FORWARD {rule}" for rule in rules), ""])


@pytest.mark.parametrize("docker_came", ["first", "last"])
def test_guests_pass_behind_all_that_docker_wrote_whoever_came_first(docker_came: str) -> None:
    policy, others = FORWARD.split("\n", 1)
    found = FORWARD if docker_came == "first" else f"{policy}\n{GATE}{OURS}{others}"
    state = iptables(found)
    assert not state.open
    mended = after(found, gate_script(state, 25))
    first, rest = others.split("\n", 1)
    assert mended == f"{policy}\n{first}\n{GATE}{rest}{OURS}"
    assert iptables(mended).open


def test_a_rule_of_guests_that_is_not_right_is_mended() -> None:
    right = after(FORWARD, gate_script(iptables(FORWARD), 25))
    for wrong in (
        right.replace("-i virbr0 -o eth0", "-i virbr0 -o docker0"),
        right.replace("-m conntrack --ctstate RELATED,ESTABLISHED -m comment", "-m comment"),
        right.replace(OURS, OURS + OURS),
        right.replace(OURS, ""),
        right + "-A FORWARD -s 192.168.122.66/32 -d 10.0.0.0/8 -j DROP\n",
    ):
        state = iptables(wrong)
        assert (state.open, state.fault) == (False, GateFault.GUESTS), wrong
        mended = after(wrong, gate_script(state, 25))
        assert mended.endswith(OURS)
        assert iptables(mended).open


def test_a_gate_is_mended_beside_rules_of_guests() -> None:
    right = after(FORWARD, gate_script(iptables(FORWARD), 25))
    state = iptables(right.replace(GATE, ""))
    assert state.fault is GateFault.ABSENT
    assert after(right.replace(GATE, ""), gate_script(state, 25)) == right


@pytest.mark.parametrize("bit", [25, None])
def test_nothing_of_them_is_left_where_they_are_not_wanted(bit: int | None) -> None:
    right = after(FORWARD, gate_script(iptables(FORWARD), 25))
    state = iptables(right, wanted=set())
    assert not state.open
    assert "-i virbr0" not in after(right, gate_script(state, bit))
    if bit is None:
        assert after(right, gate_script(state, bit)) == FORWARD


def chains(**listed: Sequence[str]) -> RulesOf:
    def rules_of(name: str) -> list[Rule] | None:
        found = listed.get(name)
        return None if found is None else read_listing("\n".join([f"-N {name}", *(f"-A {name} {x}" for x in found)]))

    return rules_of


@pytest.mark.parametrize(
    ("listing", "rules_of", "place"),
    [
        pytest.param("-P FORWARD ACCEPT\n-A FORWARD -i eth1 -j DROP\n", not_listed, None, id="refuses some only"),
        pytest.param("-P FORWARD ACCEPT\n", not_listed, None, id="refuses nothing"),
        pytest.param("-P FORWARD ACCEPT\n-A FORWARD -i a -j ACCEPT\n-A FORWARD -j DROP\n", not_listed, 1, id="a rule"),
        pytest.param(
            "-P FORWARD ACCEPT\n-A FORWARD -i a -j DROP\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n",
            not_listed,
            1,
            id="another verdict",
        ),
        pytest.param(
            "-P FORWARD DROP\n-A FORWARD -j ufw-reject-forward\n-A FORWARD -j ufw-track-forward\n",
            chains(**{"ufw-reject-forward": ["-j REJECT --reject-with icmp-port-unreachable"]}),
            0,
            id="a chain that refuses all",
        ),
        pytest.param(
            "-P FORWARD DROP\n-A FORWARD -j LOGGING\n",
            chains(LOGGING=["-j LOG", "-p tcp -j DROP"]),
            1,
            id="a chain that refuses some",
        ),
        pytest.param(
            "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n",
            chains(**{"DOCKER-USER": ["-j DROP"]}),
            1,
            id="behind what the administrator closed",
        ),
        pytest.param("-P FORWARD DROP\n-A FORWARD -j LIBVIRT_FWO\n", chains(LIBVIRT_FWO=["-j REJECT"]), None, id="own"),
        pytest.param("-P FORWARD DROP\n-A FORWARD -j LIBVIRT_FWO\n", chains(LIBVIRT_FWO=[]), 1, id="left by libvirt"),
    ],
)
def test_where_guests_pass_a_chain(listing: str, rules_of: RulesOf, place: int | None) -> None:
    found = iptables(listing, rules_of).paths
    assert (found.place if found.wanted else None) == place


def rule(handle: int, expression: Sequence[object], comment: str = "") -> dict[str, Any]:
    return {"rule": {"family": "inet", "table": "theirs", "handle": handle, "comment": comment, "expr": expression}}


def met(key: str, value: str) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": value}}


ACCEPT: Mapping[str, object] = {"accept": None}
LABELLED = rule(2, [{"match": {"op": "in", "left": {"ct": {"key": "label"}}, "right": 25}}, ACCEPT], "kvm-portfwd")
STATES = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}
GUESTS = (
    rule(5, [met("nfproto", "ipv4"), met("iifname", "eth0"), met("oifname", "virbr0"), STATES, ACCEPT], "kvm-portfwd"),
    rule(6, [met("nfproto", "ipv4"), met("iifname", "virbr0"), met("oifname", "eth0"), ACCEPT], "kvm-portfwd"),
    rule(7, [met("nfproto", "ipv4"), met("iifname", "virbr0"), met("oifname", "virbr0"), ACCEPT], "kvm-portfwd"),
)
REFUSAL = rule(9, [{"counter": {"packets": 0, "bytes": 0}}, {"drop": None}])


def native(*rules: Mapping[str, Any], policy: str = "accept", gate: Gate = THEIRS) -> GateState:
    listing = json.dumps({"nftables": [{"chain": {"policy": policy}}, *rules]})
    state = read_native(gate, listing, frozenset({25}), BEHIND)
    return replace(state, paths=native_paths(gate, listing, WAYS, BEHIND))


def test_guests_pass_ahead_of_the_refusal_of_a_native_chain() -> None:
    other = rule(3, [met("iifname", "eth9"), {"drop": None}])
    state = native(LABELLED, other, REFUSAL)
    assert (state.open, state.fault) == (False, GateFault.GUESTS)
    ahead = "insert rule inet theirs forward handle 9 meta nfproto ipv4"
    assert gate_script(state, 25).splitlines() == [
        "delete rule inet theirs forward handle 2",
        'insert rule inet theirs forward ct label 25 accept comment "kvm-portfwd"',
        f'{ahead} iifname "eth0" oifname "virbr0" ct state established,related accept comment "kvm-portfwd"',
        f'{ahead} iifname "virbr0" oifname "eth0" accept comment "kvm-portfwd"',
        f'{ahead} iifname "virbr0" oifname "virbr0" accept comment "kvm-portfwd"',
    ]
    assert native(LABELLED, other, *GUESTS, REFUSAL).open
    assert not native(LABELLED, *GUESTS, other, REFUSAL).open
    assert not native(LABELLED, other, *GUESTS[1:], REFUSAL).open
    assert native(LABELLED, *GUESTS, policy="drop").open
    assert not native(LABELLED, *GUESTS).open


def test_libvirts_own_chain_is_left_to_it() -> None:
    gate = Gate("ip", "libvirt_network", "forward")
    assert native(LABELLED, REFUSAL, gate=gate).open
    assert not native(LABELLED, *GUESTS, REFUSAL, gate=gate).open
