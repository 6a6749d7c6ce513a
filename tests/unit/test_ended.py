"""What guests are refused for a while after their connections were ended."""

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address

from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, Protocol
from fwdaemon.legacy.model import FWD, TableName
from fwdaemon.legacy.ruleset import tables
from fwdaemon.resolve.flows import Ended, Flow, to_anywhere
from tests.unit.forwards import forward

CLIENT, PUBLIC, GUEST = map(ip_address, ("198.51.100.2", "198.51.100.1", "192.168.122.50"))
FLOW = Flow(Protocol.TCP, CLIENT, PUBLIC, 8080, GUEST, 80, CLIENT, 40000)


def many(port: int, number: int = 1000) -> list[Flow]:
    return [replace(FLOW, server_port=port, client_port=client) for client in range(1, number + 1)]


def one_at_each(ports: Iterable[int]) -> list[Flow]:
    return [replace(FLOW, server_port=port) for port in ports]


def test_few_are_refused_one_by_one_and_for_a_while() -> None:
    ended = Ended(32, 512)
    assert ended.add([FLOW], 10)
    assert not ended.add([FLOW], 20)
    assert not ended.forget(19)
    assert ended.left(15) == {FLOW: 5}
    assert ended.forget(20)
    assert not list(ended.flows)
    assert ended.add([FLOW], 30)


def test_where_many_end_at_one_port_all_that_it_sends_is_refused() -> None:
    ended = Ended(32, 512)
    assert ended.add([*many(80), *many(81, 3)], 10)
    assert set(ended.flows) == {to_anywhere(many(80)[0]), *many(81, 3)}
    assert not ended.add(many(80, 2000), 20)
    assert ended.forget(10)
    assert list(ended.flows) == [to_anywhere(FLOW)]
    desired = Desired(frozenset({forward("tcp *:8080", "192.168.122.50:80")}))
    rules = tables(desired, ended.flows)[Family.IPV4][TableName.FILTER].chains[FWD]
    refusing = [rule.matches for rule in rules if rule.target.startswith("REJECT")]
    assert refusing == ["-s 192.168.122.50/32 -p tcp -m tcp --sport 80"]


def test_where_many_end_at_many_ports_each_port_is_refused() -> None:
    ended = Ended(32, 100)
    ended.add([flow for port in range(1, 11) for flow in many(port, 30)], 10)
    assert len(ended.flows) <= 100
    assert {flow.server_port for flow in ended.flows} == set(range(1, 11))


def test_of_more_ports_than_it_remembers_the_oldest_are_forgotten() -> None:
    ended = Ended(32, 100)
    ended.add(one_at_each(range(1, 101)), 10)
    ended.add(one_at_each([1]), 20)
    ended.add(one_at_each(range(101, 150)), 20)
    assert {flow.server_port for flow in ended.flows} == {1, *range(51, 150)}
    assert ended.forget(10)
    assert {flow.server_port for flow in ended.flows} >= {1, *range(101, 150)}
