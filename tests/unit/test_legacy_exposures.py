"""1:1 NATs, routes and 127.0.0.1 in iptables-legacy: rules as text, and what a change says of which exposure."""

from dataclasses import replace
from itertools import product

import pytest

from fwdaemon.core.exposures import Exposure, Nat
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family
from fwdaemon.legacy.model import FWD, OUT, POST, PRE, Head, ObservedTable, Table, TableName, difference
from fwdaemon.legacy.ruleset import Plan, Wanted, exposures_of, links, tables
from tests.unit.forwards import forward, nat, route, subnets
from tests.unit.test_golden import SUBNETS, UPLINK

WEB = forward("tcp *:80", "192.168.122.50:80")
BOUND = forward("tcp *:90", "192.168.122.50:90", interface="eth0")
MAIL = nat("198.51.100.8", "192.168.122.51")
SECOND = nat("198.51.100.9", "192.168.122.51")
ROUTE = route("203.0.113.64/29")
LABELLED = '-m connlabel --label "25" --set'
NAT, MANGLE, FILTER = TableName.NAT, TableName.MANGLE, TableName.FILTER
GOOD = Head((0,), good=True, first=True)


def state(*exposures: Exposure) -> Desired:
    return Desired(guest_subnets=SUBNETS, uplinks=UPLINK).having(exposures)


def rules(table: TableName, chain: str, desired: Desired, family: Family = Family.IPV4) -> list[str]:
    """Write what a chain holds, without comments."""
    return [f"{rule.matches} -j {rule.target}".lstrip() for rule in tables(desired)[family][table].chains[chain]]


# --- 1:1 NATs --------------------------------------------------------------------------------------------------------


def test_a_public_address_comes_after_every_forward_but_first_where_it_is_not_the_hosts() -> None:
    own = forward("tcp 198.51.100.8:25", "192.168.122.50:25")
    found = [rule.replace(f" {LABELLED}", "") for rule in rules(NAT, OUT, state(WEB, own, MAIL))]
    assert found == [
        "-d 198.51.100.8/32 -p tcp -m tcp --dport 25 -j DNAT --to-destination 192.168.122.50:25",
        "-d 198.51.100.8/32 -m addrtype ! --dst-type LOCAL -j DNAT --to-destination 192.168.122.51",
        "-d 127.0.0.0/8 -j RETURN",
        "-d 169.254.0.0/16 -j RETURN",
        "-m addrtype ! --dst-type LOCAL -j RETURN",
        "-p tcp -m tcp --dport 80 -j DNAT --to-destination 192.168.122.50:80",
        "-d 198.51.100.8/32 -j DNAT --to-destination 192.168.122.51",
    ]


def test_what_a_nat_takes_is_labelled() -> None:
    found = rules(NAT, OUT, state(nat("2001:db8::8", "2001:db8:5::50")), Family.IPV6)
    where = "-d 2001:db8::8/128"
    elsewhere = f"{where} -m addrtype ! --dst-type LOCAL"
    there = "DNAT --to-destination 2001:db8:5::50"
    assert found == [f"{way} {LABELLED} -j {there}" for way in (elsewhere, where)]


def test_a_guest_leaves_with_its_public_address_and_keeps_it_in_hairpin() -> None:
    assert rules(NAT, POST, state(MAIL)) == [
        "-s 192.168.122.51/32 -o eth0 -j SNAT --to-source 198.51.100.8",
        "-s 192.168.122.51/32 -o wg0 -j SNAT --to-source 198.51.100.8",
        '-m connlabel ! --label "25" -j RETURN',
        "-m conntrack ! --ctstate DNAT -j RETURN",
        "-s 192.168.122.51/32 -j SNAT --to-source 198.51.100.8",
        "-s 192.168.122.0/23 -j MASQUERADE",
    ]


def test_nobody_else_leaves_with_a_guests_address() -> None:
    plugged = nat("198.51.100.10", "192.168.122.50", bridge="virbr0", mac="52:54:00:00:00:50")
    assert rules(MANGLE, FWD, state(MAIL, plugged)) == [
        "-m conntrack ! --ctstate NEW -j RETURN",
        "-s 192.168.122.51/32 -i eth0 -o eth0 -j DROP",
        "-s 192.168.122.51/32 -i eth0 -o wg0 -j DROP",
        "-s 192.168.122.51/32 -i wg0 -o eth0 -j DROP",
        "-s 192.168.122.51/32 -i wg0 -o wg0 -j DROP",
        "-s 192.168.122.50/32 ! -i virbr0 -o eth0 -j DROP",
        "-s 192.168.122.50/32 -i virbr0 -o eth0 -m mac ! --mac-source 52:54:00:00:00:50 -j DROP",
        "-s 192.168.122.50/32 ! -i virbr0 -o wg0 -j DROP",
        "-s 192.168.122.50/32 -i virbr0 -o wg0 -m mac ! --mac-source 52:54:00:00:00:50 -j DROP",
    ]


