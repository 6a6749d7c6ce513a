"""A short piece of a run of the referee, which `sudo scripts/robustness` does at full length."""

from tests.lab.release import SIDES
from tests.referee.run import refereed


def test_no_two_hosts_have_an_address_whatever_goes_wrong(lab: None) -> None:
    del lab
    said: list[str] = []
    figures = refereed(SIDES["nftables"], 1, seed=32, say=said.append).figures
    assert figures.faults() == [], said
    assert figures.looks > 100
