"""The walk to 1:1 addresses, routes and the host itself, on hosts made up of plain data."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from fwdaemon.core.inventory import HostAddress, Network
from fwdaemon.core.types import Family, Listener, Protocol
from fwdaemon.explain.report import Cause, Report, RouteAnswer, Step, StepState
from tests.unit.explaining import native, own
from tests.unit.forwards import subnets
from tests.unit.trace_scene import DEFAULT, FORWARD, HELD, NETWORK, SETTINGS, cause, host, libvirt, ours, told

NAT = '[[nat]]\ndomain = "web"\npublic = "203.0.113.8"\n'
SUBNET = {"prefix": {"addr": "203.0.113.64", "len": 29}}
ROUTE = '[[route]]\nnetwork = "default"\naddresses = ["203.0.113.64/29"]\n'


def test_a_public_address_that_has_to_be_routed_here() -> None:
    report = told("203.0.113.8:25", text=NAT, world=host(rules=ours(public="203.0.113.8")))
    assert report.works
    assert "203.0.113.8 has to be routed to this host by the router upstream" in report.sentence


LINKS = (
    own("10.147.17.1/24", "zt0"),
    own("172.17.0.1/16", "docker0"),
    own("10.8.0.1/32", "p2p"),
    own("fe80::1/64", "zt1"),
)


def ways_out(report: Report) -> list[Step]:
    return [step for step in report.steps if step.name == "ways out"]


def beside_links(*, uplinks: str = "", source: str | None = None, more: Sequence[HostAddress] = ()) -> Report:
    """Ask for a public address on a host that has eth0 as uplink, and other links."""
    held = (*HELD, own("203.0.113.8/32", "eth0"), *LINKS, *more)
    settings = SETTINGS | {"net.ipv4.conf.zt0.forwarding": "1"}
    world = host(held=held, settings=settings, inner=frozenset({"docker0"}), rules=ours(public="203.0.113.8"))
    said = libvirt()
    assert said.inventory is not None
    said = replace(said, inventory=replace(said.inventory, uplinks=frozenset({"eth0"})))
    return told("203.0.113.8:25", source, text=f"{uplinks}{NAT}", said=said, world=world)


def test_a_link_that_is_no_uplink_is_told_with_what_would_make_it_one() -> None:
    report = beside_links()
    (step,) = ways_out(report)
    assert step.state is StepState.FINE
    assert step.text == (
        "zt0 (10.147.17.0/24) is no uplink: what guests open to it leaves under another address, by libvirt's"
        " masquerade, or not at all; where it leads out, write uplinks = ["
        '"eth0", "zt0"] under [daemon] in /etc/portfwd.toml'
    )


def test_the_remedy_of_a_link_that_is_no_uplink_makes_it_one() -> None:
    """The key replaces what is found, so the remedy names that too, or what the key names already."""
    for before, after in (("", '"eth0", "zt0"'), ('[daemon]\nuplinks = ["eth1"]\n', '"eth1", "zt0"')):
        report = beside_links(uplinks=before, source="10.147.17.9")
        assert report.works
        assert f"but write uplinks = [{after}] under [daemon] in /etc/portfwd.toml, and run" in report.sentence
        followed = beside_links(uplinks=f"[daemon]\nuplinks = [{after}]\n", source="10.147.17.9")
        assert "zt0" not in " ".join(step.text for step in ways_out(followed))


def test_who_asks_for_no_client_is_told_of_other_links_in_the_last_sentence() -> None:
    assert beside_links().sentence.endswith(
        '; zt0 (10.147.17.0/24) is no uplink: where it leads out, write uplinks = ["eth0", "zt0"] under [daemon] in'
        " /etc/portfwd.toml, and run `kvm-portfwd reload`."
    )
    for report in (beside_links(source="203.0.113.9"), beside_links(uplinks='[daemon]\nuplinks = ["eth0"]\n')):
        assert "uplink" not in report.sentence


def test_what_uplinks_leave_out_on_purpose_is_told_without_a_remedy() -> None:
    (step,) = ways_out(beside_links(uplinks='[daemon]\nuplinks = ["eth0"]\n'))
    assert step.text.startswith("zt0 (10.147.17.0/24) is no uplink")
    assert step.text.endswith("or not at all")


def test_a_client_by_another_way_is_told_of_all_links_in_one_list() -> None:
    (step,) = ways_out(beside_links(source="203.0.113.9", more=[own("10.9.0.1/24", "tap1")]))
    assert step.text.startswith("tap1 (10.9.0.0/24) and zt0 (10.147.17.0/24) are no uplinks: what guests open to them ")
    assert 'uplinks = ["eth0", "tap1", "zt0"]' in step.text


def test_a_link_that_cannot_be_named_is_told_without_a_remedy() -> None:
    (step,) = ways_out(beside_links(more=[own("10.9.0.1/24", 'a"b')]))
    assert step.text.endswith("or not at all")


def test_forwards_have_nothing_to_do_with_uplinks() -> None:
    assert not ways_out(told(world=host(held=(*HELD, *LINKS))))


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
    ("text", "links", "certain"),
    [
        pytest.param(f"{FORWARD}{ROUTE}", (), True, id="behind a bridge, by a route of ours"),
        pytest.param(FORWARD, [("203.0.113.0/24", "br0")], True, id="behind a bridge of the host's"),
        pytest.param(FORWARD, [("203.0.113.0/24", "eth0")], False, id="where the client is"),
        pytest.param(FORWARD, [("203.0.113.0/24", "br0"), ("203.0.113.64/27", "")], False, id="through a gateway"),
        pytest.param(FORWARD, (), False, id="anywhere"),
    ],
)
def test_a_client_outside_is_in_no_subnet_that_lies_elsewhere(
    text: str, links: Sequence[tuple[str, str]], *, certain: bool
) -> None:
    """Rules ask for such sources, ours too."""
    source = {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": SUBNET}
    refusing = native([{"match": source}, {"drop": None}], hook="forward")
    said = libvirt()
    assert said.inventory is not None
    known = frozenset((subnet, link) for text, link in links for subnet in subnets(text))
    said = replace(said, inventory=replace(said.inventory, links=known))
    report = told(text=text, said=said, world=host(rules=[*ours(), refusing]))
    assert report.works
    assert report.sentence.startswith("It works" if certain else "As far as this host can tell")


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
