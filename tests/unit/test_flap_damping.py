from fwdaemon.audit.throttle import FlapDamping, Flapped
from fwdaemon.core.report import GateChange, Setting
from fwdaemon.core.types import Gate, GateFault
from tests.unit.forwards import forward
from tests.unit.saying import because

WEB = forward("tcp *:80", "192.168.122.50:80")
NFT, STARTED = because("nft"), because("started")
DB = forward("tcp *:81", "192.168.122.51:81", domain="db")


def test_after_some_lines_changes_are_counted() -> None:
    flap_damping = FlapDamping(lines=2, window_s=60)
    assert [flap_damping.admit(WEB, "restored", NFT, now) for now in (1.0, 2.0, 3.0, 4.0)] == [True, True, False, False]
    assert flap_damping.admit(DB, "added", STARTED, 4.0), "another opening has its own account"
    assert flap_damping.ends == 61.0
    assert flap_damping.due(60.9) == []
    assert flap_damping.due(61.0) == [Flapped(WEB, 2, 60.0, "restored", NFT)]
    assert flap_damping.due(200.0) == []
    assert flap_damping.admit(WEB, "restored", NFT, 61.0)


def test_what_changes_now_and_then_is_always_told() -> None:
    flap_damping = FlapDamping(lines=2, window_s=60)
    for now in range(0, 6000, 40):
        assert flap_damping.due(now) == []
        assert flap_damping.admit(WEB, "restored", NFT, now)


def test_it_remembers_nothing_for_ever() -> None:
    flap_damping = FlapDamping(lines=2, window_s=60)
    flap_damping.admit(WEB, "added", STARTED, 0)
    flap_damping.due(100)
    assert flap_damping.due(200) == []
    assert flap_damping.ends is None


def test_a_gate_that_flaps_is_counted_too() -> None:
    flap_damping = FlapDamping(lines=2, window_s=60)
    changes = [
        GateChange(Gate("ip", "filter", "FORWARD"), restored, GateFault.BEHIND_RULE) for restored in (False, True, True)
    ]
    assert [flap_damping.admit(change, change.action, NFT, 1.0) for change in changes] == [True, True, False]
    assert flap_damping.admit(
        GateChange(Gate("ip6", "filter", "FORWARD"), restored=True, fault=GateFault.ABSENT), "restored", NFT, 1.0
    )
    assert flap_damping.due(61.0) == [Flapped(changes[-1], 1, 60.0, "restored", NFT)]


def test_a_setting_that_flaps_is_counted_too() -> None:
    flap_damping = FlapDamping(lines=1, window_s=60)
    forwarding, other = (Setting(name, restored=True) for name in ("net.ipv4.ip_forward = 1", "other"))
    assert [flap_damping.admit(item, "restored", NFT, 1.0) for item in (forwarding, other, forwarding)] == [
        True,
        True,
        False,
    ]
    assert flap_damping.due(61.0) == [Flapped(forwarding, 1, 60.0, "restored", NFT)]