@pytest.mark.parametrize(
    "mac", ["", "52:54:00:00:00", '52:54:00:00:00:50" drop', "52-54-00-00-00-50", "52:54:00:00:00:50\n"]
)
def test_a_mac_address_that_could_be_syntax_is_left_out(mac: str) -> None:
    plugged = state(nat("198.51.100.10", "192.168.122.50", bridge="virbr0", mac=mac))
    assert not any("mac" in rule for rule in rules(MANGLE, FWD, plugged))


def test_what_has_a_guests_address_is_ours_only_if_it_came_in_by_its_bridge() -> None:
    subnet, wide, other = subnets("192.168.122.0/24"), subnets("10.0.0.0/8"), subnets("10.1.0.0/16")
    homes = {*product(subnet, ["virbr0"]), *product(wide, ["virbr2"]), *product(other, ["virbr3"])}
    guards = [
        "! -i lo -m addrtype --src-type LOCAL -j RETURN",
        "-s 10.1.0.0/16 -i virbr3 -j KVMPF_OUT",
        "-s 10.1.0.0/16 -j RETURN",
        "-s 10.0.0.0/8 ! -i virbr2 -j RETURN",
        "-s 192.168.122.0/24 ! -i virbr0 -j RETURN",
        "-j KVMPF_OUT",
    ]
    assert rules(NAT, PRE, replace(state(WEB), homes=frozenset(homes))) == guards
    routed = replace(state(route("10.0.0.0/8", "virbr2")), homes=frozenset(homes))
    assert rules(MANGLE, FWD, routed) == ["-m conntrack ! --ctstate NEW -j RETURN", *guards]


def test_a_bridge_that_no_rule_can_name_leaves_its_subnet_to_the_others() -> None:
    (subnet,) = subnets("10.0.0.0/8")
    homes = frozenset({(subnet, "virbr2"), (subnet, "virbr+")})
    assert rules(NAT, PRE, replace(state(WEB), homes=homes))[1:] == [
        "-s 10.0.0.0/8 ! -i virbr2 -j RETURN",
        "-j KVMPF_OUT",
    ]
    nameless = replace(state(WEB), homes=frozenset({(subnet, "virbr+")}))
    assert rules(NAT, PRE, nameless)[1:] == ["-s 10.0.0.0/8 -j RETURN", "-j KVMPF_OUT"]


def test_what_the_host_itself_opens_passes_no_guard() -> None:
    homed = replace(state(WEB), homes=frozenset(product(subnets("10.0.0.0/8"), ["virbr0"])))
    assert rules(NAT, OUT, homed) == rules(NAT, OUT, state(WEB))


def test_of_two_public_addresses_the_first_is_what_the_guest_leaves_with() -> None:
    chain = rules(NAT, POST, state(SECOND, MAIL))
    assert sum("-o eth0" in rule for rule in chain) == 1
    assert not any("198.51.100.9" in rule for rule in chain)
    assert sum("198.51.100.9/32" in rule for rule in rules(NAT, OUT, state(SECOND, MAIL))) == 2


# --- routes ----------------------------------------------------------------------------------------------------------


def test_a_route_is_let_in_by_its_bridge_and_out_of_the_host_only() -> None:
    assert rules(MANGLE, FWD, state(ROUTE)) == [
        "-m conntrack ! --ctstate NEW -j RETURN",
        "! -i lo -m addrtype --src-type LOCAL -j RETURN",
        "-s 203.0.113.64/29 ! -i virbr1 -j RETURN",
        "-j KVMPF_OUT",
    ]
    assert rules(MANGLE, OUT, state(ROUTE)) == [
        f"-d 203.0.113.64/29 -o virbr1 {LABELLED} -j RETURN",
        f"-s 203.0.113.64/29 -i virbr1 -o eth0 {LABELLED} -j RETURN",
        f"-s 203.0.113.64/29 -i virbr1 -o wg0 {LABELLED} -j RETURN",
    ]
    assert "-s 203.0.113.64/29 ! -i virbr1 -j RETURN" in rules(NAT, PRE, state(ROUTE))


@pytest.mark.parametrize("name", ["virbr+", "eth0 -j ACCEPT", "!eth0", "-eth0", "", "eth0\n", "ethernet0123456789"])
def test_an_interface_with_a_name_that_could_be_syntax_is_left_out(name: str) -> None:
    guest = replace(MAIL, bridge=name)
    opened = replace(state(guest, route("203.0.113.64/29", name)), uplinks=frozenset({"eth0", name}))
    assert "-s 192.168.122.51/32 -i eth0 -o eth0 -j DROP" in rules(MANGLE, FWD, opened)
    assert {rule.split(" -o ")[1].split(" ")[0] for rule in rules(MANGLE, FWD, opened) if " -o " in rule} == {"eth0"}
    assert not any("203.0.113.64" in rule for rule in rules(MANGLE, FWD, opened))
    assert sum(" -o " in rule for rule in rules(NAT, POST, opened)) == 1


