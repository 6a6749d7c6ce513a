"""Connections of a guest that was handed over are left alone until it cannot come back, and are never refused."""

from pathlib import Path

from fwdaemon.connections import Departures
from fwdaemon.core.exposures import Exposure, Owner
from fwdaemon.core.inventory import Move
from fwdaemon.core.state import Desired, Waiting
from fwdaemon.core.types import Origin
from tests.unit.forwards import forward
from tests.unit.saying import HANDED_OVER

WEB = forward("tcp *:80", "192.168.122.50:80")
OTHER = forward("tcp *:81", "192.168.122.51:80", domain="other")
NOTHING: frozenset[Exposure] = frozenset()


def without_web(move: Move | None, *live: Exposure) -> Desired:
    waiting = Waiting(Owner("web1"), HANDED_OVER, Origin(Path("portfwd.toml"), 1), stopped=True, move=move)
    return Desired(forwards=frozenset(item for item in live if item == OTHER), waiting=(waiting,))


def test_what_may_come_back_keeps_its_connections_until_it_cannot() -> None:
    departures = Departures()
    assert not departures.follow(frozenset({WEB}), without_web(Move.AWAY))
    assert departures.with_returning(NOTHING) == {WEB}
    assert departures.follow(NOTHING, without_web(Move.GONE))
    assert departures.with_returning(NOTHING) == NOTHING


def test_what_came_back_loses_nothing() -> None:
    departures = Departures()
    departures.follow(frozenset({WEB}), without_web(Move.AWAY))
    assert not departures.follow(NOTHING, Desired(forwards=frozenset({WEB})))
    assert departures.with_returning(NOTHING) == NOTHING


def test_only_those_of_others_are_refused() -> None:
    departures = Departures()
    assert departures.follow(frozenset({WEB, OTHER}), without_web(Move.GONE))
    assert departures.moved == {WEB.target}


def test_one_that_stopped_ends_at_once_and_is_refused() -> None:
    departures = Departures()
    assert departures.follow(frozenset({WEB}), without_web(None))
    assert departures.moved == NOTHING


def test_an_entry_that_went_meanwhile_ends_its_connections() -> None:
    departures = Departures()
    departures.follow(frozenset({WEB}), without_web(Move.AWAY))
    assert departures.follow(NOTHING, Desired())
