"""Fixtures: a whole machine of each release with the package installed, and guests on it.

A module's machine boots in two seconds. Tests take `machine`, or `service` for guests and forwards in force; a domain,
a network, a daemon, a failed unit or a rule without its service that a test leaves behind fails it.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import give_up
from tests.lab.command import run
from tests.lab.computer import CLIENT4, PUBLIC4, SOURCE
from tests.lab.leftovers import Leftovers
from tests.lab.machine import UNIT, Machine
from tests.lab.place import wait_until
from tests.lab.release import Flavour
from tests.system.sandbox import CONFIG, HEAD, WEB, Sandbox, guests_on

PAGE = f"http://{PUBLIC4}:8080/"


@pytest.fixture(scope="session")
def package(lab: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001  asked for by name
    """The .deb of this checkout, built once for all workers of a run."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with (shared / "package.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        built = list(shared.glob("*.deb"))
        return built[0] if built else _build(shared)


def _build(target: Path) -> Path:
    if shutil.which("dh") is None:
        give_up("missing debhelper: sudo scripts/test installs what builds the package")
    package = Path(run([SOURCE / "scripts/package", "deb"], timeout=300).stdout.strip())
    # Renamed when it is whole, so that no other worker finds a part of it.
    copied = shutil.copyfile(package, target / f"{package.name}.partial")
    return copied.rename(target / package.name)


@pytest.fixture(scope="module")
def module_machine(lab: None, flavour: Flavour) -> Iterator[Machine]:  # noqa: ARG001  asked for by name
    """A machine on which nothing of this project is installed; tests take `machine`."""
    with Machine.boot(flavour) as machine:
        yield machine


@pytest.fixture(scope="module")
def module_service(module_machine: Machine, package: Path) -> Iterator[Sandbox]:
    """A machine with the package installed, and guests; tests take `service`."""
    module_machine.install(package)
    with guests_on(module_machine) as guests:
        guests.web.serve_tcp(7000)
        yield guests


@pytest.fixture
def machine(module_machine: Machine) -> Iterator[Machine]:
    """The module's machine; fails the test that leaves something behind on it."""
    before = _leftovers(module_machine)
    yield module_machine
    if left := _leftovers(module_machine).beyond(before):
        pytest.fail(f"the test left behind: {left}")


def page(machine: Machine) -> str:
    """What the forwarded page says to a patient client outside; empty when it is not there."""
    return machine.outside.fetch(PAGE, timeout=10).text


def _leftovers(machine: Machine) -> Leftovers:
    if not machine.libvirt.answers:
        # A test that fails half-way may leave it stopped; the next one gets it back.
        machine.libvirt.start()
    failed = machine.systemctl("--failed", "--plain", "--no-legend").splitlines()
    # The service may run on, with its rules.
    runs = machine.property("ActiveState") == "active"
    return Leftovers(
        domains=frozenset(machine.libvirt.domains()),
        networks=frozenset(machine.libvirt.networks()),
        daemons=frozenset([*failed, *map(str, machine.daemons())]),
        rules=frozenset([] if runs else machine.own_rules().splitlines()),
    )


@pytest.fixture
def service(module_service: Sandbox, machine: Machine) -> Sandbox:
    """The service with forwards of `web` in force; the same process, where the test before left them so."""
    if machine.property("ActiveState") != "active" or machine.read(CONFIG) != HEAD + WEB:
        machine.write(CONFIG, HEAD + WEB)
        machine.systemctl("restart", UNIT)
    wait_until(lambda: page(machine) == f"web {CLIENT4}", "the page")
    return module_service
