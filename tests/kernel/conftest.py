"""Network namespaces, so that the real kernel can be used without a trace: one for each test, or a wired host."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from fwdaemon.core.exposures import Exposure
from fwdaemon.core.state import Desired
from fwdaemon.core.types import Family, Gate
from fwdaemon.hostnet.host_network import SystemHostNetwork
from fwdaemon.kernel.process import SystemRunner
from fwdaemon.legacy.backend import LegacyBackend
from fwdaemon.legacy.client import HelperClient
from fwdaemon.netfilter import Backend
from fwdaemon.nftables.backend import NftablesBackend
from tests.kernel.host_side import MakeHost
from tests.kernel.legacy import helpers
from tests.kernel.links import Links, linked
from tests.kernel.scene import V4, V6, Plan
from tests.kernel.topology import Topology, address_words, own_namespace, wired
from tests.unit.forwards import subnets

GATE = Gate("inet", "theirs", "forward")
GUESTS = subnets("192.168.122.0/24", "192.168.123.0/24", "2001:db8:122::/64", "2001:db8:123::/64")

# Where packets with sources of these subnets come in; routes bring the others.
HOMES = frozenset((subnet, "virbr0" if "122" in str(subnet) else "virbr1") for subnet in GUESTS)

Open = Callable[..., None]


@pytest.fixture(autouse=True)
def namespace(request: pytest.FixtureRequest, lab: None) -> Iterator[None]:
    """Move this thread, and what it starts, into a fresh network namespace, and back afterwards.

    For every test in here, so that none can forget it; where a host is wired, the thread is in there already.
    """
    del lab
    if "wires" in request.fixturenames:
        yield
        return
    with own_namespace():
        yield


@pytest.fixture
def runner(namespace: None) -> SystemRunner:
    """Give a runner whose programs work in the namespace."""
    del namespace
    return SystemRunner()


@pytest.fixture
def at_end() -> Iterator[ExitStack]:
    """Take what is to be undone when the test ends."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def lock_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, namespace: None) -> Path:
    """Keep everybody in the namespace away from the machine's own lock."""
    del namespace
    path = tmp_path / "xtables.lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(path))
    return path


@pytest.fixture
def clients(lock_file: Path) -> Iterator[dict[Family, HelperClient]]:
    """The helpers of gates alone."""
    del lock_file
    clients = {family: HelperClient(family) for family in Family}
    yield clients
    for client in clients.values():
        client.close()


@pytest.fixture
def backend(lock_file: Path) -> Iterator[LegacyBackend]:
    """The backend of the legacy tables, whose helpers must end with it; the tests of nftables have their own."""
    del lock_file
    backend = LegacyBackend()
    yield backend
    backend.close()
    assert not helpers(), "a helper was left behind"


# --- a host on its links ----------------------------------------------------------------------------------------------


@pytest.fixture
def links(lab: None) -> Iterator[Links]:
    """Give a host between a neighbour and a guest; files that need more on it add that."""
    del lab
    with linked() as links:
        yield links


@pytest.fixture
def begin(links: Links, tmp_path: Path) -> Iterator[MakeHost]:
    """Make the keepers of one run after another; what one leaves, the next finds."""
    del links
    with ExitStack() as stack:

        def begun() -> SystemHostNetwork:
            host = SystemHostNetwork(lambda: frozenset(Family), tmp_path)
            stack.callback(host.close)
            return host

        yield begun


# --- a wired host -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=[V4, V6], ids=["ipv4", "ipv6"])
def plan(request: pytest.FixtureRequest) -> Plan:
    """Each family."""
    plan: Plan = request.param
    return plan


@pytest.fixture(scope="module", params=[False, True], ids=["nftables", "iptables"])
def legacy(request: pytest.FixtureRequest) -> bool:
    """Each rule system."""
    legacy: bool = request.param
    return legacy


@pytest.fixture(scope="module")
def wires(lab: None, *, legacy: bool) -> Iterator[Topology]:  # noqa: ARG001  a fixture is asked for by name
    """All machines, for all tests of one rule system; tests take `machines`."""
    with wired() as machines:
        public = (address for plan in (V4, V6) for address in (plan.public, plan.other))
        machines.host.ip(*(address_words(address, "eth0") for address in public))
        yield machines


@pytest.fixture(scope="module")
def rules(wires: Topology, tmp_path_factory: pytest.TempPathFactory, *, legacy: bool) -> Iterator[Backend]:
    """The backend of the rule system, on the host."""
    del wires
    if not legacy:
        yield NftablesBackend(SystemRunner())
        return
    with pytest.MonkeyPatch.context() as patch:
        # Not the machine's own lock.
        patch.setenv("XTABLES_LOCKFILE", str(tmp_path_factory.mktemp("lock") / "xtables.lock"))
        backend = LegacyBackend()
        yield backend
        backend.remove()
        backend.close()


@pytest.fixture
def machines(wires: Topology, *, legacy: bool) -> Topology:
    """All machines, and nothing open."""
    wires.reset(legacy=legacy)
    return wires


@pytest.fixture
def opened(machines: Topology, rules: Backend, *, legacy: bool) -> Open:
    """Open something, and nothing else: `opened(nat(…), route(…))`; by more `uplinks` than the link to the outside."""
    del machines
    gates = () if legacy else (GATE,)
    unheld = frozenset(ip_address(plan.elsewhere) for plan in (V4, V6))
    nothing = Desired(guest_subnets=GUESTS, homes=HOMES, uplinks=frozenset({"eth0"}), gates=gates, unheld=unheld)

    def open_(*exposures: Exposure, uplinks: Collection[str] = ()) -> None:
        state = replace(nothing, uplinks=nothing.uplinks.union(uplinks)).having(exposures)
        assert not rules.apply(state, full=True).faults

    return open_
