"""A short piece of a run of the referee, which `sudo scripts/robustness` does at full length."""

from tests.lab.release import SIDES
from tests.referee.figures import ELSEWHERE
from tests.referee.run import Length, refereed


def test_no_two_hosts_have_an_address_and_another_one_takes_over(lab: None) -> None:
    """The guest that is started elsewhere: one that migrates would cost an emulated processor."""
    del lab
    said: list[str] = []
    length = Length(1, only="daemon killed", phases=(ELSEWHERE,))
    figures = refereed(SIDES["nftables"], length, seed=32, say=said.append).figures
    assert figures.faults() == [], said
    assert figures.looks > 100
    taken = figures.rounds[0].taken
    assert taken is not None
    # A lease is 15 s, renewed up to 3 s before that; the rest is the guest's start on a busy machine.
    assert taken > 11
