from fwdaemon.flapping import Flapped, Flapping
from tests.unit.forwards import forward

WEB = forward("tcp *:80", "192.168.122.50:80")
DB = forward("tcp *:81", "192.168.122.51:81", domain="db")


def test_after_some_lines_changes_are_counted() -> None:
    flapping = Flapping(lines=2, window_s=60)
    assert [flapping.admit(WEB, "restored", "nft", now) for now in (1.0, 2.0, 3.0, 4.0)] == [True, True, False, False]
    assert flapping.admit(DB, "added", "started", 4.0), "another opening has its own account"
    assert flapping.ends == 61.0
    assert flapping.due(60.9) == []
    assert flapping.due(61.0) == [Flapped(WEB, 2, 60.0, "restored", "nft")]
    assert flapping.due(200.0) == []
    assert flapping.admit(WEB, "restored", "nft", 61.0)


def test_what_changes_now_and_then_is_always_told() -> None:
    flapping = Flapping(lines=2, window_s=60)
    for now in range(0, 6000, 40):
        assert flapping.due(now) == []
        assert flapping.admit(WEB, "restored", "nft", now)


def test_it_remembers_nothing_for_ever() -> None:
    flapping = Flapping(lines=2, window_s=60)
    flapping.admit(WEB, "added", "started", 0)
    flapping.due(100)
    assert flapping.due(200) == []
    assert flapping.ends is None
