"""What is unknown is never guessed: a chain's judgement holds whatever the unknown matches turn out to be."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TypeAlias

from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.rulesets.evaluation import Judgement, pass_through, through
from fwdaemon.rulesets.packet import (
    BaseChain,
    Change,
    End,
    Jump,
    Match,
    Packet,
    Return,
    Rule,
    RuleLocation,
    State,
    Statement,
    Surroundings,
    System,
    Tristate,
    Verdict,
    all_of,
    any_of,
    negated,
)
from tests.unit.explaining import AROUND, native, packet

Drawn: TypeAlias = tuple[Tristate, str]
"""Whether a rule matches, and what it then does."""

_ENDING = ("accept", "drop", "return", "mark", "if marked, drop")
_DRAWN = st.tuples(st.sampled_from(Tristate), st.sampled_from([*_ENDING, "jump", "goto"]))
_INNER = st.tuples(st.sampled_from(Tristate), st.sampled_from(_ENDING))
_PLACE = RuleLocation(System.NFTABLES, "ip", "t", "c", 1)


def _statements(action: str) -> tuple[Statement, ...]:
    marked = Match(lambda packet, _: Tristate.UNKNOWN if packet.mark is None else Tristate(2 * (packet.mark == 1)))
    actions: Mapping[str, tuple[Statement, ...]] = {
        "accept": (Verdict(End.ACCEPT),),
        "drop": (Verdict(End.REFUSE),),
        "return": (Return(),),
        "mark": (Change(lambda packet: replace(packet, mark=1)),),
        "jump": (Jump("inner"),),
        "goto": (Jump("inner", goto=True),),
        "if marked, drop": (marked, Verdict(End.REFUSE)),
    }
    return actions[action]


def _rule(drawn: Drawn) -> Rule:
    truth, action = drawn
    return Rule(_PLACE, (Match(lambda _packet, _around: truth), *_statements(action)))


def _judged(outer: Sequence[Drawn], inner: Sequence[Drawn]) -> Judgement:
    chains = {"c": tuple(map(_rule, outer)), "inner": tuple(map(_rule, inner))}
    chain = BaseChain(System.NFTABLES, "ip", "t", "c", "filter", "forward", 0, accepts=True, chains=chains)
    return pass_through(chain, [packet()], Surroundings({})).judgement


@given(outer=st.lists(_DRAWN, max_size=6), inner=st.lists(_INNER, max_size=3))
def test_a_judgement_holds_whatever_the_unknown_turns_out_to_be(outer: list[Drawn], inner: list[Drawn]) -> None:
    rules = [*outer, *inner]
    unknown = [index for index, (truth, _) in enumerate(rules) if truth is Tristate.UNKNOWN]
    outcomes = set()
    for truths in product([Tristate.NO, Tristate.YES], repeat=len(unknown)):
        settled = dict(zip(unknown, truths, strict=True))
        told = [(settled.get(index, truth), action) for index, (truth, action) in enumerate(rules)]
        outcomes.add(_judged(told[: len(outer)], told[len(outer) :]))
    assert Judgement.MAY_REFUSE not in outcomes
    judgement = _judged(outer, inner)
    if judgement is not Judgement.MAY_REFUSE:
        assert outcomes == {judgement}


@given(st.lists(st.sampled_from(Tristate)))
def test_three_valued_logic_agrees_with_the_two_valued_one(truths: list[Tristate]) -> None:
    known = [truth is Tristate.YES for truth in truths if truth is not Tristate.UNKNOWN]
    both, either = all_of(truths), any_of(truths)
    assert negated(both) is any_of(map(negated, truths))
    if Tristate.UNKNOWN not in truths:
        assert (both is Tristate.YES, either is Tristate.YES) == (all(known), any(known))
    if both is Tristate.UNKNOWN:
        assert all(known)
    if either is Tristate.UNKNOWN:
        assert not any(known)


def _ways(*chains: BaseChain, first: Packet | None = None) -> list[int]:
    way = through(chains, chains[0].hook, [first or packet()], AROUND)
    return [passage.chain.priority for passage in way.passages]


def _dnat(address: str, priority: int) -> BaseChain:
    return native([{"dnat": {"addr": address}}], type="nat", prio=priority)


def test_chains_are_called_by_priority_and_nat_where_the_kernel_does_nat() -> None:
    plain = [native(prio=priority) for priority in (0, -300, -102)]
    assert _ways(*plain, native(type="nat", prio=-105)) == [-300, -102, -105, 0]


def test_the_first_that_translates_is_the_last_to_be_asked() -> None:
    chains = (_dnat("10.0.0.2", -100), native(type="nat", prio=-120), _dnat("10.0.0.1", -110))
    way = through(chains, "prerouting", [packet()], AROUND)
    assert [passage.chain.priority for passage in way.passages] == [-120, -110]
    assert {str(item.destination) for item in way.packets} == {"10.0.0.1"}


def test_only_a_connections_first_packet_is_translated() -> None:
    assert _ways(_dnat("10.0.0.1", -100), first=packet(state=State.ESTABLISHED)) == []


def test_connections_are_unknown_before_they_are_tracked() -> None:
    invalid = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "invalid"}}
    assert through([native([invalid, {"drop": None}], prio=-300)], "prerouting", [packet()], AROUND).refused
    assert not through([native([invalid, {"drop": None}], prio=-150)], "prerouting", [packet()], AROUND).refused


def test_what_is_not_tracked_is_not_translated() -> None:
    way = through([native([{"notrack": None}], prio=-300), _dnat("10.0.0.1", -100)], "prerouting", [packet()], AROUND)
    assert way.untracked_by is not None
    assert way.untracked_by.priority == -300
    assert {str(item.destination) for item in way.packets} == {"198.51.100.1"}


def test_a_family_sees_its_own_chains_and_those_of_both() -> None:
    chains = [native(family=family, prio=number) for number, family in enumerate(("ip", "ip6", "inet", "bridge"))]
    assert _ways(*chains) == [0, 2]


def test_hooks_of_one_interface() -> None:
    here = native(family="netdev", hook="ingress", prio=1, dev="eth0")
    there = native(family="netdev", hook="ingress", prio=2, dev=["eth1", "eth2"])
    way = through([here, there], "ingress", [packet()], AROUND, link="eth0")
    assert [passage.chain.priority for passage in way.passages] == [1]
