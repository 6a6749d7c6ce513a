"""A short piece of the chaos test, the same each time; `sudo scripts/chaos` goes on for as long as one likes."""

import pytest

from tests.chaos import run
from tests.lab.release import DEBIAN12_IPTABLES, DEBIAN12_LEGACY, DEBIAN13_NFTABLES, Flavour

_ROUNDS, _SEED = 12, 7


@pytest.mark.parametrize("flavour", [DEBIAN12_IPTABLES, DEBIAN13_NFTABLES, DEBIAN12_LEGACY], ids=str)
def test_whatever_goes_wrong_is_right_again_and_nothing_else_notices(lab: None, flavour: Flavour) -> None:
    del lab
    said: list[str] = []
    result = run.drawn(flavour, _ROUNDS, _SEED, said.append)
    played = "\n".join(map(str, result.played))
    assert not result.failure, f"{result.failure}\nactions:\n{played}"
    assert result.figures.rounds == _ROUNDS
    assert result.figures.probes > _ROUNDS
    assert result.figures.datagrams > _ROUNDS
