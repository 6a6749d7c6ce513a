"""The cause is the reason that helps a reader, and never what happened to others."""

from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from fwdaemon.audit import causes
from fwdaemon.audit.causes import Known, format_cause
from fwdaemon.core.exposures import Owner, Route
from fwdaemon.core.inventory import Hindrance, HindranceKind, Move, Place
from fwdaemon.core.report import Actor, ActorKind, ApplyResult, Cause, Reason, ReasonKind, ReconcileReport
from fwdaemon.core.state import Desired, Waiting
from fwdaemon.core.types import Origin
from tests.unit import saying
from tests.unit.forwards import forward
from tests.unit.saying import HANDED_OVER, NO_ADDRESS

WEB = replace(forward("tcp *:80", "192.168.122.50:80"), bridge="virbr0")
NET = Route("public", ip_network("203.0.113.64/29"), "virbr1")
LOADED = Reason(ReasonKind.CONFIGURATION, "/etc/portfwd.toml")
ADDRESSES = [Reason(ReasonKind.HOST_ADDRESS, f"192.0.2.{number}", "appeared") for number in range(5)]
STOPPED = Reason(ReasonKind.DOMAIN, "web1", "stopped")
NFT = [Actor(ActorKind.PROGRAM, "nft", pid) for pid in range(1, 6)]
WAITING = Desired(waiting=(Waiting(Owner("web1"), NO_ADDRESS, Origin(Path("portfwd.toml"), 1)),))
DOWN = Desired(waiting=(Waiting(Owner("web1"), saying.STOPPED, Origin(Path("portfwd.toml"), 1), stopped=True),))

OF_OTHERS = [
    Reason(ReasonKind.DOMAIN, "a domain web1 b", "started"),
    Reason(ReasonKind.DOMAIN, "web1 ", "started"),
    Reason(ReasonKind.AGENT, "web12"),
    Reason(ReasonKind.DEVICES, "WEB1"),
    Reason(ReasonKind.NEIGHBOUR, "192.168.122.51", "52:54:00:00:00:01"),
    Reason(ReasonKind.NEIGHBOUR, "192.168.122.5"),
    Reason(ReasonKind.LEASES, "virbr9"),
]
OF_ITSELF = [
    Reason(ReasonKind.DOMAIN, "web1", "started"),
    Reason(ReasonKind.DEVICES, "web1"),
    Reason(ReasonKind.AGENT, "web1", "connected"),
]


def test_a_burst_is_cut_short() -> None:
    first, second, third = (f"host address 192.0.2.{number} appeared" for number in range(3))
    assert format_cause(Cause(tuple(ADDRESSES))) == f"{first}; {second}; {third}; and 2 more"
    assert format_cause(Cause(tuple(NFT))) == "changed by nft, pid 1; nft, pid 2; nft, pid 3; and 2 more"


def test_a_new_configuration_is_not_lost_in_a_burst() -> None:
    for cause in (
        causes.of_end(WEB, Desired(), [*ADDRESSES, LOADED]),
        causes.of_start(WEB, Desired(), [*ADDRESSES, LOADED]),
    ):
        assert format_cause(cause).startswith("configuration /etc/portfwd.toml loaded again; host address 192.0.2.0 ")


def test_what_names_the_owner_goes_before_all_else() -> None:
    assert causes.of_end(WEB, Desired(), [LOADED, *ADDRESSES, STOPPED]) == Cause((STOPPED,))


def test_that_a_guest_stopped_is_said_before_libvirt_says_so() -> None:
    silent = Reason(ReasonKind.NEIGHBOUR, "192.168.122.50")
    again = Reason(ReasonKind.LIBVIRT, "qemu:///system", "answers again")
    assert format_cause(causes.of_end(WEB, DOWN, [silent])) == "domain web1 stopped"
    assert format_cause(causes.of_end(WEB, DOWN, [silent, STOPPED])) == "domain web1 stopped"
    assert causes.of_end(WEB, DOWN, [again]) == Cause((again,))


def test_the_new_address_of_a_guest_is_why_the_old_one_went() -> None:
    answered = Reason(ReasonKind.NEIGHBOUR, "192.168.122.51", "52:54:00:00:00:01")
    new = forward("tcp *:80", "192.168.122.51:80")
    of_another = replace(new, domain="web2")
    for after, cause in ((new, Cause((answered,))), (of_another, Cause())):
        before = ReconcileReport(Desired(forwards=frozenset({WEB})), ApplyResult())
        gone, _added = causes.changes(before, Desired(forwards=frozenset({after})), ApplyResult(), Known((answered,)))
        assert (gone.action, gone.exposure, gone.cause) == ("removed", WEB, cause)


