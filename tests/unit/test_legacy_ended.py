"""What guests are refused for a while after their connections were ended, where the legacy tables hold our rules."""

from dataclasses import replace
from ipaddress import ip_address

from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, Protocol
from fwdaemon.legacy.backend import Ended, to_anywhere
from fwdaemon.legacy.model import FWD, TableName
from fwdaemon.legacy.ruleset import tables
from fwdaemon.resolve.flows import Flow
from tests.unit.forwards import forward

CLIENT, PUBLIC, GUEST = map(ip_address, ("198.51.100.2", "198.51.100.1", "192.168.122.50"))
FLOW = Flow(Protocol.TCP, CLIENT, PUBLIC, 8080, GUEST, 80, CLIENT, 40000)


def many(port: int, number: int = 1000) -> list[Flow]:
    return [replace(FLOW, server_port=port, client_port=client) for client in range(1, number + 1)]


def test_few_are_refused_one_by_one_and_for_a_while() -> None:
    ended = Ended()
    assert ended.add([FLOW], 10)
    assert not ended.add([FLOW], 20)
    assert not ended.forget(19)
    assert list(ended.flows) == [FLOW]
    assert ended.forget(20)
    assert not list(ended.flows)
    assert ended.add([FLOW], 30)


def test_where_many_end_at_one_port_all_that_it_sends_is_refused() -> None:
    ended = Ended()
    assert ended.add([*many(80), *many(81, 3)], 10)
    assert set(ended.flows) == {to_anywhere(many(80)[0]), *many(81, 3)}
    assert not ended.add(many(80, 2000), 20)
    assert ended.forget(10)
    assert list(ended.flows) == [to_anywhere(FLOW)]
    desired = Desired(frozenset({forward("tcp *:8080", "192.168.122.50:80")}))
    rules = tables(desired, ended.flows)[Family.IPV4][TableName.FILTER].chains[FWD]
    refusing = [rule.matches for rule in rules if rule.target.startswith("REJECT")]
    assert refusing == ["-s 192.168.122.50/32 -p tcp -m tcp --sport 80"]
