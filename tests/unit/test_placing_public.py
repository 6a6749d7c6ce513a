"""1:1 addresses, routes and localhost: from configuration and inventory to the desired state."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from uuid import UUID

import pytest

from fwdaemon import config as configuration
from fwdaemon.audit import causes
from fwdaemon.core.exposures import Nat, Owner, Route
from fwdaemon.core.inventory import Inventory, Move, Network
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family
from fwdaemon.resolve.placement import desired_state
from tests.unit.test_placing import DEFAULT, host, nic, reasons, web

GUEST = host(web(nic("192.168.122.50", "2001:db8:122::50")))


def placed(text: str, inventory: Inventory = GUEST) -> Desired:
    return desired_state(configuration.parse({Path("portfwd.toml"): text}), inventory)


def nat(more: str = "", public: str = "198.51.100.8") -> str:
    return f'[[nat]]\ndomain = "web"\npublic = "{public}"\n{more}\n'


def route(network: str = "default", more: str = "") -> str:
    return f'[[route]]\nnetwork = "{network}"\naddresses = ["203.0.113.64/29"]\n{more}\n'


@pytest.mark.parametrize(
    ("public", "target"), [("198.51.100.8", "192.168.122.50"), ("2001:db8::8", "2001:db8:122::50")]
)
def test_a_public_address_leads_to_the_guest_s_of_its_family(public: str, target: str) -> None:
    desired = placed(nat('assign = "eth0"', public))
    assert desired.nats == {Nat("web", ip_address(public), ip_address(target), "eth0")}
    assert reasons(desired) == []


@pytest.mark.parametrize(
    ("inventory", "expected"),
    [
        pytest.param(host(), "libvirt knows no such domain", id="unknown"),
        pytest.param(host(web(running=False)), "the domain is not running", id="stopped"),
        pytest.param(host(web(nic())), "no address yet: no lease, agent or neighbour names one", id="no address"),
        pytest.param(host(web(nic("192.168.122.1"))), "192.168.122.1 belongs to the host", id="the gateway's"),
    ],
)
def test_a_public_address_waits_for_its_guest(inventory: Inventory, expected: str) -> None:
    desired = placed(nat(), inventory)
    assert desired.nats == set()
    assert reasons(desired) == [expected]
    assert [waiting.owner for waiting in desired.waiting] == [Owner("web")]


@pytest.mark.parametrize("move", Move)
def test_a_1_1_guest_that_may_run_here_at_any_moment_is_imminent(move: Move) -> None:
    domain = replace(web(nic("192.168.122.50")), running=False, move=move)
    desired = placed(nat() + '[[forward]]\ndomain = "web"\nports = ["80"]\n', host(domain))
    expected = (
        {Nat("web", ip_address("198.51.100.8"), ip_address("192.168.122.50"))} if move is not Move.GONE else set()
    )
    assert desired.imminent == expected
    assert desired.exposures == set()
    assert desired.families == ({4} if expected else set())
    assert len(desired.waiting) == 2


def test_a_guest_whose_address_another_has_is_not_imminent() -> None:
    arriving = replace(web(nic("192.168.122.50")), running=False, move=Move.HERE)
    other = replace(web(nic("192.168.122.50", mac="52:54:00:00:00:02")), name="other", uuid=UUID(int=2))
    assert placed(nat(), host(arriving)).imminent
    assert not placed(nat(), host(arriving, other)).imminent


def test_a_route_leads_to_the_bridge_of_its_network() -> None:
    desired = placed(route(more='proxy = "eth0"'))
    (found,) = desired.routes
    assert (str(found.subnet), found.bridge, found.proxy) == ("203.0.113.64/29", "virbr0", "eth0")
    assert desired.families == {4}


PUBLIC = replace(DEFAULT, subnets=tuple(map(ip_network, ("192.168.122.0/24", "203.0.113.64/28"))))


@pytest.mark.parametrize(
    ("network", "let_out"),
    [
        pytest.param(replace(DEFAULT, forwards=True), False, id="another subnet"),
        pytest.param(replace(PUBLIC, forwards=True), True, id="its own subnet"),
        pytest.param(PUBLIC, False, id="its own subnet, isolated"),
        pytest.param(replace(DEFAULT, forwards=True, unfiltered=True), True, id="open"),
        pytest.param(replace(DEFAULT, own_bridge=False, unfiltered=True), True, id="a bridge of the host"),
    ],
)
def test_what_routed_guests_open_is_let_out_by_libvirt_or_only_by_a_gate(network: Network, *, let_out: bool) -> None:
    (found,) = placed(route(), host(networks=(network,))).routes
    assert found.let_out is let_out


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        pytest.param(None, "libvirt knows no such network", id="unknown"),
        pytest.param(replace(DEFAULT, active=False), "the network is not active", id="inactive"),
        pytest.param(replace(DEFAULT, bridge=None), "the network has no bridge to route to", id="no bridge"),
        pytest.param(
            replace(DEFAULT, bridge='br" accept'), "its bridge has a name that no rule can hold", id="a hostile bridge"
        ),
    ],
)
def test_a_route_waits_for_its_network(network: Network | None, expected: str) -> None:
    desired = placed(route(), host(networks=(network,) if network else ()))
    assert desired.routes == set()
    assert reasons(desired) == [expected]
    assert [waiting.owner for waiting in desired.waiting] == [Owner("default", "network")]


def test_a_network_s_name_is_not_a_domain_s() -> None:
    desired = placed('[[forward]]\ndomain = "default"\nports = ["80"]\n' + route(), host(networks=()))
    assert {waiting.owner.kind for waiting in desired.waiting} == {"domain", "network"}


def test_interfaces_that_lead_away_are_told() -> None:
    inventory = replace(GUEST, uplinks=frozenset({"eth0"}))
    assert placed(nat(), inventory).uplinks == placed(route(), inventory).uplinks == {"eth0"}
    forward = '[[forward]]\ndomain = "web"\nports = ["80"]\ninterface = "eth1"\n'
    assert placed(forward, inventory).ways_in == {"eth0", "eth1"}


def test_the_bridges_that_exposures_lead_to_are_told() -> None:
    desired = placed(nat() + route())
    assert desired.bridges == replace(desired).bridges == {(Family.IPV4, "virbr0")}


def test_the_subnet_of_a_guest_with_a_public_address_takes_part_in_hairpin() -> None:
    assert "192.168.122.0/24" in set(map(str, placed(nat()).guest_subnets))


def test_what_is_held_joins_what_is_wanted() -> None:
    wanted, held = placed(nat()), placed(route())
    both = wanted.having(held.exposures)
    assert both.nats == wanted.nats
    assert both.routes == {Route("default", *next((item.subnet, item.bridge) for item in held.routes))}
    assert both.exposures == wanted.exposures | held.exposures


def test_a_route_leads_to_the_network_of_the_first_uri_though_it_is_not_active() -> None:
    """One of the same name on a later URI is reported, and its guests are reached as before."""
    asleep = replace(DEFAULT, active=False, bridge=None, subnets=(), uuid=UUID(int=1))
    other = replace(DEFAULT, uuid=UUID(int=2), rank=1, forwards=True)
    inventory = replace(host(web(nic("192.168.122.50")), networks=(asleep,)), namesakes=(other,))
    desired = placed('[daemon]\nlibvirt = ["qemu:///system", "xen:///"]\n' + route() + nat(), inventory)
    assert (set(desired.routes), len(desired.nats)) == (set(), 1)
    assert [waiting.owner for waiting in desired.waiting] == [Owner("default", "network")]
    (remark,) = desired.remarks
    assert causes.remark(remark) == (
        "there is another network default on xen:///: entries for this name mean that of the first URI in [daemon]"
        f" libvirt; its UUID is {UUID(int=2)}"
    )
    assert desired.inside == {bridge for _, bridge in desired.homes} == {"virbr0"}
    assert not placed(nat(), inventory).remarks
