"""The difference of two legacy tables, against a tiny model of what the edits do."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.core.exposures import Forward
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, GateFault
from fwdaemon.legacy.model import OUT, POST, PRE, Change, Head, ObservedTable, Rule, Table, TableName, difference
from fwdaemon.legacy.ruleset import Plan, Wanted, exposures_of, links, tables
from tests.unit.forwards import forward

WEB = forward("tcp *:80", "192.168.122.50:80")
MAIL = forward("tcp 198.51.100.7:25", "192.168.122.51:25", domain="mail")
GAME = forward("udp *:100-109", "192.168.122.52:200-209", domain="game")
GOOD = Head((0,), good=True, first=True)
NAT = TableName.NAT


def table(*forwards: Forward) -> Table:
    return tables(Desired(frozenset(forwards)))[Family.IPV4][NAT]


def observed(written: Table) -> ObservedTable:
    """Give the table as it is read back."""
    chains = {name: tuple(rule.comment for rule in rules) for name, rules in written.chains.items()}
    return ObservedTable(chains, dict.fromkeys(written.heads, GOOD))


EMPTY = ObservedTable({}, dict.fromkeys(links(NAT), Head()))


def test_nothing_to_do_makes_an_empty_change() -> None:
    assert difference(table(WEB, GAME), observed(table(GAME, WEB))) == Change()


def test_a_new_forward_is_one_rule_where_it_belongs() -> None:
    change = difference(table(WEB, MAIL), observed(table(WEB)))
    (edit,) = change.edits
    assert (change.create, change.drop, edit.chain, edit.delete) == ((), (), OUT, ())
    assert [position for position, _ in edit.insert] == [0]
    assert change.placed == {rule.comment for _, rule in edit.insert}
    assert change.broken == frozenset()


def test_a_forward_that_goes_takes_its_rule_only() -> None:
    (edit,) = difference(table(WEB), observed(table(WEB, MAIL))).edits
    assert (edit.delete, edit.insert) == ((0,), ())


def test_a_table_without_anything_of_ours_gets_all_of_it() -> None:
    change = difference(table(WEB), EMPTY)
    assert set(change.create) == {"KVMPF_PRE", "KVMPF_OUT", "KVMPF_POST"}
    assert change.broken == {PRE, OUT, POST}
    assert {edit.chain for edit in change.edits} == {PRE, OUT, "PREROUTING", "OUTPUT", "POSTROUTING"}


def test_a_table_nobody_wants_loses_links_and_chains() -> None:
    change = difference(Table(), observed(table(WEB)))
    assert set(change.drop) == {"KVMPF_PRE", "KVMPF_OUT", "KVMPF_POST"}
    assert {(edit.chain, edit.delete) for edit in change.edits} == {
        ("PREROUTING", (0,)),
        ("OUTPUT", (0,)),
        ("POSTROUTING", (0,)),
    }


@pytest.mark.parametrize(
    ("head", "fault", "broken"),
    [
        pytest.param(Head(), GateFault.ABSENT, True, id="absent"),
        pytest.param(Head((1,), good=True), GateFault.BEHIND_RULE, False, id="below another rule"),
        pytest.param(Head((0, 3), first=True), GateFault.REPEATED, True, id="twice"),
        pytest.param(Head((0,), first=True), GateFault.ALTERED, True, id="with another body"),
    ],
)
def test_a_link_is_put_right(head: Head, fault: GateFault, *, broken: bool) -> None:
    assert head.fault == fault
    seen = observed(table(WEB))
    change = difference(table(WEB), ObservedTable(seen.chains, {**seen.heads, "PREROUTING": head}))
    (edit,) = change.edits
    assert (edit.delete, edit.insert) == (head.positions, ((0, links(NAT)["PREROUTING"]),))
    assert change.broken == ({PRE} if broken else set())


@pytest.mark.parametrize(
    ("bend", "broken"),
    [
        pytest.param(lambda comments: ("", *comments), True, id="a stranger's rule"),
        pytest.param(lambda comments: comments[::-1], True, id="out of order"),
        pytest.param(lambda comments: (*comments, comments[0]), False, id="one of ours twice"),
        pytest.param(lambda comments: ("gone 0123456789ab", *comments), False, id="an earlier rule of ours"),
    ],
)
def test_a_chain_is_put_right(bend: "st.SearchStrategy[object]", *, broken: bool) -> None:
    wanted = table(WEB, MAIL)
    seen = observed(wanted)
    bent = ObservedTable({**seen.chains, OUT: bend(seen.chains[OUT])}, seen.heads)  # type: ignore[operator]
    change = difference(wanted, bent)
    assert applied(change, bent) == seen.chains
    assert change.broken == ({OUT} if broken else set())


# --- what a change says of the forwards ------------------------------------------------------------------------------


def plan(wanted: Desired, seen: ObservedTable, committed: Desired | None = None) -> Plan:
    before = {NAT: tables(committed)[Family.IPV4][NAT]} if committed else {}
    tables_wanted = {NAT: tables(wanted)[Family.IPV4][NAT]}
    served = exposures_of(wanted, Family.IPV4)
    return Plan.of(Family.IPV4, Wanted(tables_wanted, served), {NAT: seen}, wanted, before)


def test_a_first_run_mends_everything_and_damage_is_nobodys() -> None:
    both = Desired(frozenset({WEB, MAIL}))
    found = plan(both, EMPTY)
    assert (found.mended, found.damaged) == (both.forwards, frozenset())


def test_what_somebody_took_away_is_damaged_and_what_is_new_is_not() -> None:
    both = Desired(frozenset({WEB, MAIL}))
    found = plan(both, observed(table(GAME)), Desired(frozenset({MAIL, GAME})))
    assert found.mended == both.forwards
    assert found.damaged == {MAIL}


def test_what_an_earlier_run_left_is_named() -> None:
    found = plan(Desired(frozenset({WEB})), observed(table(WEB, MAIL)))
    assert found.stale == {"ip nat KVMPF_OUT mail"}
    assert found.mended == frozenset()


# --- applied(difference(a, b), b) == a -------------------------------------------------------------------------------


def applied(change: Change, before: ObservedTable) -> dict[str, tuple[str, ...]]:
    """Do what a helper would do with the chains of ours."""
    chains = {name: list(comments) for name, comments in before.chains.items()}
    chains |= {name: [] for name in change.create}
    for edit in change.edits:
        if edit.chain in before.heads:
            continue
        for position in sorted(edit.delete, reverse=True):
            del chains[edit.chain][position]
        for position, rule in edit.insert:
            assert position <= len(chains[edit.chain])
            chains[edit.chain].insert(position, rule.comment)
    for name in change.drop:
        del chains[name]
    return {name: tuple(comments) for name, comments in chains.items()}


_forwards = st.builds(
    lambda protocol, listen, port, guest, link: forward(
        f"{protocol} {listen}:{port}", f"192.168.122.{guest}:{port}", interface=link
    ),
    st.sampled_from(["tcp", "udp"]),
    st.sampled_from(["*", "198.51.100.7"]),
    st.sampled_from(["80", "81", "100-109", "105-119", "200-203"]),
    st.integers(50, 52),
    st.sampled_from([None, "eth0", "eth1"]),
)
_states = st.frozensets(_forwards, max_size=10)


@given(_states.filter(bool), _states.filter(bool))
def test_the_difference_leads_from_any_state_to_any_other(
    before: frozenset[Forward], after: frozenset[Forward]
) -> None:
    old, new = observed(table(*before)), observed(table(*after))
    change = difference(table(*after), old)
    assert applied(change, old) == new.chains
    assert not change.broken


@given(_states.filter(bool), st.data())
def test_the_difference_mends_any_bent_chain(forwards: frozenset[Forward], data: st.DataObject) -> None:
    wanted = table(*forwards)
    good = observed(wanted)
    strange = st.sampled_from([*good.chains[OUT], "", "kvm-portfwd", "gone 0123456789ab"])
    bent = ObservedTable({**good.chains, OUT: tuple(data.draw(st.lists(strange, max_size=12)))}, good.heads)
    change = difference(wanted, bent)
    assert applied(change, bent) == good.chains
    served = {rule.comment for rule in wanted.chains[OUT]} - set(bent.chains[OUT])
    assert served <= change.placed


def test_a_rule_is_a_line_of_iptables() -> None:
    assert str(Rule("", "KVMPF_PRE", "kvm-portfwd")) == "-m comment --comment kvm-portfwd -j KVMPF_PRE"
    assert str(Rule("-p tcp", "ACCEPT", "a b")) == '-p tcp -m comment --comment "a b" -j ACCEPT'


def test_a_chain_that_others_lead_to_is_emptied_once() -> None:
    there = replace(observed(table(WEB)), held=frozenset({PRE}))
    change = difference(Table(), there)
    assert set(change.drop) == {OUT, POST}
    (edit,) = [edit for edit in change.edits if edit.chain == PRE]
    assert (edit.delete, edit.insert) == (tuple(range(len(there.chains[PRE]))), ())
    assert difference(Table(), ObservedTable({PRE: ()}, {}, frozenset({PRE}))).empty
    assert difference(table(WEB), there).empty
