import json
from collections.abc import Sequence

import pytest

from fwdaemon.core.bans import BEHIND
from fwdaemon.core.types import Family, Gate, GateFault
from fwdaemon.nftables.gates import (
    COMMENT,
    FoundRule,
    Spellings,
    iptables_script,
    opening_script,
    orphaned_gates,
    read_iptables,
    read_native,
    wanted_gates,
)

LABEL = 25
SPELLED: Spellings = frozenset({25, "ours"})
GATE = Gate("ip", "libvirt_network", "forward")
FORWARD = Gate("ip", "filter", "FORWARD")
OURS = '-A FORWARD -m connlabel --label "25" -m comment --comment kvm-portfwd -j ACCEPT'
MARKED = "-A FORWARD -m connmark --mark 0x2000000/0x2000000 -m comment --comment kvm-portfwd -j ACCEPT"
JUMP = [{"jump": {"target": "guest_input"}}]


def by_label(label: int | str) -> list[object]:
    return [{"match": {"op": "in", "left": {"ct": {"key": "label"}}, "right": label}}, {"accept": None}]


GOOD = by_label(LABEL)


def listing(*rules: tuple[int, str, Sequence[object]]) -> str:
    return json.dumps(
        {
            "nftables": [
                {"metainfo": {}},
                *(
                    {"rule": {**_where(), "handle": handle, "comment": comment, "expr": expression}}
                    for handle, comment, expression in rules
                ),
            ]
        }
    )


def _where() -> dict[str, str]:
    return {"family": GATE.family, "table": GATE.table, "chain": GATE.chain}


@pytest.mark.parametrize(
    ("found", "is_open"),
    [
        pytest.param(listing((5, "kvm-portfwd", GOOD), (6, "", JUMP)), True, id="at the head"),
        pytest.param(listing((6, "", JUMP), (5, "kvm-portfwd", GOOD)), False, id="below another rule"),
        pytest.param(listing((6, "", JUMP)), False, id="absent"),
        pytest.param(listing((5, "kvm-portfwd", GOOD), (7, "kvm-portfwd", GOOD)), False, id="twice"),
        pytest.param(listing((5, "kvm-portfwd", JUMP)), False, id="with another body"),
        pytest.param(listing((5, "somebody else", GOOD)), False, id="somebody else's"),
        pytest.param(listing((5, "kvm-portfwd", by_label("ours"))), True, id="by the name of its label"),
        pytest.param(listing((5, "kvm-portfwd", by_label(26))), False, id="with another label"),
    ],
)
def test_a_gate_is_open_only_at_the_head(found: str, *, is_open: bool) -> None:
    assert read_native(GATE, found, SPELLED, BEHIND).open is is_open


def test_a_gate_is_moved_in_one_script() -> None:
    state = read_native(GATE, listing((6, "", JUMP), (5, "kvm-portfwd", GOOD)), SPELLED, BEHIND)
    assert state.fault == GateFault.BEHIND_RULE
    assert opening_script(state, LABEL) == [
        "delete rule ip libvirt_network forward handle 5",
        'insert rule ip libvirt_network forward ct label 25 accept comment "kvm-portfwd"',
    ]


@pytest.mark.parametrize(
    ("found", "is_open"),
    [
        pytest.param(f"-P FORWARD DROP\n{OURS}\n-A FORWARD -j DROP\n", True, id="at the head"),
        pytest.param(f"-P FORWARD ACCEPT\n-A FORWARD -j LIBVIRT_FWX\n{OURS}\n", False, id="below another rule"),
        pytest.param("-P FORWARD ACCEPT\n", False, id="absent"),
        pytest.param(OURS.replace("25", "26") + "\n", False, id="with another label"),
        pytest.param(OURS.replace("25", "ours") + "\n", True, id="by the name of its label"),
        pytest.param(OURS.replace("25", "theirs") + "\n", False, id="by another name"),
        pytest.param(MARKED + "\n", False, id="of an earlier version"),
    ],
)
def test_the_gate_of_iptables_is_open_only_at_the_head(found: str, *, is_open: bool) -> None:
    assert read_iptables(FORWARD, found, SPELLED, BEHIND).open is is_open


@pytest.mark.parametrize("text", ["x --comment kvm-portfwd y", "x\n-A FORWARD -m comment --comment kvm-portfwd y"])
def test_a_comment_that_quotes_ours_makes_no_rule_ours(text: str) -> None:
    found = f'-A FORWARD -s 192.0.2.1/32 -m comment --comment "{text}" -j DROP\n'
    assert read_iptables(FORWARD, found, SPELLED, BEHIND).ours == ()


def test_the_gate_of_iptables_is_moved_in_one_restore() -> None:
    state = read_iptables(FORWARD, f"-A FORWARD -j DROP\n{OURS}\n", SPELLED, BEHIND)
    rule = OURS.removeprefix("-A FORWARD ")
    assert iptables_script(state, LABEL) == f"*filter\n-D FORWARD {rule}\n-I FORWARD 1 {rule}\nCOMMIT\n"
    assert iptables_script(state, None) == f"*filter\n-D FORWARD {rule}\nCOMMIT\n"


def test_a_rule_of_ours_where_none_is_wanted_is_found() -> None:
    found = [FoundRule(GATE.family, GATE.table, GATE.chain, handle, text) for handle, text in enumerate(("", COMMENT))]
    assert [(state.gate, state.ours) for state in orphaned_gates(found, ())] == [(GATE, ("handle 1",))]
    assert orphaned_gates(found, (GATE,)) == ()


@pytest.mark.parametrize("name", ["x handle 1\ndelete table ip y", "a b", "c\ufffd", ""])
def test_what_nft_has_no_name_for_is_left_alone(name: str) -> None:
    assert orphaned_gates([FoundRule("ip", name, "c", 1, COMMENT), FoundRule("ip", "t", name, 1, COMMENT)], ()) == ()


def test_gates_are_wanted_only_where_a_family_has_forwards() -> None:
    ours = Gate("inet", "filter", "forward")
    other = Gate("ip6", "filter", "forward")
    assert wanted_gates([], (ours,)) == ()
    assert wanted_gates([Family.IPV4], (ours, other)) == (GATE, FORWARD, ours)
