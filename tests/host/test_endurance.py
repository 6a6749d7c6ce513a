"""A short piece of the long run, which `sudo scripts/robustness` does at full length."""

import pytest

from tests.endurance.figures import MIB
from tests.endurance.run import Length, endured
from tests.lab.release import DEBIAN13_NFTABLES

_LENGTH = Length(events=150, wipes=20, seconds=240)
# The long run wants 2 MiB after a warm-up of a tenth of an hour. Here what is warm at the end was cold before, and the
# allocators of Python and C take memory by the mebibyte. A leak of a listing for each wipe would be more than this.
_GROWN_AT_MOST_MIB = 6


def test_after_many_events_and_wipes_the_daemon_holds_what_it_held(lab: None) -> None:
    del lab
    said: list[str] = []
    figures = endured(DEBIAN13_NFTABLES, _LENGTH, 7, said.append).figures
    assert not figures.failure, figures.failure
    assert not figures.lost
    before, after = figures.rest
    assert after.held == before.held
    assert (after.rss - before.rss) / MIB == pytest.approx(0, abs=_GROWN_AT_MOST_MIB), said
    assert sum(figures.wipes.values()) == _LENGTH.wipes
    assert sum(figures.events.values()) >= _LENGTH.events
    assert figures.opened
    assert figures.closed
