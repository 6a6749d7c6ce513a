"""Of all that was heard, the reason that helps a reader is told."""

from dataclasses import replace
from pathlib import Path

from fwdaemon import causes
from fwdaemon.config.model import Origin
from fwdaemon.desired import Desired, Owner, Waiting
from tests.unit.forwards import forward

WEB = forward("tcp *:80", "192.168.122.50:80")
LOADED = causes.loaded_again(Path("/etc/portfwd.toml"))
BURST = [f"neighbour 192.0.2.{number} answered from 52:54:00:00:00:01" for number in range(5)]


def test_a_burst_is_cut_short() -> None:
    assert causes.told(BURST) == f"{BURST[0]}; {BURST[1]}; {BURST[2]}; and 2 more"


def test_a_new_configuration_is_not_lost_in_a_burst() -> None:
    assert causes.of_end(WEB, Desired(), [*BURST, LOADED]).startswith(f"{LOADED}; neighbour 192.0.2.0 ")
    assert causes.of_start(WEB, Desired(), [*BURST, LOADED]).startswith(f"{LOADED}; neighbour 192.0.2.0 ")


def test_what_names_the_owner_goes_before_all_else() -> None:
    assert causes.of_end(WEB, Desired(), [LOADED, *BURST, "domain web1 stopped"]) == "domain web1 stopped"


def test_what_the_state_says_goes_before_what_was_heard_of_others() -> None:
    waiting = Waiting(Owner("web1"), "no address yet", Origin(Path("portfwd.toml"), 1))
    assert causes.of_end(WEB, replace(Desired(), waiting=(waiting,)), [LOADED, *BURST]) == "no address yet"


def test_nothing_heard_is_found_at_a_comparison() -> None:
    assert causes.of_loss(WEB, [], causes.AT_A_COMPARISON) == causes.AT_A_COMPARISON
