"""Everything that is asked of the kernel by pyroute2, once, with the release that is installed and with older ones."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from fwdaemon.core.types import Family
from fwdaemon.hostnet.host_network import BridgePort, bridge_ports, set_hairpin_mode
from fwdaemon.kernel.observe import observe_host
from fwdaemon.kernel.rtnetlink import PROTOCOL, RefusedError, Rtnetlink, interface_index
from fwdaemon.kernel.rtnl_links import (
    Held,
    HeldAddress,
    KernelAddress,
    KernelNeighbour,
    ProxyEntry,
    add_address,
    add_proxy_entry,
    add_route,
    addresses,
    delete_address,
    delete_proxy_entry,
    delete_route,
    held_addresses,
    introduce,
    on_link_routes,
    our_routes,
    probe,
    proxy_entries,
    renew_address,
    resolve,
    route_of,
)
from tests.kernel.links import Links

# The first is what Debian 12 ships.
OLDER = "0.7.2", "0.7.7"
SUBNETS = pytest.mark.parametrize("subnet", ["203.0.113.64/29", "2001:db8:1::/64"])
ADDRESSES = pytest.mark.parametrize("address", ["198.51.100.8", "2001:db8::8"])


@pytest.fixture
def kernel(links: Links) -> Iterator[Rtnetlink]:
    del links
    with Rtnetlink() as kernel:
        yield kernel


def index(name: str) -> int:
    found = interface_index(name)
    assert found is not None
    return found


@SUBNETS
def test_routes(links: Links, kernel: Rtnetlink, subnet: str) -> None:
    wanted, bridge = ip_network(subnet), index("virbr1")
    add_route(kernel, wanted, bridge)
    assert f"{subnet} dev virbr1 proto {PROTOCOL}" in links.told(f"-{wanted.version}", "route", "show")
    (ours,) = our_routes(kernel, Family.of(wanted))
    assert (ours.subnet, ours.index, ours.protocol, ours.is_plain) == (wanted, bridge, PROTOCOL, True)
    assert ours.leads_to(bridge)
    assert route_of(kernel, wanted) == ours
    assert wanted in on_link_routes(kernel, bridge)
    with pytest.raises(RefusedError, match="File exists") as refused:
        add_route(kernel, wanted, index("eth0"))
    assert refused.value.number == errno.EEXIST
    delete_route(kernel, ours)
    delete_route(kernel, ours)
    assert our_routes(kernel, Family.of(wanted)) == []


@SUBNETS
def test_routes_that_others_changed(links: Links, kernel: Rtnetlink, subnet: str) -> None:
    links.host.ip(f"route add {subnet} dev virbr1 proto {PROTOCOL} mtu 1400 metric 7")
    (ours,) = our_routes(kernel, Family.of(ip_network(subnet)))
    assert (ours.priority, ours.is_plain) == (7, False)
    delete_route(kernel, ours)
    assert our_routes(kernel, Family.of(ip_network(subnet))) == []


@ADDRESSES
def test_addresses(links: Links, kernel: Rtnetlink, address: str) -> None:
    entry = KernelAddress(ip_address(address), index("eth0"))
    family = Family.of(entry.address)
    add_address(kernel, entry)
    assert HeldAddress(entry, is_plain=True) in held_addresses(family)
    with pytest.raises(RefusedError) as refused:
        add_address(kernel, entry)
    assert refused.value.number == errno.EEXIST
    prefix = entry.address.max_prefixlen
    links.host.ip(f"address change {address}/{prefix} dev eth0 valid_lft 1000 preferred_lft 500")
    (held,) = (held for held in held_addresses(family) if held.entry == entry)
    assert not held.is_plain
    assert held.seconds is not None
    assert 900 < held.seconds <= 1000
    renew_address(kernel, entry)
    assert HeldAddress(entry, is_plain=True) in held_addresses(family)
    assert ("deprecated" in links.told("address", "show", "to", address)) == (family is Family.IPV6)
    assert entry in addresses(family, entry.index)
    assert any(found.address == entry.address for found in observe_host().addresses)
    delete_address(kernel, entry)
    delete_address(kernel, entry)
    assert entry not in addresses(family, entry.index)


@ADDRESSES
def test_proxy_entries(links: Links, kernel: Rtnetlink, address: str) -> None:
    entry = ProxyEntry(ip_address(address), index("eth0"))
    family = Family.of(entry.address)
    links.host.ip(f"neighbour add proxy {address} dev eth0")
    assert proxy_entries(kernel, family) == {entry: Held(is_ours=False, is_plain=True)}
    delete_proxy_entry(kernel, entry)
    add_proxy_entry(kernel, entry)
    assert proxy_entries(kernel, family) == {entry: Held(is_ours=True, is_plain=True)}
    assert f"proto {PROTOCOL}" in links.told("neighbour", "show", "proxy")
    delete_proxy_entry(kernel, entry)
    delete_proxy_entry(kernel, entry)
    assert proxy_entries(kernel, family) == {}


def test_bridge_ports(links: Links) -> None:
    port = index("vnet0")
    set_hairpin_mode(port, hairpin=True)
    assert bridge_ports()["vnet0"] == BridgePort(port, hairpin=True)
    assert "hairpin on" in links.told("-details", "link", "show", "vnet0")
    set_hairpin_mode(port, hairpin=False)
    assert bridge_ports()["vnet0"] == BridgePort(port, hairpin=False)
    assert observe_host(["vnet0"]).bridges == {"vnet0": "virbr1"}
    with pytest.raises(RefusedError):
        set_hairpin_mode(index("eth0"), hairpin=True)


@ADDRESSES
def test_neighbours(links: Links, kernel: Rtnetlink, address: str) -> None:
    entry = KernelNeighbour(ip_address(address), "52:54:00:00:00:99", index("eth0"))
    with pytest.raises(RefusedError) as refused:
        probe(kernel, entry)
    assert refused.value.number == errno.ENOENT
    introduce(kernel, entry)
    assert entry.mac in links.told("neighbour", "show", "to", address)
    links.host.ip(f"neighbour replace {address} dev eth0 lladdr {entry.mac} nud permanent")
    resolve(kernel, entry.address, entry.index)
    assert "PERMANENT" in links.told("neighbour", "show", "to", address)


@pytest.fixture(scope="module", params=OLDER)
def older(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an older release is. Made before the thread enters a namespace, from which nothing can be fetched."""
    path: Path = tmp_path_factory.mktemp("pyroute2")
    pip = sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"
    subprocess.run([*pip, "--target", path, f"pyroute2=={request.param}"], check=True)  # noqa: S603  our own words
    return path


def test_with_another_release(older: Path) -> None:
    """By a program of its own, since this one has its library already."""
    heard = "tests/kernel/test_route_watch.py::test_we_do_not_hear_ourselves"
    words = "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "not another_release"
    told = subprocess.run(  # noqa: S603  our own words
        [sys.executable, "-m", "pytest", *words, __file__, "tests/unit/test_rtnetlink.py", heard],
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={name: value for name, value in os.environ.items() if "PYTEST" not in name} | {"PYTHONPATH": str(older)},
    )
    assert told.returncode == 0, told.stdout + told.stderr
