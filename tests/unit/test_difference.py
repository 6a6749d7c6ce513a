"""The difference of two tables, against a tiny model of what `nft -f` does with a script."""

import re
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fwdaemon.core.exposures import Exposure
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family
from fwdaemon.nftables.difference import altered, difference
from fwdaemon.nftables.dispatch_chains import EVERYWHERE, MapKey, MapKeys
from fwdaemon.nftables.model import VERDICT, Chain, Elements, Hook, Rule, Table, Target
from fwdaemon.nftables.ruleset import map_keys_of, tables
from tests.unit.forwards import forward, nat, route, some_states

WEB = forward("tcp *:80", "192.168.122.50:80")
MAIL = forward("tcp 198.51.100.7:25", "192.168.122.51:25", domain="mail")
TO_MAIL = "198.51.100.7 . tcp . 25"
SSH = forward("tcp *:22", "192.168.122.50:22", sources=("203.0.113.0/24",))
GAME = forward("udp *:100-109", "192.168.122.52:200-209", domain="game")
POST = nat("198.51.100.8", "192.168.122.53", domain="post")
NET = route("203.0.113.64/29")


def table(*exposures: Exposure) -> Table:
    return table_of(Desired().having(exposures))


def table_of(desired: Desired) -> Table:
    return tables(replace(desired, kept=frozenset({Family.IPV4})))[Family.IPV4]


def map_keys(*these: MapKey) -> MapKeys:
    return MapKeys(frozenset(these))


def test_nothing_to_do_makes_an_empty_script() -> None:
    assert difference(Family.IPV4, table(WEB, GAME), table(GAME, WEB)).script == ()


def test_a_new_plain_forward_is_two_elements() -> None:
    change = difference(Family.IPV4, table(WEB, MAIL), table(WEB))
    assert change.script == (
        "add element ip kvm_portfwd one_address { 198.51.100.7 . tcp . 25 : jump one_address_plain }",
        f'add element ip kvm_portfwd one_address_targets {{ {TO_MAIL} comment "mail" : 192.168.122.51 . 25 }}',
    )
    assert change.mended == map_keys(("one_address", "198.51.100.7 . tcp . 25"))


def test_any_other_new_forward_is_a_chain_its_rule_and_one_element() -> None:
    (rule,) = table(WEB, SSH).chains["any.tcp.22"].rules
    assert difference(Family.IPV4, table(WEB, SSH), table(WEB)).script == (
        "add chain ip kvm_portfwd any.tcp.22",
        f"add rule ip kvm_portfwd any.tcp.22 {rule}",
        "add element ip kvm_portfwd every_address { tcp . 22 : jump any.tcp.22 }",
    )


def test_a_forward_that_goes_takes_its_element_before_its_chain() -> None:
    assert difference(Family.IPV4, table(WEB), table(WEB, GAME)).script == (
        "delete element ip kvm_portfwd every_address_ranges { udp . 100-109 }",
        "delete chain ip kvm_portfwd any.udp.100_109",
    )


def altered_keys(desired: Table, observed: Table) -> MapKeys:
    return altered({Family.IPV4: desired}, {Family.IPV4: observed})[Family.IPV4]


def test_where_an_exposure_went_others_at_its_ports_may_have_been_led_to_by_it() -> None:
    at_web, at_game = ("every_address", "tcp . 80"), ("every_address_ranges", "udp . 100-109")
    assert altered_keys(table(WEB, GAME), table(WEB, GAME, SSH, POST)) == map_keys()
    assert altered_keys(table(WEB, GAME), table(WEB, GAME, forward("udp 198.51.100.7:109", "192.168.122.52:209"))) == (
        map_keys(at_game)
    )
    assert altered_keys(
        table(WEB, GAME), table(WEB, GAME, forward("tcp 198.51.100.7:1-79", "192.168.122.52:1-79"))
    ) == (map_keys())
    changed = forward("tcp 198.51.100.7:80", "192.168.122.50:80"), forward("tcp 198.51.100.7:80", "192.168.122.51:80")
    assert altered_keys(table(WEB, changed[0]), table(WEB, changed[1])) == map_keys(
        at_web, ("one_address", "198.51.100.7 . tcp . 80")
    )
    # An element of others, at a port that is nothing we would write.
    observed = table(WEB, GAME)
    strange = replace(
        observed.sets["every_address"], elements={"tcp . {80}": "forwards", "tcp . 80": "every_address_plain"}
    )
    sets = {**observed.sets, "every_address": strange}
    assert altered_keys(table(WEB, GAME), replace(observed, sets=sets)) == map_keys(at_web)


