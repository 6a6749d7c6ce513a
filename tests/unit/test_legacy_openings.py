"""1:1 NATs, routes and 127.0.0.1 in the legacy tables: rules as text, and what a change says of whom."""

from dataclasses import replace

import pytest

from fwdaemon.desired import Desired, Nat, Opening
from fwdaemon.legacy.difference import difference
from fwdaemon.legacy.model import FWD, OUT, POST, PRE, Head, ObservedTable, Table, TableName
from fwdaemon.legacy.plan import Plan
from fwdaemon.legacy.ruleset import links, openings_of, tables
from fwdaemon.model import Family
from tests.unit.forwards import forward, nat, route
from tests.unit.test_golden import OUTER, SUBNETS

WEB = forward("tcp *:80", "192.168.122.50:80")
BOUND = forward("tcp *:90", "192.168.122.50:90", interface="eth0")
MAIL = nat("198.51.100.8", "192.168.122.51")
SECOND = nat("198.51.100.9", "192.168.122.51")
ROUTE = route("203.0.113.64/29")
MARK = "CONNMARK --set-xmark 0x2000000/0x2000000"
NAT, MANGLE, FILTER = TableName.NAT, TableName.MANGLE, TableName.FILTER
GOOD = Head((0,), good=True, first=True)


def state(*openings: Opening, localhost: bool = False) -> Desired:
    return Desired(guest_subnets=SUBNETS, outer=OUTER, localhost=localhost).having(openings)


def rules(table: TableName, chain: str, desired: Desired, family: Family = Family.IPV4) -> list[str]:
    """Write what a chain holds, without comments."""
    return [f"{rule.matches} -j {rule.target}".lstrip() for rule in tables(desired)[family][table].chains[chain]]


# --- 1:1 NATs --------------------------------------------------------------------------------------------------------


def test_a_public_address_comes_after_every_forward_but_first_where_it_is_not_the_hosts() -> None:
    own = forward("tcp 198.51.100.8:25", "192.168.122.50:25")
    found = [rule for rule in rules(NAT, PRE, state(WEB, own, MAIL)) if MARK not in rule]
    assert found == [
        "-d 198.51.100.8/32 -p tcp -m tcp --dport 25 -j DNAT --to-destination 192.168.122.50:25",
        "-d 198.51.100.8/32 -m addrtype ! --dst-type LOCAL -j DNAT --to-destination 192.168.122.51",
        "-d 127.0.0.0/8 -j RETURN",
        "-d 169.254.0.0/16 -j RETURN",
        "-m addrtype ! --dst-type LOCAL -j RETURN",
        "-p tcp -m tcp --dport 80 -j DNAT --to-destination 192.168.122.50:80",
        "-d 198.51.100.8/32 -j DNAT --to-destination 192.168.122.51",
    ]


def test_what_a_nat_takes_is_marked_first() -> None:
    found = rules(NAT, PRE, state(nat("2001:db8::8", "2001:db8:5::50")), Family.IPV6)
    where = "-d 2001:db8::8/128"
    elsewhere = f"{where} -m addrtype ! --dst-type LOCAL"
    there = "DNAT --to-destination 2001:db8:5::50"
    assert found == [f"{way} -j {target}" for way in (elsewhere, where) for target in (MARK, there)]


def test_a_guest_leaves_with_its_public_address_and_keeps_it_in_hairpin() -> None:
    assert rules(NAT, POST, state(MAIL)) == [
        "-s 192.168.122.51/32 -o eth0 -j SNAT --to-source 198.51.100.8",
        "-s 192.168.122.51/32 -o wg0 -j SNAT --to-source 198.51.100.8",
        "-m connmark ! --mark 0x2000000/0x2000000 -j RETURN",
        "-m conntrack ! --ctstate DNAT -j RETURN",
        "-s 192.168.122.51/32 -j SNAT --to-source 198.51.100.8",
        "-s 192.168.122.0/23 -j MASQUERADE",
    ]


