"""A short piece of a run in which domains come and go, which `sudo scripts/robustness` does at full length."""

import pytest

from tests.lab.release import SIDES
from tests.turnover.run import Length, turned_over

_LENGTH = Length(domains=12, a_minute=50, stay=3, thorough=False)


@pytest.mark.parametrize("side", ["nftables", "legacy"])
def test_domains_that_come_and_go_are_reached_at_ports_of_their_own_and_leave_nothing(lab: None, side: str) -> None:
    del lab
    said: list[str] = []
    figures = turned_over(SIDES[side], _LENGTH, said.append).figures
    assert figures.wrong() == [], said
    assert len(figures.stays) == _LENGTH.domains
    assert figures.assigned >= 2 * _LENGTH.domains
