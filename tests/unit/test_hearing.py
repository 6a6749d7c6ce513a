from fwdaemon.hearing import Hearing


def test_a_reason_counts_once_an_inventory_was_taken_after_it() -> None:
    hearing = Hearing()
    hearing.inventory_changed("domain web1 started")
    hearing.rules_changed("nft, pid 812", thorough=False)
    assert hearing.take().reasons == ()
    covered = hearing.begin_inventory()
    hearing.inventory_changed("domain web2 started")
    hearing.end_inventory(covered)
    assert hearing.take().reasons == ("domain web1 started",)
    assert hearing.wants_inventory


def test_meddlers_are_named_once_each_and_a_crowd_is_counted() -> None:
    hearing = Hearing()
    for pid in (1, 2, 2, 3, 4, 5):
        hearing.rules_changed(f"nft, pid {pid}", thorough=False)
    assert hearing.take().meddler == "changed by nft, pid 1; nft, pid 2; nft, pid 3; and 2 more"
    assert hearing.take().meddler == "found at a regular comparison"


def test_lost_messages_ask_for_a_thorough_look() -> None:
    hearing = Hearing()
    hearing.rules_changed("somebody", thorough=True)
    assert hearing.take().thorough
    assert not hearing.take().thorough


def test_a_new_configuration_asks_for_a_look_now_and_for_an_inventory() -> None:
    hearing = Hearing()
    hearing.end_inventory(hearing.begin_inventory())
    hearing.take()
    hearing.configuration_changed("loaded again")
    assert hearing.wants_look
    assert hearing.wants_inventory
    assert hearing.take().reasons == ("loaded again",)
