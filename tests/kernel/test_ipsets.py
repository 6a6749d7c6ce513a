"""Sets of sources in iptables-legacy: ours are filled and put right, and those of others come back after a wipe."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from fwdaemon.core.admission import Admission, Element, Rate, SourceSet
from fwdaemon.core.report import Actor, ActorKind, Fault, FaultKind
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, Origin
from fwdaemon.explain.gather import Kernel
from fwdaemon.kernel.external_sets import Externals
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.legacy.backend import LegacyBackend
from fwdaemon.rulesets.evaluation import pass_through
from tests.kernel.legacy import foreign, iptables, own_ipsets
from tests.lab.command import run
from tests.lab.place import PATIENCE
from tests.unit.explaining import AROUND, packet
from tests.unit.forwards import forward

HERE = Origin(Path("/etc/portfwd.toml"), 1)
BANNED = SourceSet("banned", HERE, external=True)
BAD = SourceSet.of("bad", HERE, [ip_network("198.51.100.0/24"), ip_network("192.0.2.7"), ip_network("0.0.0.0/0")])
WEB = replace(forward("tcp *:80", "192.168.122.50:80"), admission=Admission(denied=("bad",)))
SIX = forward("tcp *:80", "[2001:db8:122::50]:80")
STATE = replace(Desired().having([WEB, SIX]), sets=(BANNED, BAD), barred=Admission(denied=("banned",)))
PLACE = Family.IPV4, "banned"

Another = Callable[..., LegacyBackend]


@pytest.fixture
def another(lock_file: Path) -> Iterator[Another]:
    """Begin runs of the daemon, each with what it remembers of sets."""
    del lock_file
    with ExitStack() as stack:

        def begun(externals: Externals | None = None) -> LegacyBackend:
            backend = LegacyBackend(externals=externals)
            stack.callback(backend.close)
            return backend

        yield begun


def ban(*words: str, name: str = "KVMPF_banned_4") -> None:
    run(["ipset", "add", name, *words])


def held(name: str = "KVMPF_banned_4") -> dict[str, int]:
    """Give what is in a set, each with what is left of its time; 0 is for ever."""
    lines = [line.split() for line in run(["ipset", "save", name]).stdout.splitlines()]
    return {words[2]: int([*words, "timeout", "0"][4]) for words in lines if words[0] == "add"}


def wipe() -> None:
    """Take away all rules and sets there are."""
    for family in Family:
        for action in ("-F", "-X"):
            iptables("-t", "mangle", action, family=family)
            iptables("-t", "nat", action, family=family)
    run(["ipset", "destroy"])


def their_rules() -> list[str]:
    return [line for line in foreign().splitlines() if line.startswith("-A")]


def element(text: str) -> Element:
    return Element(int(ip_address(text)), int(ip_address(text)))


def test_what_is_in_sets_of_our_own_is_put_right(another: Another) -> None:
    backend = another()
    backend.apply(STATE, full=True)
    right = {"198.51.100.0/24": 0, "192.0.2.7": 0, "0.0.0.0/1": 0, "128.0.0.0/1": 0}
    assert held("KVMPF_bad_4") == right
    assert held("KVMPF_bad_6") == {}
    for damage in (["flush", "KVMPF_bad_4"], ["del", "KVMPF_bad_4", "192.0.2.7"]):
        run(["ipset", *damage])
        result = backend.apply(STATE, full=False)
        assert (set(result.damaged), result.changed) == ({WEB}, True)
        assert held("KVMPF_bad_4") == right
    run(["ipset", "del", "KVMPF_bad_4", "192.0.2.7"])
    run(["ipset", "add", "KVMPF_bad_4", "192.0.2.8"])
    assert backend.apply(STATE, full=True).changed
    assert held("KVMPF_bad_4") == right
    assert not backend.apply(STATE, full=True).changed


def test_a_set_changes_and_rules_stay_as_they_are(another: Another) -> None:
    backend = another()
    backend.apply(STATE, full=True)
    before = run(["iptables-legacy-save", "-c", "-t", "mangle"]).stdout
    other = SourceSet.of("bad", HERE, [ip_network("203.0.113.0/25")])
    result = backend.apply(replace(STATE, sets=(BANNED, other)), full=False)
    assert (held("KVMPF_bad_4"), result.damaged) == ({"203.0.113.0/25": 0}, frozenset())
    assert run(["iptables-legacy-save", "-c", "-t", "mangle"]).stdout.splitlines()[1:-1] == before.splitlines()[1:-1]


def test_a_large_set_is_filled_and_grows(another: Another) -> None:
    backend = another()
    for number in 20_000, 50_000:
        networks = {(Family.IPV4, 32): {f"11.{item >> 8 & 255}.{item & 255}.1": None for item in range(number)}}
        state = replace(STATE, sets=(BANNED, SourceSet("bad", HERE, parts=networks)))
        backend.apply(state, full=True)
        assert len(held("KVMPF_bad_4")) == number
        assert not backend.apply(state, full=True).changed


def test_what_is_no_set_of_networks_is_replaced(another: Another) -> None:
    run(["ipset", "create", "KVMPF_bad_4", "bitmap:port", "range", "1-9"])
    run(["ipset", "create", "KVMPF_banned_4", "hash:ip,port"])
    ban("203.0.113.9,tcp:80")
    externals = Externals()
    externals.remember({PLACE: {element("203.0.113.7"): None}})
    another(externals).apply(STATE, full=True)
    assert "192.0.2.7" in held("KVMPF_bad_4")
    assert held() == {"203.0.113.7": 0}


def test_elements_of_others_survive_what_we_change_and_a_new_run(another: Another) -> None:
    backend = another()
    backend.apply(STATE, full=True)
    ban("203.0.113.9", "timeout", "3600")
    ban("198.51.100.0/24")
    ban("2001:db8:9::/48", name="KVMPF_banned_6")
    more = STATE.having([forward("tcp *:443", "192.168.122.50:443")])
    assert backend.apply(more, full=False).changed
    assert not another().apply(more, full=True).changed
    another().apply(replace(more, label=26), full=True)
    assert held().keys() == {"203.0.113.9", "198.51.100.0/24"}
    assert 3500 < held()["203.0.113.9"] <= 3600
    assert held("KVMPF_banned_6") == {"2001:db8:9::/48": 0}


def test_elements_of_others_are_known_and_come_back_after_a_wipe(another: Another) -> None:
    externals = Externals()
    backend = another(externals)
    backend.apply(STATE, full=True)
    ban("203.0.113.9", "timeout", "3600")
    ban("192.0.2.8/29")
    backend.apply(STATE, full=False)
    ranges = externals.ranges()[PLACE]
    assert [ranges.holds(ip_address(f"192.0.2.{number}")) for number in (7, 8, 15, 16)] == [False, True, True, False]
    for damage in (wipe, lambda: run(["ipset", "flush"])):
        damage()
        assert backend.apply(STATE, full=False).damaged == STATE.exposures
        assert held().keys() == {"203.0.113.9", "192.0.2.8/29"}
        assert 3500 < held()["203.0.113.9"] <= 3600
        assert not backend.apply(STATE, full=True).changed


def test_a_change_of_a_set_is_noticed_and_is_no_reason_for_a_full_look(another: Another) -> None:
    backend = another()
    backend.apply(STATE, full=True)

    async def notice() -> bool:
        heard: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def changed(actor: Actor, *, full: bool) -> None:
            assert actor == Actor(ActorKind.LEGACY_TABLES)
            heard.set_result(full)

        monitor = backend.monitor(changed)
        monitor.start()
        ban("203.0.113.9")
        try:
            return await asyncio.wait_for(heard, PATIENCE)
        finally:
            monitor.close()

    assert not asyncio.run(notice())


def test_who_empties_a_set_of_his_own_means_it(another: Another) -> None:
    backend = another(Externals())
    backend.apply(STATE, full=True)
    ban("203.0.113.9")
    backend.apply(STATE, full=False)
    run(["ipset", "flush", "KVMPF_banned_4"])
    backend.apply(STATE, full=False)
    wipe()
    backend.apply(STATE, full=False)
    assert not held()


def test_what_an_earlier_run_wrote_down_comes_back_where_the_set_is_gone_and_nowhere_else(another: Another) -> None:
    for is_there in (True, False):
        externals = Externals()
        externals.remember({PLACE: {element("192.0.2.7"): None}})
        if is_there:
            another().apply(STATE, full=True)
            ban("203.0.113.9")
        another(externals).apply(STATE, full=True)
        assert held().keys() == {"203.0.113.9" if is_there else "192.0.2.7"}
        wipe()


def test_sets_and_rules_of_others_stay_and_ours_go_in_the_end(another: Another) -> None:
    for name in ("theirs", "KVMPF", "KVMPF_banned_5", "xKVMPF_bad_4"):
        run(["ipset", "create", name, "hash:ip"])
        run(["ipset", "add", name, "192.0.2.1"])
    iptables("-A", "INPUT", "-m", "set", "--match-set", "theirs", "src", "-j", "DROP")
    theirs, sets = their_rules(), run(["ipset", "save"]).stdout
    backend = another()
    backend.apply(STATE, full=True)
    backend.apply(replace(STATE, sets=(BANNED,), forwards=frozenset({SIX})), full=False)
    assert not any("KVMPF_bad_" in line for line in own_ipsets())
    backend.remove()
    assert (their_rules(), run(["ipset", "save"]).stdout) == (theirs, sets)


def test_a_set_that_others_look_at_stays_in_the_end(another: Another) -> None:
    backend = another()
    backend.apply(STATE, full=True)
    iptables("-A", "INPUT", "-m", "set", "--match-set", "KVMPF_banned_4", "src", "-j", "DROP")
    assert not backend.remove().faults
    assert own_ipsets() == ["create KVMPF_banned_4 hash:net"]


def test_without_ipset_what_needs_it_stays_closed_and_the_rest_is_served(
    another: Another, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    backend = another()
    result = backend.apply(replace(STATE, barred=None), full=True)
    assert (set(result.mended), result.faults) == ({SIX}, (Fault(FaultKind.NO_IPSET, ("set:…",)),))
    assert [exposure for exposure, _ in result.refused] == [WEB]
    monkeypatch.undo()
    result = another().apply(replace(STATE, barred=None), full=True)
    assert (set(result.mended), result.faults) == ({WEB}, ())


def test_the_evaluator_of_explain_reads_sets(another: Another) -> None:
    asked = Admission(denied=("bad",), rate=Rate(3, "minute"), max_open=4)
    bad = SourceSet.of("bad", HERE, [ip_network("198.51.100.0/24")])
    another().apply(replace(STATE, forwards=frozenset({replace(WEB, admission=asked)}), sets=(BANNED, bad)), full=True)
    ban("203.0.113.9")
    chains = [chain for chain in Kernel(SystemRunner()).chains() if (chain.family, chain.table) == ("ip", "mangle")]
    (chain,) = [chain for chain in chains if chain.name == "PREROUTING"]
    for source, is_let_in in (("203.0.113.9", False), ("198.51.100.7", False), ("192.0.2.1", True)):
        assert bool(pass_through(chain, [packet(source=ip_address(source))], AROUND).packets) is is_let_in