def test_another_target_replaces_one_element() -> None:
    moved = replace(WEB, target=MAIL.target)
    change = difference(Family.IPV4, table(moved, GAME), table(WEB, GAME))
    assert change.script == (
        "delete element ip kvm_portfwd every_address_targets { tcp . 80 }",
        'add element ip kvm_portfwd every_address_targets { tcp . 80 comment "web1" : 192.168.122.51 . 80 }',
    )
    assert change.mended == map_keys(("every_address", "tcp . 80"))


def test_another_target_of_a_chain_rewrites_it_and_no_element() -> None:
    moved = replace(SSH, target=MAIL.target)
    change = difference(Family.IPV4, table(moved, GAME), table(SSH, GAME))
    assert [line.split(" meta ")[0] for line in change.script] == [
        "flush chain ip kvm_portfwd any.tcp.22",
        "add rule ip kvm_portfwd any.tcp.22",
    ]
    assert change.mended == map_keys(("every_address", "tcp . 22"))


def test_a_forward_that_is_plain_no_more_moves_to_a_chain_in_one_step() -> None:
    change = difference(Family.IPV4, table(replace(WEB, interface="eth0")), table(WEB))
    assert [line.split(" meta ")[0] for line in change.script] == [
        "add chain ip kvm_portfwd any.tcp.80",
        "add rule ip kvm_portfwd any.tcp.80",
        "delete element ip kvm_portfwd every_address { tcp . 80 }",
        "add element ip kvm_portfwd every_address { tcp . 80 : jump any.tcp.80 }",
        "delete element ip kvm_portfwd every_address_targets { tcp . 80 }",
    ]
    assert change.mended == map_keys(("every_address", "tcp . 80"))


def test_a_table_that_is_gone_is_created_whole_and_mends_all() -> None:
    change = difference(Family.IPV4, table(WEB), None)
    assert change.script[0] == "create table ip kvm_portfwd"
    assert change.mended == EVERYWHERE


def test_a_table_that_is_none_of_ours_is_replaced_whole() -> None:
    change = difference(Family.IPV4, table(WEB, MAIL), Table(Family.IPV4, {}, {}))
    assert change.script[:2] == ("add table ip kvm_portfwd", "delete table ip kvm_portfwd")
    assert (change.mended, change.anew) == (EVERYWHERE, True)


def test_a_chain_is_there_before_a_rule_leads_to_it() -> None:
    plain = Desired().having([WEB])
    switched = replace(plain, switched=frozenset({(Family.IPV4, "eth0")}))
    for wanted in (replace(plain, confined=frozenset({Family.IPV4})), switched):
        there = set(table(WEB).chains)
        for line in difference(Family.IPV4, table_of(wanted), table(WEB)).script:
            there |= set(re.findall(r"^add chain ip kvm_portfwd (\S+)", line))
            assert there.issuperset(re.findall(r"^add rule .* jump (\S+)", line))


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
    good = table(WEB, SSH)
    bent = replace(good, chains={**good.chains, "any.tcp.22": Chain((*good.chains["any.tcp.22"].rules, Rule("", "")))})
    change = difference(Family.IPV4, good, bent)
    assert change.script[0] == "flush chain ip kvm_portfwd any.tcp.22"
    assert change.mended == map_keys(("every_address", "tcp . 22"))


def test_damage_to_the_chain_of_plain_forwards_concerns_all_that_come_to_it() -> None:
    good = table(WEB, MAIL, SSH, GAME)
    bent = replace(good, chains={**good.chains, "every_address_plain": Chain(())})
    assert difference(Family.IPV4, good, bent).mended == map_keys(("every_address", "tcp . 80"))


def test_damage_to_the_dispatch_concerns_every_exposure() -> None:
    good = table(WEB, MAIL, POST, NET)
    bent = replace(good, chains={**good.chains, "forwards": Chain(())})
    assert difference(Family.IPV4, good, bent).mended == EVERYWHERE


def test_a_guest_with_another_address_keeps_its_public_one_in_one_step() -> None:
    moved = replace(POST, target=MAIL.target)
    (to,), (through,) = (table(moved).chains[name].rules for name in ("nat.198.51.100.8", "from.192.168.122.51"))
    change = difference(Family.IPV4, table(moved, NET), table(POST, NET))
    assert change.script == (
        "flush chain ip kvm_portfwd nat.198.51.100.8",
        f"add rule ip kvm_portfwd nat.198.51.100.8 {to}",
        "add chain ip kvm_portfwd from.192.168.122.51",
        f"add rule ip kvm_portfwd from.192.168.122.51 {through}",
        "delete element ip kvm_portfwd one_to_one_leaving { 192.168.122.53 }",
        "add element ip kvm_portfwd one_to_one_leaving { 192.168.122.51 : jump from.192.168.122.51 }",
        "delete element ip kvm_portfwd leaving_as { 192.168.122.53 }",
        "add element ip kvm_portfwd leaving_as { 192.168.122.51 : jump as.198.51.100.8 }",
        "delete chain ip kvm_portfwd from.192.168.122.53",
    )
    guest = "192.168.122.51"
    assert change.mended == map_keys(
        ("one_to_one", "198.51.100.8"), ("one_to_one_leaving", guest), ("leaving_as", guest)
    )


