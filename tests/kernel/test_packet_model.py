"""Random packets: the promise, `explain`'s evaluator and the kernel agree, but not where a fix is taken away."""

import re
from collections.abc import Iterator

import pytest

from tests.packets.drawing import HEAD
from tests.packets.plan import HELD, own_address
from tests.packets.promise import Packet, Place
from tests.packets.run import Round, Side, Stage, entries_of, play, side
from tests.packets.taken_away import THEFTS
from tests.packets.world import World, world
from tests.unit.configurations import accepted, toml

# More of them are played by scripts/robustness. In the fifth, forged sources meet a route that forwarding is on for; in
# the tenth, everything is taken away.
_ROUNDS, _PACKETS = (1, 2, 3, 5, 10), 300
# In one of these rounds a guard that is missing shows, whichever it is. Where it is known in which, that comes first.
_ROUNDS_AT_MOST = 20
_SHOWN_IN = {"impostors": 2, "late label": 4, "no label": 6}

# What has to be seen that should not be, where a guard is missing.
_SIGNS = {
    "strangers": r"first: .*sender='(outside|lan)'.*\n  promised None\n  came to .*where='(outside|lan)'",
    "homes": r"first: .*\n  promised (None|Fate\(where='host').*\n  came to .*Fate\(where='(mail|peer|far|routed)'",
    "links": r"first: .*sender='(?!outside).*source=IPv[46]Address\('(198\.51\.100|2001:db8::)\b.*\n"
    r"  promised (None|Fate\(where='host').*\n  came to .*Fate\(where='(mail|peer|far|routed)'",
    "impostors": r"first: .*sender='(mail|peer|far|routed)'.*\n  promised None\n  came to .*where='outside'",
    "late label": r"first: .*port=25,.*\n  promised None\n  came to .*where='outside'",
    "no label": r"next after the change: .*port=25,.*\n  promised None\n  came to .*where='outside'",
    "uplinks": r"first: .*sender='(mail|peer|far|routed)'.*\n  promised (None|Fate\(where='lan').*\n"
    r"  came to .*where='lan'",
    "ended": r"answer after the change: .*\n  promised None\n  came to .*Fate\(",
}


@pytest.fixture(scope="module")
def machines(lab: None) -> Iterator[World]:
    """The host and all around it."""
    del lab
    with world() as machines:
        yield machines


@pytest.fixture(scope="module", params=[False, True], ids=["nftables", "iptables"])
def on(request: pytest.FixtureRequest, machines: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    """Each rule system."""
    with pytest.MonkeyPatch.context() as patch:
        # Not the machine's own lock.
        patch.setenv("XTABLES_LOCKFILE", str(tmp_path_factory.mktemp("lock") / "xtables.lock"))
        with side(machines, legacy=request.param) as on:
            yield on


@pytest.fixture(autouse=True)
def namespace(on: Side) -> None:
    """Stay where the machines are, in a network namespace already, instead of going to one for each test."""
    del on


@pytest.mark.parametrize("seed", _ROUNDS)
def test_promise_prediction_and_kernel_agree(on: Side, seed: int) -> None:
    result = play(on, seed, _PACKETS)
    assert not result.differences, f"{entries_of(seed)}\n" + "\n".join(result.differences[:5])
    assert result.delivered > result.packets // 2
    assert result.unsure < result.packets // 5


@pytest.mark.parametrize("guard", THEFTS)
def test_a_guard_that_is_taken_away_is_missed(on: Side, guard: str) -> None:
    seeds = sorted(range(1, _ROUNDS_AT_MOST), key=lambda seed: seed != _SHOWN_IN.get(guard))
    assert any(_is_seen(guard, on, seed) for seed in seeds)


def _is_seen(guard: str, on: Side, seed: int) -> bool:
    result = play(on, seed, _PACKETS, theft=THEFTS[guard])
    return any(re.match(_SIGNS[guard], difference) for difference in result.differences)


def test_connections_that_nothing_ends_are_seen_to_go_on(on: Side) -> None:
    found = (difference for seed in range(1, _ROUNDS_AT_MOST) for difference in _without_sweeping(on, seed))
    assert next(found).startswith("answer after the change")


def _without_sweeping(on: Side, seed: int) -> list[str]:
    return play(on, seed, _PACKETS, sweeping=False).differences


@pytest.mark.parametrize("version", [4, 6])
def test_what_was_ended_does_not_come_back_through_another_exposure(on: Side, version: int) -> None:
    """The client is a 1:1 guest, so its answers are for its public address, and the host is who they come from."""
    public = "198.51.100.8" if version == 4 else "2001:db8::8"
    nat, forward = toml("nat", domain="far", public=public), toml("forward", domain="mail", ports=["53/udp"])
    (source,) = (address for address in HELD["far"] if address.version == version)
    asked = Packet(0, "far", "far", source, 39000, own_address("virbr1", version), 53, "udp")
    result = Round(on, (_stage(nat, forward), _stage(nat)), [asked]).play()
    assert not result.differences, "\n".join(result.differences)
    assert result.ended == 1


def _stage(*entries: str) -> Stage:
    config, taken = accepted(list(entries), HEAD)
    assert taken == list(entries)
    return Stage(Place(config), taken)
