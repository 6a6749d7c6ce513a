"""Who is asked for on a bridge, and how often."""

from ipaddress import ip_address

from fwdaemon.hostnet.neighbour_proxy import Turns

ONE, OTHER = ip_address("203.0.113.66"), ip_address("2001:db8:1::66")


def test_each_is_asked_for_once_in_a_second() -> None:
    turns = Turns()
    assert [turns.grants(ONE, now) for now in (5.0, 5.5, 6.0, 6.9)] == [True, False, True, False]
    assert turns.grants(OTHER, 6.9)


def test_so_many_are_asked_for_in_a_second_and_no_more() -> None:
    turns = Turns()
    asked = [turns.grants(ip_address("2001:db8::") + number, 5.0 + number / 10_000) for number in range(1000)]
    assert asked == [True] * 50 + [False] * 950
    assert turns.grants(ONE, 6.0)
