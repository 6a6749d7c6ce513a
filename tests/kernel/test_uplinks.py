"""Which interfaces lead away from the host, and which subnets are on its links, as the real kernel shows them."""

import sys

import pytest

from tests.lab.command import run

_ASK = (
    "import socket; from fwdaemon.kernel.observe import uplinks; print(*sorted(uplinks(dict(socket.if_nameindex()))))"
)
# /sys shows the links of the namespace that mounted it.
_THERE = 'mount -t sysfs none /sys && ip -batch - && exec "$0" -c "$1"'

_LINKS = (
    "link set lo up",
    "link add eth0 type veth peer name away0",
    "link add eth1 type veth peer name away1",
    "tuntap add tun0 mode tun",
    "tuntap add tap0 mode tap",
    "tuntap add vnet0 mode tap",
    "link add virbr0 type bridge",
    "link set vnet0 master virbr0",
    "link add cali0123 type veth peer name inside",
    "link add docker0 type bridge",
    "link add br0 type bridge",
    *(f"link set {name} up" for name in ("eth0", "away0", "eth1", "away1", "tun0", "tap0")),
    *(f"link set {name} up" for name in ("virbr0", "cali0123", "inside", "docker0", "br0")),
    "address add 198.51.100.1/24 dev eth0",
    "address add 198.51.101.1/24 dev eth1",
    "address add 192.168.122.1/24 dev virbr0",
    "address add 172.17.0.1/16 dev docker0",
    "address add 203.0.113.1/24 dev br0",
    "route add 10.244.0.5 dev cali0123",
    "route add fd00::5 dev cali0123",
)


_ASK_LINKS = (
    "from fwdaemon.kernel.observe import observe_host;"
    " print(*sorted(f'{subnet}={name}' for subnet, name in observe_host().links))"
)
_OWN = {"198.51.100.0/24=eth0", "198.51.101.0/24=eth1", "192.168.122.0/24=virbr0", "172.17.0.0/16=docker0"}


def asked(*routes: str, what: str = _ASK) -> list[str]:
    """Ask on a host with these routes besides those of its own subnets."""
    argv = ["unshare", "--net", "--mount", "--", "sh", "-c", _THERE, sys.executable, what]
    return run(argv, stdin="\n".join([*_LINKS, *routes])).stdout.split()


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        pytest.param([], [], id="none"),
        pytest.param(["route add default via 198.51.100.2"], ["eth0"], id="a default route"),
        pytest.param(["route add default dev tap0"], ["tap0"], id="a default route by a TAP device"),
        pytest.param(["route add ::/0 via fe80::1 dev eth1"], ["eth1"], id="one of IPv6"),
        pytest.param(
            [
                "route add ::/0 via fe80::1 dev cali0123 proto ra",
                "route add ::/0 via fe80::1 dev br0 proto ra metric 9",
                "route add 2001:db8:9::/48 via fe80::1 dev docker0 proto ra",
            ],
            [],
            id="router advertisements of pods",
        ),
        pytest.param(
            [
                "route add ::/0 via fe80::1 dev tun0 proto ra",
                "route add ::/0 via fe80::1 dev eth1 proto ra metric 9",
                "route add ::/0 via fe80::1 dev eth1 metric 10",
            ],
            ["eth1", "tun0"],
            id="one in a tunnel, and one beside a route of the host",
        ),
        pytest.param(["route add 10.0.0.0/8 via 198.51.101.2"], ["eth1"], id="a route through a gateway"),
        pytest.param(["route add 10.8.0.0/24 dev tun0"], ["tun0"], id="a tunnel"),
        pytest.param(["route add 10.147.0.0/16 dev tap0"], [], id="a TAP device that says nothing"),
        pytest.param(["route add default via 203.0.113.2"], ["br0"], id="a bridge"),
        pytest.param(
            ["route add default nexthop via 198.51.100.2 nexthop via 198.51.101.2"], ["eth0", "eth1"], id="two hops"
        ),
        pytest.param(
            ["nexthop add id 1 via 198.51.100.2 dev eth0", "route add default nhid 1"], ["eth0"], id="nexthop"
        ),
        pytest.param(["route add default via 198.51.101.2 table 77"], [], id="a table that nothing asks"),
        pytest.param(
            ["rule add fwmark 2 table 77", "route add default via 198.51.101.2 table 77"], ["eth1"], id="another table"
        ),
        pytest.param(
            ["rule add fwmark 2 table 7777", "route add default via 198.51.101.2 table 7777"], ["eth1"], id="a high one"
        ),
        pytest.param(["route add 203.0.114.0/29 dev virbr0 proto 107"], [], id="a route of ours"),
        pytest.param(["route add unreachable default"], [], id="a route to nowhere"),
    ],
)
def test_uplinks_are_where_routes_lead_out(routes: list[str], expected: list[str]) -> None:
    assert asked(*routes) == expected


@pytest.mark.usefixtures("lab")
def test_the_first_routes_do_where_there_are_very_many() -> None:
    many = [f"route add 10.{number >> 8}.{number & 255}.0/24 via 198.51.101.2" for number in range(12_000)]
    assert asked("route add default via 198.51.100.2", *many) == ["eth0", "eth1"]


@pytest.mark.usefixtures("lab")
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        pytest.param([], [], id="those of its addresses"),
        pytest.param(["address add 203.0.113.9/24 dev eth1"], ["203.0.113.0/24=eth1"], id="two links"),
        pytest.param(["address add 10.0.0.1/32 dev eth1", "address add 10.0.1.1/24 dev lo"], [], id="no subnet"),
        pytest.param(["route add 203.0.113.128/25 via 198.51.100.2"], ["203.0.113.128/25="], id="behind a gateway"),
        pytest.param(["route add 203.0.113.66 dev cali0123"], ["203.0.113.66/32=cali0123"], id="a part elsewhere"),
        pytest.param(
            ["route add 203.0.113.0/24 via 198.51.100.2 metric 500"], ["203.0.113.0/24=eth0"], id="a second way"
        ),
        pytest.param(
            ["rule add fwmark 2 table 77", "route add 203.0.113.0/24 dev eth1 table 77"],
            ["203.0.113.0/24=eth1"],
            id="another table",
        ),
        pytest.param(["route add 203.0.113.64/29 dev virbr0 proto 107"], [], id="a route of ours"),
        pytest.param(
            ["address add 2001:db8:5::1/128 dev eth0", "route add 2001:db8:5::/64 dev eth0"],
            ["2001:db8:5::/64=eth0"],
            id="a route without a gateway",
        ),
        pytest.param(["route add 10.8.0.0/24 dev tun0", "route add default dev tap0"], [], id="routes to anywhere"),
        pytest.param(["address add 10.8.0.1/24 dev tun0"], ["10.8.0.0/24=tun0"], id="a tunnel with a subnet"),
        pytest.param(
            ["link add over type bridge", "link set br0 nomaster", "link set eth1 master over"],
            ["198.51.101.0/24=over"],
            id="an address on a port",
        ),
    ],
)
def test_what_is_on_a_link_comes_in_by_it(more: list[str], expected: list[str]) -> None:
    assert set(asked(*more, what=_ASK_LINKS)) == _OWN | {"203.0.113.0/24=br0"} | set(expected)