# --- which tables, and what a change says ----------------------------------------------------------------------------


def test_the_mangle_table_is_for_those_who_need_it_only() -> None:
    assert tables(state(WEB))[Family.IPV4].keys() == {FILTER, NAT}
    wanted = tables(state(WEB, MAIL, route("2001:db8:1::/64")))
    assert {chain for family in Family for chain in wanted[family][MANGLE].chains} == {FWD, OUT}
    assert wanted[Family.IPV4][MANGLE].heads.keys() == {"FORWARD"}


def test_a_table_wanted_no_more_loses_our_chains_and_links() -> None:
    wanted = tables(state(MAIL))[Family.IPV4][MANGLE]
    change = difference(Table(), observed(wanted))
    assert change.drop == (FWD,)
    assert [(edit.chain, edit.delete, edit.insert) for edit in change.edits] == [("FORWARD", (0,), ())]


def test_a_rule_tells_which_exposure_it_serves() -> None:
    desired = state(WEB, MAIL, ROUTE)
    served = exposures_of(desired, Family.IPV4)
    found = {
        exposure: {
            (table, chain)
            for table, rules in tables(desired)[Family.IPV4].items()
            for chain in rules.chains
            if any(served.get(rule.comment) == exposure for rule in rules.chains[chain])
        }
        for exposure in desired.exposures
    }
    assert found == {
        WEB: {(NAT, OUT)},
        MAIL: {(NAT, OUT), (NAT, POST), (MANGLE, FWD)},
        ROUTE: {(MANGLE, OUT)},
    }


def observed(written: Table, *, without: str = "") -> ObservedTable:
    """Give a table as it is read back, once a chain was flushed."""
    chains = {name: tuple(rule.comment for rule in rules) for name, rules in written.chains.items()}
    return ObservedTable(chains | ({without: ()} if without else {}), dict.fromkeys(written.heads, GOOD))


def plan(desired: Desired, table: TableName, chain: str, before: Desired) -> Plan:
    """Plan after a chain was flushed in the state before."""
    then, now = tables(before)[Family.IPV4], tables(desired)[Family.IPV4]
    seen = {name: observed(then[name], without=chain if name is table else "") for name in then}
    for name in now.keys() - then.keys():
        seen[name] = ObservedTable({}, dict.fromkeys(links(name), Head()))
    return Plan.of(Family.IPV4, Wanted(now, exposures_of(desired, Family.IPV4)), seen, desired, then)


@pytest.mark.parametrize(
    ("table", "chain", "damaged"),
    [
        pytest.param(FILTER, FWD, {WEB, MAIL, ROUTE}, id="the gate"),
        pytest.param(NAT, PRE, {WEB, MAIL}, id="the way in"),
        pytest.param(NAT, OUT, {WEB, MAIL}, id="the targets"),
        pytest.param(NAT, OUT, {WEB, MAIL}, id="the host's way in"),
        pytest.param(NAT, POST, {WEB, MAIL}, id="the sources"),
        pytest.param(MANGLE, FWD, {MAIL, ROUTE}, id="the passage"),
        pytest.param(MANGLE, OUT, {ROUTE}, id="the labels"),
    ],
)
def test_what_is_flushed_damages_those_who_rely_on_it(table: TableName, chain: str, damaged: set[Exposure]) -> None:
    desired = state(WEB, MAIL, ROUTE)
    assert plan(desired, table, chain, desired).damaged == damaged


def test_a_first_nat_mends_no_forward() -> None:
    found = plan(state(WEB, MAIL), NAT, "", state(WEB))
    assert found.mended == {MAIL}
    assert found.damaged == frozenset()
    assert [table for table, _ in found.changes] == [MANGLE, NAT]


def test_what_an_earlier_run_left_is_named() -> None:
    found = plan(state(WEB), NAT, "", state(WEB, MAIL, ROUTE))
    assert found.stale == {"ip nat KVMPF_OUT mail", "ip mangle KVMPF_FWD mail", "ip mangle KVMPF_OUT public"}


def test_a_hostile_name_is_no_syntax() -> None:
    hostile = '"\n-j ACCEPT --comment $(reboot)'
    desired = state(Nat(hostile, MAIL.public, MAIL.target), replace(ROUTE, network=hostile))
    served = exposures_of(desired, Family.IPV4)
    assert {comment.split(" ")[0] for comment in served} == {"___j_ACCEPT___comment___reboot_"}
