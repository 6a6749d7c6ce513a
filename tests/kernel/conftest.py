"""Network namespaces, so that the real kernel can be used without a trace: one for each test, or a wired host."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from fwdaemon.config.model import Gate
from fwdaemon.desired import Desired, Opening
from fwdaemon.legacy.backend import LegacyBackend
from fwdaemon.netfilter import Backend
from fwdaemon.nftables.backend import NftablesBackend
from fwdaemon.process import SystemRunner
from tests.kernel.legacy import helpers
from tests.kernel.scene import V4, V6, Plan
from tests.kernel.topology import Topology, own_namespace, wired
from tests.unit.forwards import subnets

GATE = Gate("inet", "theirs", "forward")
GUESTS = subnets("192.168.122.0/24", "192.168.123.0/24", "2001:db8:122::/64", "2001:db8:123::/64")

Open = Callable[..., None]


@pytest.fixture
def namespace(lab: None) -> Iterator[None]:
    """Move this thread, and what it starts, into a fresh network namespace, and back afterwards."""
    del lab
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
def backend(lock_file: Path) -> Iterator[LegacyBackend]:
    """The backend of the legacy tables, whose helpers must end with it; the tests of nftables have their own."""
    del lock_file
    backend = LegacyBackend()
    yield backend
    backend.close()
    assert not helpers(), "a helper was left behind"


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
        machines.host.ip(*(f"address add {address} dev eth0" for address in public))
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
    """Open something, and nothing else: `opened(nat(…), route(…), localhost=True)`."""
    del machines
    nothing = Desired(guest_subnets=GUESTS, outer=frozenset({"eth0"}), gates=() if legacy else (GATE,))

    def open_(*openings: Opening, localhost: bool = False) -> None:
        assert not rules.apply(replace(nothing, localhost=localhost).having(openings), thorough=True).faults

    return open_
