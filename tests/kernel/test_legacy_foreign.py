"""Chains of others in iptables-legacy, whose names are any bytes: never read as text, and never touched."""

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from fwdaemon.core.admission import Admission, Rate
from fwdaemon.core.bans import BEHIND
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, GateFault
from fwdaemon.legacy.backend import LegacyBackend
from fwdaemon.legacy.client import HelperClient
from fwdaemon.legacy.gates import LegacyGates
from fwdaemon.legacy.info import chain_names, packets
from fwdaemon.legacy.model import OWN_CHAINS, TableName, limits_chain
from fwdaemon.legacy.translation import counting_rules
from tests import sentences
from tests.kernel.legacy import EVERYTHING, iptables
from tests.kernel.test_nftables import ALL, WEB

LABEL = 25
# Two are not UTF-8, and four look like ours; one is named as those of limits are.
LIMITS = "KVMPF_0123456789ab"
NAMES = (*map(os.fsdecode, (b"c\xff", b"KVMPF_\xff", b"KVMPF_ADMIN", b"KVMPF_FWD2")), LIMITS)
_OURS = re.compile(rb"KVMPF_(?:PRE|OUT|POST|FWD|LEAD)\b|kvm-portfwd")


@pytest.fixture(autouse=True)
def _theirs(lock_file: Path) -> None:
    """Give each table such chains, with rules in them and rules that lead to them."""
    del lock_file
    said = ("-m", "comment", "--comment", os.fsdecode(b"\xfe"))
    for family in Family:
        for table in TableName:
            hook = "PREROUTING" if table is TableName.NAT else "FORWARD"
            for name in NAMES:
                iptables("-t", table, "-N", name, family=family)
                iptables("-t", table, "-A", name, "-i", os.fsdecode(b"e\xff"), *said, "-j", "RETURN", family=family)
                iptables("-t", table, "-A", hook, *said, "-j", name, family=family)


def theirs() -> list[bytes]:
    return [line for line in _lines() if not _OURS.search(line)]


def ours() -> list[bytes]:
    return [line for line in _lines() if _OURS.search(line)]


def _lines() -> list[bytes]:
    programs = ("iptables-legacy-save", "ip6tables-legacy-save")
    saves = [subprocess.run([program], capture_output=True, check=True).stdout for program in programs]  # noqa: S603  ours
    return [line for save in saves for line in save.splitlines() if not line.startswith(b"#")]


def test_the_backend_leaves_them_byte_for_byte(backend: LegacyBackend) -> None:
    before = theirs()
    assert sum(b"\xff" in line for line in before) == 2 * 3 * (2 * 3 + 3)
    assert backend.preview(EVERYTHING).changed
    assert backend.apply(EVERYTHING, full=True).mended == EVERYTHING.exposures
    assert theirs() == before
    assert not backend.preview(EVERYTHING).changed
    assert not backend.apply(EVERYTHING, full=True).changed
    assert backend.apply(replace(ALL, forwards=frozenset({WEB})), full=False).changed
    assert theirs() == before
    assert backend.remove().changed
    assert theirs() == before
    assert not ours()


def test_gates_are_opened_and_closed_beside_them(clients: dict[Family, HelperClient]) -> None:
    before, gates = theirs(), LegacyGates(clients)
    assert len(gates.preview(frozenset(Family), LABEL, BEHIND).gates) == 2
    assert [change.fault for change in gates.apply(frozenset(Family), LABEL, BEHIND, full=True).gates] == [
        GateFault.ABSENT,
        GateFault.ABSENT,
    ]
    assert not gates.apply(frozenset(Family), LABEL, BEHIND, full=True).changed
    assert theirs() == before
    assert gates.remove().changed
    assert theirs() == before


@pytest.mark.parametrize("family", Family)
def test_connections_are_counted_beside_them(backend: LegacyBackend, family: Family) -> None:
    backend.apply(EVERYTHING, full=True)
    counted = dict(packets(family, TableName.NAT))
    word = "ip" if family is Family.IPV4 else "ip6"
    assert {counter for counter in counting_rules(EVERYTHING) if counter[0].split()[0] == word} <= counted.keys()
    assert chain_names(family, TableName.FILTER) == {
        "c\ufffd",
        "KVMPF_\ufffd",
        "KVMPF_ADMIN",
        "KVMPF_FWD2",
        "KVMPF_FWD",
        LIMITS,
    }


@pytest.mark.parametrize(
    ("family", "table", "hook", "jump"),
    [
        (Family.IPV4, "filter", "INPUT", "-j KVMPF_FWD"),
        (Family.IPV6, "filter", "KVMPF_ADMIN", "-g KVMPF_FWD"),
        (Family.IPV4, "mangle", "INPUT", "-g KVMPF_FWD"),
        (Family.IPV6, "nat", "KVMPF_ADMIN", "-j KVMPF_PRE"),
        (Family.IPV4, "nat", "OUTPUT", "-j KVMPF_PRE"),
        (Family.IPV6, "filter", "FORWARD", "-j KVMPF_FWD -i eth9"),
        (Family.IPV4, "nat", "OUTPUT", "-j KVMPF_OUT"),
    ],
)
def test_a_chain_that_others_lead_to_is_emptied_and_left(
    backend: LegacyBackend, family: Family, table: str, hook: str, jump: str
) -> None:
    backend.apply(EVERYTHING, full=True)
    rule, chain = ("-m", "comment", "--comment", "hanging", *jump.split()), jump.split()[1]
    iptables("-t", table, "-A", hook, *rule, family=family)
    iptables("-t", "nat", "-F", "KVMPF_PRE")
    before, hanging = theirs(), [line for line in _lines() if b"hanging" in line]
    assert backend.apply(EVERYTHING, full=False).damaged
    # What needs no table mangle empties its chains.
    backend.apply(ALL, full=False)
    result = backend.remove()
    (fault,) = sentences.faults(result)
    assert f"the chain {chain} in the iptables-legacy table {table} of IPv{family} is empty now, but stays" in fault
    assert backend.preview(Desired()).faults == backend.remove().faults == result.faults
    assert (theirs(), ours()) == (before, [f":{chain} - [0:0]".encode(), *hanging])
    iptables("-t", table, "-D", hook, *rule, family=family)
    assert not backend.remove().faults
    assert (theirs(), ours()) == (before, [])


def test_the_chain_of_an_entrys_limits_is_found_again_where_all_of_ours_were_emptied(backend: LegacyBackend) -> None:
    """With no rule left in it, nor one that leads there, it could be one of others."""
    limited = replace(WEB, admission=Admission(rate=Rate(3, "hour"), entry="00"))
    state, chain = replace(ALL, forwards=frozenset({limited})), limits_chain(limited)
    before = theirs()
    backend.apply(state, full=True)
    held = _lines()
    assert any(chain.encode() in line for line in held)
    for name in {*OWN_CHAINS, chain} & chain_names(Family.IPV4, TableName.MANGLE):
        iptables("-t", "mangle", "-F", name)
    assert backend.apply(state, full=True).damaged == {limited}
    assert _lines() == held
    backend.remove()
    assert (theirs(), ours()) == (before, [])
