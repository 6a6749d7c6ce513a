"""The difference of two tables, against a tiny model of what `nft -f` does with a script."""

import re
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.desired import Desired, Forward
from fwdaemon.model import Family
from fwdaemon.nftables.difference import difference
from fwdaemon.nftables.model import Chain, Rule, Table
from fwdaemon.nftables.ruleset import tables
from tests.unit.forwards import forward

WEB = forward("tcp *:80", "192.168.122.50:80")
MAIL = forward("tcp 198.51.100.7:25", "192.168.122.51:25", domain="mail")
GAME = forward("udp *:100-109", "192.168.122.52:200-209", domain="game")


def table(*forwards: Forward) -> Table:
    return tables(Desired(frozenset(forwards)))[Family.IPV4]


def test_nothing_to_do_makes_an_empty_script() -> None:
    assert difference(Family.IPV4, table(WEB, GAME), table(GAME, WEB)).script == ()


def test_a_new_forward_is_a_chain_its_rule_and_one_element() -> None:
    (rule,) = table(WEB, MAIL).chains["on.198.51.100.7.tcp.25"].rules
    assert difference(Family.IPV4, table(WEB, MAIL), table(WEB)).script == (
        "add chain ip kvm_portfwd on.198.51.100.7.tcp.25",
        f"add rule ip kvm_portfwd on.198.51.100.7.tcp.25 {rule}",
        "add element ip kvm_portfwd one_address { 198.51.100.7 . tcp . 25 : jump on.198.51.100.7.tcp.25 }",
    )


def test_a_forward_that_goes_takes_its_element_before_its_chain() -> None:
    assert difference(Family.IPV4, table(WEB), table(WEB, GAME)).script == (
        "delete element ip kvm_portfwd every_address_ranges { udp . 100-109 }",
        "delete chain ip kvm_portfwd any.udp.100_109",
    )


def test_another_target_rewrites_one_chain_and_no_element() -> None:
    moved = replace(WEB, target=MAIL.target)
    change = difference(Family.IPV4, table(moved, GAME), table(WEB, GAME))
    assert [line.split(" meta ")[0] for line in change.script] == [
        "flush chain ip kvm_portfwd any.tcp.80",
        "add rule ip kvm_portfwd any.tcp.80",
    ]
    assert change.mended == {"any.tcp.80"}


def test_a_table_that_is_gone_is_created_whole_and_mends_all() -> None:
    change = difference(Family.IPV4, table(WEB), None)
    assert change.script[:2] == ("add table ip kvm_portfwd", "delete table ip kvm_portfwd")
    assert "any.tcp.80" in change.mended


def test_a_table_nobody_wants_is_deleted() -> None:
    assert difference(Family.IPV4, None, table(WEB)).script == ("delete table ip kvm_portfwd",)


def test_a_base_chain_that_hooks_in_elsewhere_replaces_the_table() -> None:
    good = table(WEB)
    hook = good.chains["output"].hook
    assert hook
    late = Chain(good.chains["output"].rules, replace(hook, priority=0))
    bent = replace(good, chains={**good.chains, "output": late})
    assert difference(Family.IPV4, good, bent).script[1] == "delete table ip kvm_portfwd"


def test_a_rule_somebody_added_or_replaced_is_undone() -> None:
    good = table(WEB)
    bent = replace(good, chains={**good.chains, "any.tcp.80": Chain((*good.chains["any.tcp.80"].rules, Rule("", "")))})
    change = difference(Family.IPV4, good, bent)
    assert change.script[0] == "flush chain ip kvm_portfwd any.tcp.80"
    assert change.mended == {"any.tcp.80"}


def test_damage_to_the_dispatch_concerns_every_forward() -> None:
    good = table(WEB, MAIL)
    bent = replace(good, chains={**good.chains, "forwards": Chain(())})
    assert difference(Family.IPV4, good, bent).mended >= {"any.tcp.80", "on.198.51.100.7.tcp.25"}


# --- apply(difference(a, b), a) == b ---------------------------------------------------------------------------------


def applied(script: tuple[str, ...], before: Table | None) -> Table | None:
    """Do what `nft -f` would do with the scripts we write; what we never write is an error."""
    state = before
    for line in script:
        if line.startswith("table "):
            return None  # a creation is whole by itself, and is checked against the kernel
        state = _command(line.split(" ", 5), line, state)
    return state


def _command(words: list[str], line: str, state: Table | None) -> Table | None:
    verb, kind = words[0], words[1]
    if kind == "table":
        return None
    assert state is not None
    name = words[4]
    chains, sets = dict(state.chains), dict(state.sets)
    match verb, kind:
        case (("add" | "flush"), "chain"):
            chains[name] = Chain(())
        case "delete", "chain":
            del chains[name]
        case "add", "rule":
            comment = re.findall('comment "([^"]*)"$', line)[0]
            chains[name] = Chain((*chains[name].rules, Rule("", comment)))
        case _, "element":
            inside = line[line.index("{") + 2 : -2].split(", ")
            elements = dict(sets[name].elements)
            for element in inside:
                key, _, chain = element.partition(" : jump ")
                if verb == "delete":
                    del elements[key]
                else:
                    assert key not in elements
                    elements[key] = chain or None
            sets[name] = replace(sets[name], elements=elements)
        case _:
            raise AssertionError(line)
    return replace(state, chains=chains, sets=sets)


_pieces = st.sampled_from(["80", "81", "100-109", "105-119", "200-203"])
_forwards = st.builds(
    lambda protocol, listen, port, guest, link: forward(
        f"{protocol} {listen}:{port}", f"192.168.122.{guest}:{port}", interface=link
    ),
    st.sampled_from(["tcp", "udp"]),
    st.sampled_from(["*", "198.51.100.7"]),
    _pieces,
    st.integers(50, 52),
    st.sampled_from([None, "eth0", "eth1"]),
)
_states = st.frozensets(_forwards, max_size=10).filter(bool)


@given(_states, _states)
def test_the_difference_leads_from_any_state_to_any_other(
    before: frozenset[Forward], after: frozenset[Forward]
) -> None:
    old, new = table(*before), table(*after)
    script = difference(Family.IPV4, new, old).script
    assert applied(script, old) == new
    assert difference(Family.IPV4, new, applied(script, old)).script == ()