def test_a_guest_with_two_public_addresses_leaves_with_the_first() -> None:
    later, first = nat("198.51.100.10", "192.168.122.53"), nat("198.51.100.9", "192.168.122.53")
    for one, other in [(later, first), (first, later)]:
        assert table(one, other).sets["leaving_as"].elements == {"192.168.122.53": "as.198.51.100.9"}
    served = map_keys_of(Desired().having([later, first]))
    assert served[Family.IPV4, ("one_to_one_leaving", "192.168.122.53")] == (first,)


def test_another_bridge_rewrites_the_chains_of_a_route_and_no_element() -> None:
    change = difference(Family.IPV4, table(replace(NET, bridge="virbr7")), table(NET))
    assert [line.split(" ")[:2] for line in change.script] == [["flush", "chain"], ["add", "rule"]] * 3
    ways = ("entering", "203.0.113.64/29"), ("leaving", "203.0.113.64/29"), ("homes", "203.0.113.64/29")
    assert change.mended == map_keys(*ways)


def test_a_base_chain_that_is_not_ours_is_taken_away() -> None:
    good = table(WEB)
    bent = replace(good, chains={**good.chains, "strange": Chain((), Hook("refusing", "input", 0))})
    assert difference(Family.IPV4, good, bent).script == ("delete chain ip kvm_portfwd strange",)


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
        case "add", "chain":
            chains[name] = Chain((), _hook(line))
        case "flush", "chain":
            chains[name] = replace(chains[name], rules=())
        case "delete", "chain":
            del chains[name]
        case "add", "rule":
            comment = re.findall('comment "([^"]*)"$', line)[0]
            chains[name] = replace(chains[name], rules=(*chains[name].rules, Rule("", comment)))
        case "flush", "map" | "set":
            sets[name] = replace(sets[name], elements={})
        case "add", "map" | "set":
            declared, _, listed = line.partition("{")[2].partition(" elements = { ")
            assert declared.strip() == str(sets[name].type)
            added = listed.removesuffix(" } }").split(", ")
            sets[name] = replace(sets[name], elements=_elements(verb, sets[name].elements, added))
        case _, "element":
            inside = line[line.index("{") + 2 : -2].split(", ")
            sets[name] = replace(sets[name], elements=_elements(verb, sets[name].elements, inside))
        case _:
            raise AssertionError(line)
    return replace(state, chains=chains, sets=sets)


_ELEMENT = re.compile(r'(?P<key>.*?)(?: : jump (?P<chain>\S+)| comment "(?P<comment>[^"]*)" : (?P<data>.*))?')


def _elements(verb: str, before: Elements, texts: list[str]) -> Elements:
    elements = dict(before)
    for text in texts:
        found = _ELEMENT.fullmatch(text)
        assert found
        if verb == "delete":
            del elements[text]
        else:
            assert found["key"] not in elements
            elements[found["key"]] = Target(found["data"], found["comment"]) if found["data"] else found["chain"]
    return elements


def _hook(line: str) -> Hook | None:
    found = re.search(r"\{ type (\S+) hook (\S+) priority (\S+); policy accept; \}$", line)
    return Hook(found[1], found[2], int(found[3])) if found else None


@given(before=some_states(), after=some_states(), crowded=st.booleans())
def test_the_difference_leads_from_any_state_to_any_other(before: Desired, after: Desired, *, crowded: bool) -> None:
    old, new = table_of(before), table_of(after)
    script = difference(Family.IPV4, new, old, crowded=crowded).script
    assert applied(script, old) == new
    assert not (crowded and any(line.split()[1] == "element" for line in script))
    assert difference(Family.IPV4, new, applied(script, old)).script == ()


@given(some_states())
def test_every_dispatch_chain_is_accounted_to_its_exposures(desired: Desired) -> None:
    served, sets = map_keys_of(desired), table_of(desired).sets
    leading = {(name, key) for name, found in sets.items() if found.type.data == VERDICT for key in found.elements}
    assert {map_key for _, map_key in served} == leading
    assert {exposure for exposures in served.values() for exposure in exposures} == desired.exposures