def test_what_a_guest_opens_is_marked_where_it_leaves_and_not_where_somebody_pretends_to_be_it() -> None:
    plugged = nat("198.51.100.10", "192.168.122.50", bridge="virbr0")
    assert rules(MANGLE, FWD, state(MAIL, plugged)) == [
        "-m conntrack ! --ctstate NEW -j RETURN",
        f"-s 192.168.122.50/32 -i virbr0 -o eth0 -j {MARK}",
        f"-s 192.168.122.50/32 -i virbr0 -o wg0 -j {MARK}",
        "-i eth0 -j RETURN",
        "-i wg0 -j RETURN",
        f"-s 192.168.122.51/32 -o eth0 -j {MARK}",
        f"-s 192.168.122.51/32 -o wg0 -j {MARK}",
    ]
    assert not any(rule.startswith("-i ") for rule in rules(MANGLE, FWD, state(plugged)))


def test_of_two_public_addresses_the_first_is_what_the_guest_leaves_with() -> None:
    for chain in (rules(NAT, POST, state(SECOND, MAIL)), rules(MANGLE, FWD, state(SECOND, MAIL))):
        assert sum("-o eth0" in rule for rule in chain) == 1
        assert not any("198.51.100.9" in rule for rule in chain)
    assert sum("198.51.100.9/32" in rule for rule in rules(NAT, PRE, state(SECOND, MAIL))) == 4


# --- routes ----------------------------------------------------------------------------------------------------------


def test_a_route_is_let_in_by_its_bridge_and_out_of_the_host_only() -> None:
    assert rules(MANGLE, FWD, state(ROUTE)) == [
        "-m conntrack ! --ctstate NEW -j RETURN",
        f"-d 203.0.113.64/29 -o virbr1 -j {MARK}",
        f"-s 203.0.113.64/29 -i virbr1 -o eth0 -j {MARK}",
        f"-s 203.0.113.64/29 -i virbr1 -o wg0 -j {MARK}",
    ]
    assert rules(NAT, PRE, state(ROUTE)) == []


@pytest.mark.parametrize("name", ["virbr+", "eth0 -j ACCEPT", "!eth0", "-eth0", "", "eth0\n", "ethernet0123456789"])
def test_an_interface_with_a_name_that_could_be_syntax_is_left_out(name: str) -> None:
    guest = replace(MAIL, bridge=name)
    opened = replace(state(guest, route("203.0.113.64/29", name)), outer=frozenset({"eth0", name}))
    assert "-i eth0 -j RETURN" in rules(MANGLE, FWD, opened)
    assert {rule.split(" -o ")[1].split(" ")[0] for rule in rules(MANGLE, FWD, opened) if " -o " in rule} == {"eth0"}
    assert not any("203.0.113.64" in rule for rule in rules(MANGLE, FWD, opened))
    assert sum(" -o " in rule for rule in rules(NAT, POST, opened)) == 1


# --- 127.0.0.1 -------------------------------------------------------------------------------------------------------


def test_localhost_is_answered_for_what_the_host_itself_sends() -> None:
    desired = state(WEB, BOUND, forward("tcp *:80", "[2001:db8:5::50]:80"), localhost=True)
    assert rules(NAT, OUT, desired) == [
        "-j KVMPF_PRE",
        f"-d 127.0.0.1/32 -p tcp -m tcp --dport 80 -j {MARK}",
        "-d 127.0.0.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 192.168.122.50:80",
    ]
    assert rules(NAT, OUT, desired, Family.IPV6) == ["-j KVMPF_PRE"]


def test_sources_hold_for_localhost() -> None:
    restricted = forward("tcp *:80", "192.168.122.50:80", sources=("127.0.0.1/32",))
    taken = rules(NAT, OUT, state(restricted, localhost=True))[1:]
    assert [rule.partition(" -p ")[0] for rule in taken] == ["-s 127.0.0.1/32 -d 127.0.0.1/32"] * 2


def test_a_guest_reached_from_localhost_answers_to_the_host() -> None:
    found = rules(NAT, POST, replace(state(WEB, localhost=True), guest_subnets=frozenset()))
    assert found[2:] == ["-s 127.0.0.0/8 -j MASQUERADE", "-d 192.168.122.50/32 -j RETURN"]


