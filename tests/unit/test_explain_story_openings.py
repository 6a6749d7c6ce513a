"""The walk to 1:1 addresses, routes and the host itself, on hosts made up of plain data."""

from dataclasses import replace

import pytest

from fwdaemon.core.inventory import Network
from fwdaemon.core.types import Family, Listener, Protocol
from fwdaemon.explain.facts import RouteAnswer
from fwdaemon.explain.report import Cause
from tests.unit.explaining import native
from tests.unit.forwards import subnets
from tests.unit.story_scene import DEFAULT, NETWORK, SETTINGS, cause, host, libvirt, ours, told

NAT = '[[nat]]\ndomain = "web"\npublic = "203.0.113.8"\n'
ROUTE = '[[route]]\nnetwork = "default"\naddresses = ["203.0.113.64/29"]\n'


def test_a_public_address_that_has_to_be_routed_here() -> None:
    report = told("203.0.113.8:25", text=NAT, world=host(rules=ours(public="203.0.113.8")))
    assert report.works
    assert "203.0.113.8 has to be routed to this host by the router upstream" in report.sentence


def test_a_route_needs_no_translation() -> None:
    routes = {"203.0.113.66": RouteAnswer("virbr0", subnet=next(iter(subnets("203.0.113.64/29"))))}
    world = host(rules=[], routes=routes)
    report = told("203.0.113.66:25", text=ROUTE, world=world)
    assert report.works
    assert world.asked == []
    report = told("203.0.113.66:25", text=ROUTE, world=host(rules=[], routes={"203.0.113.66": DEFAULT}))
    assert cause(report) is Cause.NOT_LOADED
    assert report.commands == ["kvm-portfwd reload"]


@pytest.mark.parametrize(
    ("networks", "expected", "sentence"),
    [
        ((), Cause.NO_SUCH_NETWORK, "Write a network that libvirt has (none) in /etc/portfwd.toml:"),
        ((replace(NETWORK, active=False),), Cause.NETWORK_NOT_ACTIVE, "`virsh -c qemu:///system net-start default`"),
    ],
)
def test_a_route_needs_its_network(networks: tuple[Network, ...], expected: Cause, sentence: str) -> None:
    report = told("203.0.113.66:25", text=ROUTE, said=libvirt(networks=networks))
    assert cause(report) is expected
    assert sentence in report.sentence


def test_a_process_of_the_host_that_listens_there() -> None:
    sockets = [Listener(Protocol.TCP, frozenset(Family), None, port) for port in (22, 8000)]
    steps = told(world=host(sockets=sockets)).steps
    text = next(step.text for step in steps if step.name == "host socket")
    assert text == "holder of 8000 of this host listens there itself; the forward goes before it"
    report = told("198.51.100.1:22", world=host(sockets=sockets, rules=[native(hook="input")]))
    assert cause(report) is Cause.UNCLAIMED
    assert "input" in {step.name for step in report.steps}


@pytest.mark.parametrize(
    ("hairpin", "through_netfilter", "expected"),
    [(frozenset(), "1", Cause.HAIRPIN_OFF), (frozenset({"vnet0"}), "1", None), (frozenset(), "0", None)],
)
def test_a_guest_that_reaches_itself(hairpin: frozenset[str], through_netfilter: str, expected: Cause | None) -> None:
    settings = SETTINGS | {"net.bridge.bridge-nf-call-iptables": through_netfilter}
    report = told(source="192.168.122.10", world=host(hairpin=hairpin, settings=settings))
    assert cause(report) is expected