def test_an_address_is_why_a_forward_is_added_where_nothing_else_was_heard() -> None:
    """An inventory may hold the new address before the event about it arrives."""
    old = Reason(ReasonKind.NEIGHBOUR, "192.168.122.52", "52:54:00:00:00:01")
    before = ReconcileReport(Desired(forwards=frozenset({WEB})), ApplyResult())
    moved, wider = forward("tcp *:80", "192.168.122.51:80"), forward("tcp *:81", "192.168.122.50:80")
    for exposure, words in ((moved, "the guest has 192.168.122.51 now"), (wider, "found at a regular comparison")):
        after = Desired(forwards=frozenset({exposure}))
        _, added = causes.changes(before, after, ApplyResult(), causes.Known((old,)))
        assert (added.action, format_cause(added.cause)) == ("added", words)


def test_what_the_state_says_goes_before_what_was_heard_of_others() -> None:
    assert causes.of_end(WEB, WAITING, [LOADED, *ADDRESSES]) == Cause((NO_ADDRESS,))
    assert format_cause(causes.of_start(WEB, DOWN, [LOADED, *ADDRESSES])) == "domain web1 is running now"


def test_that_another_host_has_it_is_told_even_where_nothing_was_heard() -> None:
    origin = Origin(Path("portfwd.toml"), 1)
    waiting = Waiting(Owner("web1"), HANDED_OVER, origin, stopped=True, move=Move.AWAY)
    assert (
        format_cause(causes.of_end(WEB, replace(Desired(), waiting=(waiting,)), []))
        == "it was handed over to another host"
    )


def test_nothing_heard_is_found_at_a_comparison() -> None:
    assert format_cause(causes.of_loss(WEB, [], ())) == "found at a regular comparison"


def test_who_changed_the_rules_goes_before_what_was_heard() -> None:
    assert causes.of_loss(WEB, [STOPPED], (NFT[0],)) == Cause((NFT[0],))


@pytest.mark.parametrize("other", OF_OTHERS)
def test_what_happened_to_others_explains_nothing(other: Reason) -> None:
    """Not even where it is all that was heard, or where its name has the owner's in it."""
    for cause in (
        causes.of_start(WEB, Desired(), [other]),
        causes.of_end(WEB, Desired(), [other]),
        causes.of_loss(WEB, [other], ()),
    ):
        assert cause == Cause()
    assert causes.of_start(WEB, Desired(), [*OF_OTHERS, LOADED]) == Cause((LOADED,))


@pytest.mark.parametrize("own", OF_ITSELF)
def test_what_happened_to_itself_is_told_alone(own: Reason) -> None:
    assert causes.of_start(WEB, Desired(), [LOADED, *OF_OTHERS, own]) == Cause((own,))


def test_what_a_guest_answered_may_explain_its_own_forwards() -> None:
    answered = Reason(ReasonKind.NEIGHBOUR, "192.168.122.50", "52:54:00:00:00:01")
    assert causes.of_start(WEB, Desired(), [*OF_OTHERS, answered]) == Cause((answered,))
    assert causes.of_start(NET, Desired(), [answered]) == Cause()


def test_a_network_is_told_by_its_name() -> None:
    started = Reason(ReasonKind.NETWORK, "public", "started")
    alike = Reason(ReasonKind.DOMAIN, "public", "started")
    assert causes.of_start(NET, Desired(), [alike, LOADED, started]) == Cause((started,))


@pytest.mark.parametrize("kind", ReasonKind)
def test_every_reason_has_words_in_one_line(kind: ReasonKind) -> None:
    assert format_cause(Cause((Reason(kind, "a\nb", "stopped"),))).isprintable()


@pytest.mark.parametrize("kind", HindranceKind)
def test_every_hindrance_has_words_in_one_line(kind: HindranceKind) -> None:
    places = Place("52:54:00:00:00:01", "a\nb"), Place("52:54:00:00:00:02", bridge="c\nd")
    for number in (1, 2) if kind is HindranceKind.SEVERAL_INTERFACES else (1,):
        hindrance = Hindrance(kind, names=("a\nb", "c\nd"), places=places[:number])
        assert causes.why(hindrance).isprintable()
        assert format_cause(Cause((hindrance,))) == causes.why(hindrance)


@pytest.mark.parametrize("kind", ActorKind)
def test_every_actor_has_words_in_one_line(kind: ActorKind) -> None:
    assert format_cause(Cause((Actor(kind, "a\nb", 7, "c\nd"),))).isprintable()
