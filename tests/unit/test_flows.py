from ipaddress import ip_address

import pytest

from fwdaemon.flows import Carriers, Flow, is_claimed, is_outdated
from fwdaemon.model import Protocol
from tests.unit.forwards import forward


def flow(sent_to: str, answered_from: str, *, source: str = "203.0.113.9", protocol: str = "tcp") -> Flow:
    destination, _, port = sent_to.rpartition(":")
    answers, _, answers_port = answered_from.rpartition(":")
    return Flow(
        Protocol(protocol),
        ip_address(source),
        ip_address(destination),
        int(port),
        ip_address(answers),
        int(answers_port),
        ip_address(source),
        12345,
    )


WEB = forward("tcp *:80", "192.168.122.50:8080")
RANGE = forward("tcp 198.51.100.7:100-109", "192.168.122.50:200-209")
FENCED = forward("tcp *:81", "192.168.122.50:81", sources=("203.0.113.0/24",))


@pytest.mark.parametrize(
    ("seen", "outdated"),
    [
        pytest.param(flow("198.51.100.1:80", "192.168.122.50:8080"), False, id="carried on any address"),
        pytest.param(flow("198.51.100.7:103", "192.168.122.50:203"), False, id="carried by a shifted range"),
        pytest.param(flow("198.51.100.7:103", "192.168.122.50:204"), True, id="another port of the same guest"),
        pytest.param(flow("198.51.100.1:103", "192.168.122.50:203"), True, id="another address of the host"),
        pytest.param(flow("198.51.100.1:80", "192.168.122.51:8080"), True, id="another guest"),
        pytest.param(flow("198.51.100.1:80", "192.168.122.50:8080", protocol="udp"), True, id="another protocol"),
        pytest.param(flow("198.51.100.1:81", "192.168.122.50:81"), False, id="from an allowed source"),
        pytest.param(
            flow("198.51.100.1:81", "192.168.122.50:81", source="192.0.2.1"), True, id="from a source not allowed"
        ),
        pytest.param(flow("198.51.100.1:22", "198.51.100.1:22"), False, id="not translated, so not ours to judge"),
    ],
)
def test_a_marked_flow_is_outdated_when_no_live_forward_carries_it(seen: Flow, *, outdated: bool) -> None:
    assert is_outdated(seen, Carriers([WEB, RANGE, FENCED])) is outdated


DNS = forward("udp *:53", "192.168.122.50:53", sources=("203.0.113.0/24",))
LOCAL = {ip_address("198.51.100.1")}


@pytest.mark.parametrize(
    ("seen", "claimed"),
    [
        pytest.param(flow("198.51.100.1:53", "198.51.100.1:53", protocol="udp"), True, id="to the host itself"),
        pytest.param(flow("198.51.100.9:53", "198.51.100.9:53", protocol="udp"), False, id="only passing through"),
        pytest.param(flow("198.51.100.1:54", "198.51.100.1:54", protocol="udp"), False, id="another port"),
        pytest.param(flow("198.51.100.1:53", "198.51.100.1:53"), False, id="tcp ends by itself"),
        pytest.param(flow("198.51.100.1:53", "10.0.0.1:53", protocol="udp"), False, id="somebody else's forward"),
        pytest.param(
            flow("198.51.100.1:53", "198.51.100.1:53", source="192.0.2.1", protocol="udp"), False, id="not admitted"
        ),
    ],
)
def test_a_new_forward_claims_udp_flows_to_the_host_itself(seen: Flow, *, claimed: bool) -> None:
    assert is_claimed(seen, [DNS], LOCAL) is claimed
