"""Fixtures: a lab host of each flavour, and guests, networks and daemons on it that end with their test.

A test that needs a host takes `host` and what it builds on it (`network`, `lxc_guest`, `daemon` …). The host is shared
by a module, booted in a fraction of a second; what a test leaves behind on it fails that test.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TypeVar

import pytest
from hypothesis import settings

from tests.lab.daemon import Daemon
from tests.lab.domain import Guest, Link
from tests.lab.host import Host
from tests.lab.image import host_packages
from tests.lab.leftovers import Leftovers
from tests.lab.lxc import LxcGuest
from tests.lab.qemu import QemuGuest
from tests.lab.release import FLAVOURS, Flavour

# How long an example takes says more of the machine than of us.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

_PROGRAMS = ("busybox", "conntrack", "debootstrap", "dnsmasq", "ip", "iptables", "libvirtd", "nft", "nsenter", "virsh")

_G = TypeVar("_G", bound=Guest)
MakeNetwork = Callable[..., str]
MakeLxcGuest = Callable[..., LxcGuest]
MakeQemuGuest = Callable[..., QemuGuest]
StartDaemon = Callable[..., Daemon]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of this project's own."""
    parser.addoption("--refresh-golden", action="store_true", help="write the reviewed rule texts anew")


def pytest_configure(config: pytest.Config) -> None:
    """Markers of this project's own."""
    config.addinivalue_line("markers", "on(*firewalls): only on hosts whose libvirt writes its rules with one of these")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the hosts that a test is not about."""
    apart = [item for item in items if _is_elsewhere(item)]
    items[:] = [item for item in items if item not in apart]
    config.hook.pytest_deselected(items=apart)


def _is_elsewhere(item: pytest.Item) -> bool:
    marker, call = item.get_closest_marker("on"), getattr(item, "callspec", None)
    return marker is not None and call is not None and call.params["flavour"].firewall not in marker.args


def give_up(reason: str) -> None:
    """Skip on somebody's own machine, fail where everything has to run."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def lab() -> None:
    """What a lab host needs of the machine."""
    if os.geteuid() != 0:
        give_up("lab hosts need root: sudo scripts/test")
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        give_up(f"missing {', '.join(missing)} (of {', '.join(host_packages())}): sudo scripts/test installs them")


@pytest.fixture(scope="module", params=FLAVOURS, ids=str)
def flavour(request: pytest.FixtureRequest) -> Flavour:
    """Each kind of host a user has."""
    flavour: Flavour = request.param
    return flavour


@pytest.fixture(scope="module")
def module_host(lab: None, flavour: Flavour) -> Iterator[Host]:  # noqa: ARG001  a fixture is asked for by name
    """A host with libvirtd running, for fixtures of a whole module; tests take `host`."""
    with Host.boot(flavour) as host:
        host.libvirt.start()
        yield host


@pytest.fixture
def host(module_host: Host) -> Iterator[Host]:
    """The module's host; fails the test that leaves a domain, network, daemon or rule of ours behind."""
    before = Leftovers.of(module_host)
    module_host.run("conntrack", "--flush", check=False)
    yield module_host
    if left := Leftovers.of(module_host).beyond(before):
        pytest.fail(f"the test left behind: {left}")


@pytest.fixture
def network(host: Host) -> Iterator[MakeNetwork]:
    """Define and start networks: `network("default", "192.168.122.0/24", …)` as `Libvirt.define_network`."""
    with ExitStack() as at_end:

        def make(name: str, subnet4: str | None, subnet6: str | None = None, **more: object) -> str:
            host.libvirt.define_network(name, subnet4, subnet6, **more)  # type: ignore[arg-type]
            at_end.callback(host.libvirt.remove_network, name)
            return name

        yield make


@pytest.fixture
def lxc_guest(host: Host, network: MakeNetwork) -> Iterator[MakeLxcGuest]:  # noqa: ARG001  guests go before networks
    """Start LXC guests: `lxc_guest("web1", Link("default", ("192.168.122.10/24",)))`; `start=False` only defines."""
    with ExitStack() as at_end:

        def make(name: str, *links: Link, start: bool = True) -> LxcGuest:
            return _made(at_end, LxcGuest(host, name, *links), start=start)

        yield make


@pytest.fixture
def qemu_guest(host: Host, network: MakeNetwork) -> Iterator[MakeQemuGuest]:  # noqa: ARG001  guests go before networks
    """Start QEMU guests, which take their address by DHCP."""
    with ExitStack() as at_end:

        def make(name: str, *links: Link, start: bool = True) -> QemuGuest:
            return _made(at_end, QemuGuest(host, name, *links), start=start)

        yield make


def _made(at_end: ExitStack, guest: _G, *, start: bool) -> _G:
    at_end.callback(guest.remove)
    if start:
        guest.start()
    else:
        guest.define()
    return guest


@pytest.fixture
def daemon(host: Host) -> Iterator[StartDaemon]:
    """Start the daemon: `daemon(config, wait=True)`. At the end it stops, and its own `flush` must leave nothing."""
    started: list[Daemon] = []

    def start(config: str, *, wait: bool = True, arguments: tuple[str, ...] = ()) -> Daemon:
        started.append(host.daemon(config, wait=wait, arguments=arguments))
        return started[-1]

    yield start
    for each in started:
        if each.process.running:
            each.terminate()
        each.close()
    if started:
        host.run(host.python, "-m", "fwdaemon", "flush")