def test_the_guard_keeps_loopback_addresses_from_elsewhere_out() -> None:
    desired = state(WEB, forward("tcp *:80", "[2001:db8:5::50]:80"), localhost=True)
    assert rules(MANGLE, PRE, desired) == ["-s 127.0.0.0/8 ! -i lo -j DROP", "-d 127.0.0.0/8 ! -i lo -j DROP"]
    assert MANGLE not in tables(desired)[Family.IPV6]


# --- which tables, and what a change says ----------------------------------------------------------------------------


def test_the_mangle_table_is_for_those_who_need_it_only() -> None:
    assert tables(state(WEB))[Family.IPV4].keys() == {FILTER, NAT}
    wanted = tables(state(WEB, MAIL, route("2001:db8:1::/64")))
    assert {chain for family in Family for chain in wanted[family][MANGLE].chains} == {FWD}
    assert wanted[Family.IPV4][MANGLE].heads.keys() == {"FORWARD"}
    assert tables(state(WEB, localhost=True))[Family.IPV4][MANGLE].heads.keys() == {"PREROUTING"}


def test_a_table_wanted_no_more_loses_our_chains_and_links() -> None:
    wanted = tables(state(MAIL))[Family.IPV4][MANGLE]
    change = difference(Table(), observed(wanted))
    assert change.drop == (FWD,)
    assert [(edit.chain, edit.delete, edit.insert) for edit in change.edits] == [("FORWARD", (0,), ())]


def test_a_rule_tells_which_opening_it_serves() -> None:
    desired = state(WEB, MAIL, ROUTE, localhost=True)
    served = openings_of(desired, Family.IPV4)
    found = {
        opening: {
            (table, chain)
            for table, rules in tables(desired)[Family.IPV4].items()
            for chain in rules.chains
            if any(served.get(rule.comment) == opening for rule in rules.chains[chain])
        }
        for opening in desired.openings
    }
    assert found == {
        WEB: {(NAT, PRE), (NAT, OUT)},
        MAIL: {(NAT, PRE), (NAT, POST), (MANGLE, FWD)},
        ROUTE: {(MANGLE, FWD)},
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
    return Plan.of(Family.IPV4, now, seen, desired, then)


@pytest.mark.parametrize(
    ("table", "chain", "damaged"),
    [
        pytest.param(FILTER, FWD, {WEB, MAIL, ROUTE}, id="the gate"),
        pytest.param(NAT, PRE, {WEB, MAIL}, id="the way in"),
        pytest.param(NAT, OUT, {WEB, MAIL}, id="the host's way in"),
        pytest.param(NAT, POST, {WEB, MAIL}, id="the sources"),
        pytest.param(MANGLE, FWD, {MAIL, ROUTE}, id="the marks"),
        pytest.param(MANGLE, PRE, {WEB}, id="the guard"),
    ],
)
def test_what_is_flushed_damages_those_who_rely_on_it(table: TableName, chain: str, damaged: set[Opening]) -> None:
    desired = state(WEB, MAIL, ROUTE, localhost=True)
    assert plan(desired, table, chain, desired).damaged == damaged


def test_a_first_nat_mends_no_forward() -> None:
    found = plan(state(WEB, MAIL), NAT, "", state(WEB))
    assert found.mended == {MAIL}
    assert found.damaged == frozenset()
    assert [table for table, _ in found.changes] == [MANGLE, NAT]


def test_what_an_earlier_run_left_is_named() -> None:
    found = plan(state(WEB), NAT, "", state(WEB, MAIL, ROUTE))
    assert found.stale == {"ip nat KVMPF_PRE mail", "ip mangle KVMPF_FWD mail", "ip mangle KVMPF_FWD public"}


def test_a_hostile_name_is_no_syntax() -> None:
    hostile = '"\n-j ACCEPT --comment $(reboot)'
    desired = state(Nat(hostile, MAIL.public, MAIL.target), replace(ROUTE, network=hostile))
    served = openings_of(desired, Family.IPV4)
    assert {comment.split(" ")[0] for comment in served} == {"___j_ACCEPT___comment___reboot_"}
