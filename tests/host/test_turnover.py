"""A short piece of a run in which domains come and go, which `sudo scripts/robustness` does at full length."""

import pytest

from tests.lab.release import SIDES
from tests.turnover.run import Length, turned_over

_A_MINUTE, _STAY_S = 50, 2


@pytest.mark.parametrize(("side", "domains"), [("nftables", 12), ("legacy", 5)])
def test_domains_that_come_and_go_are_reached_at_ports_of_their_own_and_leave_nothing(
    lab: None, side: str, domains: int
) -> None:
    del lab
    said: list[str] = []
    figures = turned_over(SIDES[side], Length(domains, _A_MINUTE, _STAY_S, thorough=False), said.append).figures
    assert figures.wrong() == [], said
    assert len(figures.stays) == domains
    assert figures.assigned >= 2 * domains
