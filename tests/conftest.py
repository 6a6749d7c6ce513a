"""Fixtures: a lab host of each flavour, and guests, networks and daemons on it that end with their test.

A test that needs a host takes `host` and what it builds on it (`network`, `lxc_guest`, `daemon` …). The host is shared
by a module, booted in a fraction of a second; what a test leaves behind on it fails that test.
"""

import gc
import os
import shutil
import zlib
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings

from tests.covering import Covering
from tests.lab.daemon import Daemon, last_lines
from tests.lab.domain import Guest, Link
from tests.lab.host import Host
from tests.lab.image import host_packages
from tests.lab.leftovers import Leftovers
from tests.lab.lxc import LxcGuest
from tests.lab.qemu import QemuGuest
from tests.lab.release import (
    DEBIAN12_IPTABLES,
    DEBIAN12_LEGACY,
    DEBIAN13_LEGACY,
    DEBIAN13_NFTABLES,
    FLAVOURS,
    Flavour,
    LibvirtFirewall,
)
from tests.lab.untouched import network_untouched
from tests.reporting import DAEMONS, FailuresAtOnce, TimeSpent

# How long an example takes says more of the machine than of us. The long draw is `--hypothesis-profile=thorough`.
settings.register_profile("any machine", deadline=None, max_examples=30)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("any machine")

_PROGRAMS = ("busybox", "conntrack", "debootstrap", "dnsmasq", "ip", "iptables", "libvirtd", "nft", "nsenter", "virsh")

# Beginnings of names of tests, in the order in which they run. On a new machine, the second and third build the images
# that all hosts and machines of another release start from; what needs none fills the time until those are there. Then
# come those that take longest, so that in the end each worker has something short. What takes most of the processors is
# over by the time that emulated guests migrate.
_FIRST = (
    "tests/host/test_install.py",
    "tests/system/test_machine.py",
    "tests/host/test_lab.py",
    "tests/test_style.py",
    "tests/packaging/",
    "tests/kernel/",
    "tests/system/",
    "tests/host/test_endurance.py",
    "tests/host/test_chaos.py",
    "tests/host/test_explain.py",
    "tests/host/test_moves",
    "tests/host/",
    "tests/programs/",
    "tests/fuzz/",
)

# Who has a turn, where a test is to run on one kind of host, whichever.
_TURNS = (DEBIAN12_IPTABLES, DEBIAN13_NFTABLES, DEBIAN12_LEGACY)

_G = TypeVar("_G", bound=Guest)
MakeNetwork = Callable[..., str]
MakeLxcGuest = Callable[..., LxcGuest]
MakeQemuGuest = Callable[..., QemuGuest]
StartDaemon = Callable[..., Daemon]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of this project's own."""
    parser.addoption("--refresh-golden", action="store_true", help="write the reviewed rule texts anew")
    parser.addoption("--cover", action="store_true", help="fail where too little of the centre is reached")


def pytest_configure(config: pytest.Config) -> None:
    """Markers of this project's own, and failures reported as they happen."""
    config.addinivalue_line("markers", "on(*firewalls): only on hosts whose libvirt writes its rules with one of these")
    config.addinivalue_line("markers", "in_turn: each case on one kind of host, where it makes no difference on which")
    config.addinivalue_line("markers", "turns_on(firewall): the kind of host for all cases of a file that have a turn")
    config.addinivalue_line("markers", "everywhere: also on iptables-legacy of a second Debian")
    config.pluginmanager.register(FailuresAtOnce(config))
    config.pluginmanager.register(TimeSpent(config))
    config.pluginmanager.register(Covering(config))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the hosts that a test is not about, and begin with what takes long, or one worker ends last by far."""
    apart = {item for item in items if _is_elsewhere(item)}
    items[:] = sorted((item for item in items if item not in apart), key=_place)
    config.hook.pytest_deselected(items=list(apart))


def pytest_collection_finish() -> None:
    """Spare Python's collector the thousands of tests, which stay and of which it looked through each all the time."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failure what the daemons under test said last."""
    report = yield
    if report.failed and (said := last_lines(12)):
        report.sections.append((DAEMONS, said))
    return report


def _place(item: pytest.Item) -> int:
    return next((place for place, start in enumerate(_FIRST) if item.nodeid.startswith(start)), len(_FIRST))


def _is_elsewhere(item: pytest.Item) -> bool:
    """Whether a test is not about the kind of host it is to run on.

    The legacy tables of both releases are the same; what could differ, the programs and libraries, a few files show.
    """
    marker, call = item.get_closest_marker("on"), getattr(item, "callspec", None)
    flavour = call.params.get("flavour") if call is not None else None
    if flavour == DEBIAN13_LEGACY and item.get_closest_marker("everywhere") is None:
        return True
    if flavour is None:
        return False
    firewalls = marker.args if marker is not None else tuple(LibvirtFirewall)
    if item.get_closest_marker("in_turn") is not None and flavour != _whose_turn(item, firewalls):
        return True
    return flavour.firewall not in firewalls


def _whose_turn(item: pytest.Item, firewalls: Collection[LibvirtFirewall]) -> Flavour:
    """The kind of host that a case has, by the name of its file alone, so that it is the same whatever else is run.

    All cases of a file have the same where they can: to boot one more host and its guests takes longer than most cases.
    The sum spreads the files over all kinds; one that has to be on a certain kind for other reasons says `turns_on`.
    """
    marker, file = item.get_closest_marker("turns_on"), item.nodeid.partition("::")[0]
    if marker is not None and marker.args[0] in firewalls:
        return next(flavour for flavour in _TURNS if flavour.firewall == marker.args[0])
    first = zlib.crc32(file.encode()) % len(_TURNS)
    return next(flavour for flavour in (*_TURNS[first:], *_TURNS[:first]) if flavour.firewall in firewalls)


def give_up(reason: str) -> None:
    """Skip on a developer's machine, fail where everything has to run."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def lab() -> Iterator[None]:
    """What a lab host needs of the machine, whose own network must be the same in the end."""
    if os.geteuid() != 0:
        give_up("lab hosts need root: sudo scripts/test")
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        give_up(f"missing {', '.join(missing)} (of {', '.join(host_packages())}): sudo scripts/test installs them")
    # A user who is root in a user namespace alone cannot touch the machine's network, and may not read all of its own.
    with nullcontext() if is_in_user_namespace() else network_untouched():
        yield


def is_in_user_namespace() -> bool:
    """Whether root is another user outside, as with `unshare --user --map-root-user`."""
    return Path("/proc/self/uid_map").read_text(encoding="ascii").split() != ["0", "0", "4294967295"]


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

    def start(config: str, *, wait: bool = True, arguments: tuple[str, ...] = (), forked: bool = True) -> Daemon:
        started.append(host.daemon(config, wait=wait, arguments=arguments, forked=forked))
        return started[-1]

    yield start
    for each in started:
        if each.process.running:
            each.terminate()
        each.close()
    if started:
        host.portfwd("flush")
