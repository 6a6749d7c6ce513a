"""Which ports of the loopback addresses lead to which guest."""

import pytest

from fwdaemon.core.exposures import Forward
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, Protocol
from fwdaemon.hostnet.local_relays import Allowance, Endpoint, duties
from tests.unit.forwards import forward

WEB = forward("tcp *:80", "192.168.122.50:8080")
WEB6 = forward("tcp *:80", "[2001:db8:5::50]:8080")
AT_80 = Endpoint(Protocol.TCP, Family.IPV4, 80)


def told(*forwards: Forward, localhost: bool = True) -> dict[str, str]:
    found = duties(Desired(frozenset(forwards), localhost=localhost))
    return {f"{at.protocol} {at.address}:{at.port}": f"{duty.target}:{duty.port}" for at, duty in found.items()}


def test_each_family_answers_on_its_own_loopback_address() -> None:
    assert told(WEB, WEB6) == {"tcp 127.0.0.1:80": "192.168.122.50:8080", "tcp ::1:80": "2001:db8:5::50:8080"}
    assert told(WEB, WEB6, localhost=False) == {}


def test_each_port_of_a_range_leads_to_its_own() -> None:
    assert told(forward("udp *:5000-5001", "192.168.122.50:53-54")) == {
        "udp 127.0.0.1:5000": "192.168.122.50:53",
        "udp 127.0.0.1:5001": "192.168.122.50:54",
    }


@pytest.mark.parametrize(
    "other",
    [
        forward("tcp 198.51.100.7:80", "192.168.122.50:80"),
        forward("tcp *:80", "192.168.122.50:80", interface="eth0"),
        forward("sctp *:80", "192.168.122.50:80"),
        forward("tcp *:80", "192.168.122.50:80", sources=("198.51.100.0/24",)),
    ],
    ids=["one address", "one interface", "SCTP", "other sources"],
)
def test_what_is_not_for_the_host_itself_is_not_answered(other: Forward) -> None:
    assert told(other) == {}


def test_sources_hold_and_go_before_anyone() -> None:
    own = forward("tcp *:80", "192.168.122.51:80", sources=("127.0.0.1/32",))
    duty = duties(Desired(frozenset({WEB, own}), localhost=True))[AT_80]
    assert duty.target == "192.168.122.51"
    assert duty.admits("127.0.0.1")
    assert not duty.admits("198.51.100.1")
    assert duties(Desired(frozenset({WEB}), localhost=True))[AT_80].admits("198.51.100.1")


def test_no_more_are_open_than_may_be() -> None:
    allowance = Allowance(1)
    assert allowance.take()
    assert not allowance.take()
    allowance.give_back()
    assert allowance.take()
