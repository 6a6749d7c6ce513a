"""Gates in the legacy FORWARD chains, and noticing that others changed the tables."""

import asyncio
from pathlib import Path

import pytest

from fwdaemon.core.bans import BEHIND
from fwdaemon.core.report import Actor, ActorKind
from fwdaemon.core.types import Family, GateFault
from fwdaemon.legacy.backend import LegacyBackend
from fwdaemon.legacy.client import HelperClient
from fwdaemon.legacy.gates import LegacyGates, LegacyMonitor
from fwdaemon.legacy.info import chain_names, existing_tables, table_info
from fwdaemon.legacy.model import TableName
from tests.kernel.legacy import foreign, iptables, own, saved
from tests.kernel.test_nftables import ALL


@pytest.fixture
def gates(clients: dict[Family, HelperClient]) -> LegacyGates:
    return LegacyGates(clients)


def test_no_gate_where_there_is_no_legacy_table(gates: LegacyGates) -> None:
    assert not gates.apply(frozenset(Family), 25, BEHIND, full=True).changed
    assert existing_tables(Family.IPV4) == existing_tables(Family.IPV6) == frozenset()


@pytest.mark.parametrize("refusal", ["-A FORWARD -j DROP", "-P FORWARD DROP"])
def test_a_gate_is_opened_where_connections_could_be_refused(gates: LegacyGates, refusal: str) -> None:
    iptables(*refusal.split())
    before = foreign()
    (change,) = gates.apply(frozenset(Family), 25, BEHIND, full=False).gates
    assert (str(change.gate), change.restored) == ("ip filter FORWARD", False)
    assert not gates.apply(frozenset(Family), 25, BEHIND, full=True).changed
    iptables("-I", "FORWARD", "-j", "DROP")
    (change,) = gates.apply(frozenset(Family), 25, BEHIND, full=False).gates
    assert (change.restored, change.fault) == (True, GateFault.BEHIND_RULE)
    rules = [line for line in saved().splitlines() if line.startswith("-A FORWARD")]
    assert rules[0] == '-A FORWARD -m connlabel --label "25" -m comment --comment kvm-portfwd -j ACCEPT'
    gates.apply((), 25, BEHIND, full=False)
    iptables("-D", "FORWARD", "1")
    assert own() == ""
    assert foreign() == before


def test_a_gate_that_matches_twice_is_mended(gates: LegacyGates) -> None:
    iptables("-A", "FORWARD", "-j", "DROP")
    narrowed = "-m connlabel --label 24 -m connlabel --label 25 -m comment --comment kvm-portfwd"
    iptables("-I", "FORWARD", *narrowed.split(), "-j", "ACCEPT")
    (change,) = gates.apply({Family.IPV4}, 25, BEHIND, full=True).gates
    assert change.fault == GateFault.ALTERED
    assert own().splitlines() == ['-A FORWARD -m connlabel --label "25" -m comment --comment kvm-portfwd -j ACCEPT']


def test_a_gate_leaves_the_chains_of_the_backend_alone(backend: LegacyBackend, gates: LegacyGates) -> None:
    iptables("-A", "FORWARD", "-j", "DROP")
    gates.apply({Family.IPV4}, 25, BEHIND, full=True)
    assert backend.apply(ALL, full=True).changed
    assert not gates.apply({Family.IPV4}, 25, BEHIND, full=True).changed
    assert not backend.apply(ALL, full=True).changed
    gates.remove()
    assert not backend.apply(ALL, full=True).changed


# --- noticing --------------------------------------------------------------------------------------------------------


def test_a_table_tells_its_size_and_chains(lock_file: Path) -> None:
    del lock_file
    for family in Family:
        assert chain_names(family, TableName.FILTER) == frozenset()
        iptables("-N", "LIBVIRT_FWX", family=family)
        assert chain_names(family, TableName.FILTER) == {"LIBVIRT_FWX"}
        before = table_info(family, TableName.FILTER)
        iptables("-A", "FORWARD", "-j", "LIBVIRT_FWX", family=family)
        after = table_info(family, TableName.FILTER)
        assert (before.forwards, after.forwards) == (False, True)
        assert after.entries == before.entries + 1


@pytest.mark.parametrize("table", TableName)
@pytest.mark.parametrize("hidden", [False, True], ids=["with the lock", "without the lock"])
def test_a_change_is_noticed(
    lock_file: Path, monkeypatch: pytest.MonkeyPatch, table: TableName, *, hidden: bool
) -> None:
    iptables("-t", table, "-A", "OUTPUT", "-j", "ACCEPT")

    async def notice() -> None:
        heard = asyncio.Event()

        def changed(actor: Actor, *, full: bool) -> None:
            assert (actor, full) == (Actor(ActorKind.LEGACY_TABLES), True)
            heard.set()

        monitor = LegacyMonitor(changed, poll=0.3)
        monitor.start()
        await asyncio.sleep(0.4)
        assert not heard.is_set()
        if hidden:
            monkeypatch.setenv("XTABLES_LOCKFILE", f"{lock_file}.other")
        iptables("-t", table, "-A", "OUTPUT", "-j", "RETURN")
        monkeypatch.setenv("XTABLES_LOCKFILE", str(lock_file))
        await asyncio.wait_for(heard.wait(), 10)
        monitor.close()

    asyncio.run(notice())
