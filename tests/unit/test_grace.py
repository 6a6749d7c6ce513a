from ipaddress import ip_address
from pathlib import Path

from fwdaemon.config.model import Origin
from fwdaemon.desired import Desired, Owner, Waiting
from fwdaemon.grace import Grace, Stop
from tests.unit.forwards import forward

WEB = forward("tcp *:80", "192.168.122.50:80")
ORIGIN = Origin(Path("portfwd.toml"), 1)
STOPPED = Desired(waiting=(Waiting(Owner("web1"), "the domain is not running", ORIGIN, stopped=True),))
UNPLUGGED = Desired(waiting=(Waiting(Owner("web1"), "no address yet", ORIGIN),))


def test_a_forward_outlives_its_domain_by_the_grace() -> None:
    grace = Grace(1.0)
    assert grace.extend(STOPPED, {WEB}, (), Stop(10.0, ("link went",))).forwards == {WEB}
    assert grace.ends == 11.0
    assert grace.extend(STOPPED, {WEB}, (), Stop(10.9, ("domain web1 stopped",))).forwards == {WEB}
    assert grace.extend(STOPPED, {WEB}, (), Stop(11.0, ())).forwards == set()
    assert grace.reasons(WEB, ()) == ("link went", "domain web1 stopped")


def test_a_domain_that_comes_back_leaves_nothing_to_hold() -> None:
    grace = Grace(1.0)
    grace.extend(STOPPED, {WEB}, (), Stop(10.0, ()))
    back = Desired(forwards=frozenset({WEB}))
    assert grace.extend(back, {WEB}, (), Stop(10.5, ())) is back
    assert grace.ends is None


def test_no_grace_when_another_guest_has_the_address() -> None:
    taken = {ip_address("192.168.122.50")}
    assert Grace(1.0).extend(STOPPED, {WEB}, taken, Stop(10.0, ())).forwards == set()


def test_no_grace_when_the_domain_still_runs() -> None:
    assert Grace(1.0).extend(UNPLUGGED, {WEB}, (), Stop(10.0, ())).forwards == set()
