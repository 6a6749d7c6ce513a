from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from fwdaemon.core.exposures import Owner
from fwdaemon.core.inventory import Move
from fwdaemon.core.report import Reason, ReasonKind
from fwdaemon.core.state import Desired, Waiting
from fwdaemon.core.types import Origin
from fwdaemon.resolve.snapshot import Grace, Stop
from tests.unit import saying
from tests.unit.forwards import forward

WEB = forward("tcp *:80", "192.168.122.50:80")
LINK = Reason(ReasonKind.LEASES, "virbr0")
STOP = Reason(ReasonKind.DOMAIN, "web1", "stopped")
ORIGIN = Origin(Path("portfwd.toml"), 1)
DOWN = Waiting(Owner("web1"), saying.STOPPED, ORIGIN, stopped=True)
STOPPED = Desired(waiting=(replace(DOWN, returning=True),))
ENDED = Desired(waiting=(DOWN,))
HANDED_OVER = Desired(waiting=(Waiting(Owner("web1"), saying.HANDED_OVER, ORIGIN, stopped=True, move=Move.AWAY),))
UNPLUGGED = Desired(waiting=(Waiting(Owner("web1"), saying.NO_ADDRESS, ORIGIN),))


def test_a_forward_outlives_its_domain_by_the_grace() -> None:
    grace = Grace(1.0)
    assert grace.extend(STOPPED, {WEB}, (), Stop(10.0, (LINK,))).forwards == {WEB}
    assert grace.ends == 11.0
    assert grace.extend(STOPPED, {WEB}, (), Stop(10.9, (STOP,))).forwards == {WEB}
    assert grace.extend(STOPPED, {WEB}, (), Stop(11.0, ())).forwards == set()
    assert grace.reasons(WEB, ()) == (LINK, STOP)


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


def test_no_grace_when_the_domain_ended_as_no_reboot_does() -> None:
    assert Grace(1.0).extend(ENDED, {WEB}, (), Stop(10.0, ())).forwards == set()


def test_no_grace_when_another_host_has_the_domain() -> None:
    assert Grace(1.0).extend(HANDED_OVER, {WEB}, (), Stop(10.0, ())).forwards == set()
