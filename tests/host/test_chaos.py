"""A short piece of the chaos test, the same each time, on a host of each rule system.

`sudo scripts/chaos` goes on for as long as one likes, on every kind of host.
"""

import pytest

from tests.chaos import run
from tests.chaos.actions import SHORTAGES, Action
from tests.lab.release import DEBIAN12_LEGACY, DEBIAN13_NFTABLES, Flavour

# A configuration that is to be confirmed stays or goes, also where the daemon is killed. Who may connect is known again
# after a kill and a wipe; connections carry another label for a moment. Something is open for a while through every
# shortage, with something to do meanwhile, and each way to end the daemon. In the end, time runs out while no daemon is
# there.
_EVERYTHING = """\
reload lapsed steady steady6 steady-nat steady-rate steady-open steady-automatic a-learned c-nat
open
metadata a allowed
reload killed steady steady6 steady-nat steady-rate steady-open steady-automatic b-ipv6 d-name
reload confirmed steady steady6 steady-nat steady-rate steady-open steady-automatic a-learned b-before-a c-range d-uuid
set-file crowd
ban 203.0.113.9
daemon-kill
rules nft-delete-table 1
daemon-start
relabel
unban all
set-file broken
rules policy-drop-iptables-nft 1
set-file empty
take journal
take run
take var
take connections
take elements
configuration steady steady6 steady-nat steady-rate steady-open steady-automatic a-learned b-configured d-name
give-back journal
give-back run
give-back var
give-back connections
give-back elements
take threads
take descriptors
configuration steady steady6 steady-nat steady-rate steady-open steady-automatic a-learned b-configured c-nat
stop b
give-back threads
give-back descriptors
take lock
take nft-time
start b
give-back lock
give-back nft-time
take nft
stop a
give-back nft
daemon-stop
flush
daemon-start
daemon-remove
daemon-start
start a
close
open-briefly killed
daemon-start"""
# The same with those shortages alone that meet another rule system in another way.
_OF_RULES = """\
reload lapsed steady steady6 steady-nat steady-rate steady-open steady-automatic a-learned c-nat
open
reload killed steady steady6 steady-nat steady-rate steady-open steady-automatic b-ipv6 d-name
reload confirmed steady steady6 steady-nat steady-rate steady-open steady-automatic a-learned b-before-a c-range d-uuid
set-file crowd
ban 203.0.113.9
daemon-kill
rules ipset-destroy 1
daemon-start
rules ipset-flush 1
relabel
unban all
set-file broken
set-file empty
take connections
configuration steady steady6 steady-nat steady-rate steady-open steady-automatic a-learned b-configured c-nat
take journal
take run
take elements
give-back run
stop b
give-back connections
give-back journal
give-back elements
take threads
start b
give-back threads
stop b
take lock
start b
give-back lock
take nft
stop a
give-back nft
daemon-stop
flush
daemon-start
daemon-remove
daemon-start
start a
close
open-briefly stopped
daemon-start"""
_ROUNDS, _SEED = 3, 7


@pytest.mark.parametrize(
    ("flavour", "actions", "shortages"),
    [
        pytest.param(DEBIAN13_NFTABLES, _EVERYTHING, SHORTAGES, id="nftables"),
        pytest.param(
            DEBIAN12_LEGACY,
            _OF_RULES,
            ("connections", "journal", "run", "elements", "threads", "lock", "nft"),
            id="legacy",
        ),
    ],
)
def test_whatever_goes_wrong_is_right_again_and_nothing_else_notices(
    lab: None, flavour: Flavour, actions: str, shortages: tuple[str, ...]
) -> None:
    del lab
    said: list[str] = []
    first = [Action.parse(line) for line in actions.splitlines()]
    result = run.drawn(flavour, _ROUNDS, _SEED, said.append, first=first)
    played = "\n".join(map(str, result.played))
    assert not result.failure, f"{result.failure}\nactions:\n{played}"
    assert result.played[: len(first)] == first
    assert {action.words[0] for action in first if action.kind == "take"} == set(shortages)
    assert result.figures.rounds == len(first) + _ROUNDS
    assert result.figures.probes > _ROUNDS
    assert result.figures.tries > result.figures.rounds
    assert result.figures.datagrams > _ROUNDS
