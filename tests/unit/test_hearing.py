from fwdaemon.core.report import Actor, ActorKind, Reason, ReasonKind
from fwdaemon.triggers import Heard, Hearing

BY_GUEST = Reason(ReasonKind.NEIGHBOUR, "192.168.122.50", "answered")
FIRST, SECOND = (Reason(ReasonKind.DOMAIN, name, "started") for name in ("web1", "web2"))
LOADED = Reason(ReasonKind.CONFIGURATION, "/etc/portfwd.toml")


def nft(pid: int) -> Actor:
    return Actor(ActorKind.PROGRAM, "nft", pid)


def test_a_reason_counts_once_an_inventory_was_taken_after_it() -> None:
    hearing = Hearing()
    hearing.inventory_changed(FIRST)
    hearing.rules_changed(nft(812), thorough=False)
    assert hearing.take().reasons == ()
    covered = hearing.begin_inventory()
    hearing.inventory_changed(SECOND)
    hearing.end_inventory(covered)
    assert hearing.take().reasons == (FIRST,)
    assert hearing.wants_inventory


def test_actors_are_named_once_each() -> None:
    hearing = Hearing()
    for pid in (1, 2, 2, 3):
        hearing.rules_changed(nft(pid), thorough=False)
    assert hearing.take().actors == (nft(1), nft(2), nft(3))
    assert hearing.take().actors == ()


def test_lost_messages_ask_for_a_thorough_look() -> None:
    hearing = Hearing()
    hearing.rules_changed(Actor(ActorKind.COMMITS_LOST), thorough=True)
    assert hearing.take().thorough
    assert not hearing.take().thorough


def test_a_new_configuration_asks_for_a_look_now_and_for_an_inventory() -> None:
    hearing = Hearing()
    hearing.end_inventory(hearing.begin_inventory())
    hearing.take()
    hearing.configuration_changed(LOADED)
    assert hearing.wants_look
    assert hearing.wants_inventory
    assert hearing.take().reasons == (LOADED,)


def test_what_was_heard_for_a_look_that_failed_is_known_for_the_next_one() -> None:
    hearing = Hearing()
    hearing.rules_changed(nft(1), thorough=True)
    hearing.configuration_changed(LOADED)
    failed = hearing.take()
    hearing.rules_changed(nft(2), thorough=False)
    hearing.take_back(failed)
    heard = hearing.take()
    assert (heard.reasons, heard.actors, heard.thorough) == ((LOADED,), (nft(1), nft(2)), True)


def test_looks_that_fail_for_ever_make_nothing_grow() -> None:
    hearing = Hearing()
    for pid in range(1000):
        hearing.rules_changed(nft(pid), thorough=False)
        hearing.end_inventory({Reason(ReasonKind.NEIGHBOUR, str(pid)): None})
        hearing.take_back(hearing.take())
    heard = hearing.take()
    assert (len(heard.reasons), len(heard.actors)) == (256, 256)


def test_a_look_is_charged_to_guests_where_they_alone_asked_for_it() -> None:
    hearing = Hearing()
    hearing.end_inventory({BY_GUEST: None})
    assert hearing.take().provoked
    hearing.end_inventory({BY_GUEST: None, FIRST: None})
    assert not hearing.take().provoked
    hearing.end_inventory({BY_GUEST: None})
    hearing.rules_changed(nft(1), thorough=False)
    assert not hearing.take().provoked
    hearing.end_inventory({BY_GUEST: None})
    hearing.time_passed(thorough=True)
    assert not hearing.take().provoked
    hearing.end_inventory({BY_GUEST: None})
    assert hearing.take().provoked


def test_a_look_that_follows_from_one_that_guests_provoked_is_charged_to_them_too() -> None:
    hearing = Hearing()
    hearing.time_passed(thorough=True, provoked=True)
    assert hearing.take() == Heard((), (), thorough=True, provoked=True)
    hearing.time_passed(thorough=True)
    failed = hearing.take()
    hearing.time_passed(thorough=False, provoked=True)
    hearing.take_back(failed)
    assert not hearing.take().provoked
