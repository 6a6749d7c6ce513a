"""Sets of packets, and what becomes of them in rules: compared with packets looked at one by one."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.core.types import Family
from fwdaemon.rulesets.rules import (
    Box,
    End,
    Field,
    Jump,
    Return,
    Rule,
    Space,
    Spans,
    TangledError,
    led_to,
    matching,
    one,
    walk,
)

NUMBERS = range(-2, 30)
RANGES = st.lists(st.tuples(st.integers(0, 20), st.integers(-1, 6)).map(lambda ends: (ends[0], sum(ends))), max_size=5)
SPACE = Space.around(Family.IPV4, ["eth0", "eth+", "virbr+", "virbr1"])


def members(spans: Spans) -> set[int]:
    return {number for number in NUMBERS if number in spans}


@given(RANGES, RANGES)
def test_spans_are_sets_of_numbers(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    one_set, other_set = Spans.of(some), Spans.of(others)
    assert members(one_set) == {number for first, last in some for number in range(first, last + 1)}
    assert members(one_set.meet(other_set)) == members(one_set) & members(other_set)
    assert members(one_set.minus(other_set)) == members(one_set) - members(other_set)
    assert one_set.size == len(members(one_set))
    assert Spans.of((number, number) for number in members(one_set)) == one_set


@given(st.lists(st.tuples(st.sampled_from([Field.PORT, Field.SOURCE, Field.CAME_IN]), RANGES), max_size=4))
def test_what_matches_and_what_does_not_is_all_there_is(asked: list[tuple[Field, list[tuple[int, int]]]]) -> None:
    match = matching([(field, Spans.of(ranges)) for field, ranges in asked])
    everything = SPACE.everything
    met, rest = everything.meet(match), list(everything.minus(match))
    boxes = [*([met] if met else []), *rest]
    assert sum(map(size, boxes)) == size(everything)
    assert all(box.meet(other.match) is None for box in boxes for other in boxes if box is not other)


def size(box: Box) -> int:
    number = 1
    for spans in box.spans:
        number *= spans.size
    return number


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("eth0", ["eth0"]),
        ("eth+", ["eth+", "eth0"]),
        ("+", ["+", "eth+", "eth0", "lo", "virbr+", "virbr1"]),
        ("eth1+", []),
        ("v+", ["virbr+", "virbr1"]),
    ],
)
def test_a_pattern_is_a_set_of_interfaces(pattern: str, names: Sequence[str]) -> None:
    numbers = SPACE.interfaces_like(pattern)
    assert [name for number, name in enumerate(SPACE.interfaces) if number in numbers] == names


@pytest.mark.parametrize(("name", "stands_for"), [("eth0", "eth0"), ("eth7", "eth+"), ("virbr1", "virbr1"), ("x", "+")])
def test_an_interface_is_one_of_them(name: str, stands_for: str) -> None:
    assert SPACE.interface(name) == one(SPACE.interfaces.index(stands_for))


def port(first: int, last: int) -> dict[Field, Spans]:
    return {Field.PORT: Spans(((first, last),))}


def ends(*rules: Rule, **others: Sequence[Rule]) -> dict[int, list[str]]:
    """Every end of ports 1 to 5, by what they are said to come to."""
    outcomes = walk({"base": rules, **others}, "base", SPACE.everything, End.REFUSE)
    told: dict[int, list[str]] = {number: [] for number in range(1, 6)}
    for outcome in outcomes:
        for number, said in told.items():
            if number in outcome.packets[Field.PORT]:
                said.append(f"{outcome.end} {'policy' if outcome.rule is None else outcome.rule.line}")
    return told


def test_each_packet_comes_to_the_first_end_there_is() -> None:
    assert ends(Rule(1, port(1, 2), End.ACCEPT), Rule(2, port(2, 3), End.TRANSLATE), Rule(3, port(4, 4), None)) == {
        1: ["accept 1"],
        2: ["accept 1"],
        3: ["translate 2"],
        4: ["refuse policy"],
        5: ["refuse policy"],
    }


def test_a_jump_comes_back_and_a_goto_does_not() -> None:
    below = [Rule(9, port(1, 1), End.ACCEPT), Rule(10, port(2, 2), Return()), Rule(11, port(2, 3), End.TRANSLATE)]
    last = Rule(3, {}, End.UNCLEAR)
    assert ends(Rule(1, {}, Jump("below")), last, below=below) == {
        1: ["accept 9"],
        2: ["unclear 3"],
        3: ["translate 11"],
        4: ["unclear 3"],
        5: ["unclear 3"],
    }
    assert ends(Rule(1, {}, Jump("below", goto=True)), last, below=below) == {
        1: ["accept 9"],
        2: ["refuse policy"],
        3: ["translate 11"],
        4: ["refuse policy"],
        5: ["refuse policy"],
    }


def test_a_rule_that_is_not_certain_leads_both_ways() -> None:
    found = ends(Rule(1, port(1, 1), End.ACCEPT, certain=False), Rule(2, port(1, 1), End.TRANSLATE))
    assert found[1] == ["accept 1", "translate 2"]
    assert ends(Rule(1, port(1, 1), Return(), certain=False), Rule(2, {}, End.ACCEPT))[1] == [
        "accept 2",
        "refuse policy",
    ]


def test_a_circle_is_an_error() -> None:
    with pytest.raises(TangledError):
        ends(Rule(1, {}, Jump("a")), a=[Rule(2, {}, Jump("base"))])


def test_what_jumps_lead_to() -> None:
    chains = {"a": [Rule(1, {}, Jump("b")), Rule(2, {}, Jump("c", goto=True))], "c": [Rule(3, {}, Jump("a"))], "d": []}
    assert led_to(chains, "a") == {"a", "b", "c"}
